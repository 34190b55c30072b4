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


@pytest.mark.parametrize("module", [on_tensorflow, elementwise])
@pytest.mark.parametrize(("low", "high", "at"), [(1.0, 2.2, 2.2), (1.9, None, 1.9), (1.9, 2.2, 1.9), (1.9, 2.2, 2.2)])
def test_in_float64_a_value_that_float32_holds_at_a_limit_has_its_gradient(
    module: Any, low: float, high: float | None, at: float
):
    """Strides are float32: of 2.2 and 1.9 they hold a little more and a little less."""
    past = at + (0.1 if at == high else -0.1)
    values = tf.constant([np.float32(at), at, past, 2.0], tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(values)
        outputs = module.clipped(values, low, high)
    assert outputs.numpy().tolist() == [at, at, at, 2.0]
    assert tf.convert_to_tensor(tape.gradient(outputs, values)).numpy().tolist() == [1, 1, 0, 1]
