"""TensorFlow's own operations give what JAX and PyTorch compute, gradients too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from diffstride_hybrid.backends import elementwise, on_tensorflow

VALUES = np.array([-3.0, 0.0, 0.5, 1.0, 2.0, np.nan], "float32")

CASES: dict[str, Callable[[Any, tf.Tensor], tf.Tensor]] = {
    "clipped": lambda module, values: module.clipped(values, 0.0, 1.0),
    "clipped below": lambda module, values: module.clipped(values, 0.5, None),
    "clipped by tensors": lambda module, values: module.clipped(values, tf.fill([6], -1.0), tf.fill([6], 1.0)),
    "added": lambda module, values: module.added(values, 2.0 * values),
    "half_sum_of_squares": lambda module, values: module.half_sum_of_squares(values[:5]),
}


@pytest.mark.parametrize("name", CASES)
def test_both_compute_the_same(name: str):
    found = []
    for module in (on_tensorflow, elementwise):
        values = tf.constant(VALUES)
        with tf.GradientTape() as tape:
            tape.watch(values)
            outputs = CASES[name](module, values)
        # A gradient at NaN means nothing.
        found.append((outputs, tf.convert_to_tensor(tape.gradient(outputs, values))[:5]))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
