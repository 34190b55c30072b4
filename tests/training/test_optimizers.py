"""Settings of Keras's optimizers that reach every weight: strides are no usual weights."""

from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
from support.tiny_runs import load, train, train_a_step

from diffstride_hybrid.model_tools.inspection import diffstride_layers, strides_by_path
from diffstride_hybrid.training.optimizers import keep_from_decay

pytestmark = pytest.mark.usefixtures("uncompiled")

DECAYING = [
    partial(keras.optimizers.AdamW, 0.5, weight_decay=0.5),
    partial(keras.optimizers.SGD, 1e-3, momentum=0.9, weight_decay=100.0),
]


@pytest.mark.parametrize("optimizer_cls", DECAYING)
def test_weight_decay_leaves_strides_alone(optimizer_cls: partial, tmp_path: Path):
    train_a_step(tmp_path / "with", optimizer_cls=optimizer_cls)
    train_a_step(tmp_path / "without", optimizer_cls=partial(optimizer_cls, weight_decay=0.0))
    decayed, other = load(tmp_path / "with"), load(tmp_path / "without")
    assert list(strides_by_path(decayed).values()) == list(strides_by_path(other).values())
    kernels = [[weight for weight in model.weights if weight.name == "kernel"] for model in (decayed, other)]
    assert all(np.abs(one).max() < np.abs(two).max() for one, two in zip(*kernels))


def test_what_a_user_keeps_from_decay_stays_so():
    layers = [keras.layers.Dense(2, name="one"), keras.layers.Dense(2, name="two"), keras.layers.Dense(2, name="three")]
    model = keras.Sequential([keras.Input((2,)), *layers])
    optimizer = keras.optimizers.SGD(weight_decay=0.1)
    optimizer.exclude_from_weight_decay([layers[0].kernel], ["bias"])
    keep_from_decay(optimizer, [layers[1].kernel])
    optimizer.build(model.trainable_variables)
    decayed = [weight for weight in model.trainable_variables if optimizer._use_weight_decay(weight)]
    assert decayed == [layers[2].kernel]


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_moving_averages_are_what_is_saved_and_evaluated(tmp_path: Path, policy: str):
    """With a momentum of 0 the average is the last value, and with one near 1 it stays near the first."""
    runs = {}
    for momentum in (None, 0.0, 0.999):
        options = {} if momentum is None else {"use_ema": True, "ema_momentum": momentum}
        optimizer_cls = partial(keras.optimizers.SGD, 0.5, **options)
        summary = train(tmp_path / str(momentum), optimizer_cls=optimizer_cls, dtype_policy=policy)
        runs[momentum] = (load(tmp_path / str(momentum)), summary)
    for weight, other in zip(runs[None][0].trainable_weights, runs[0.0][0].trainable_weights, strict=True):
        np.testing.assert_array_equal(weight, other)
    assert runs[0.0][1]["test_loss"] == runs[None][1]["test_loss"]
    assert runs[0.999][1]["test_loss"] != runs[None][1]["test_loss"]
    strides = [layer.strides for layer in diffstride_layers(runs[0.999][0])]
    assert strides
    summary_strides = [pooling["strides"] for pooling in runs[0.999][1]["poolings"] if pooling["strides"]]
    np.testing.assert_array_equal(strides, summary_strides)
