"""Settings of Keras's optimizers that reach every weight: strides are no usual weights."""

import csv
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.replicas import two_cpus
from support.tiny_runs import load, small, train, train_a_step

from diffstride_hybrid.model_tools.inspection import diffstride_layers, strides_by_path
from diffstride_hybrid.training.optimizers import keep_from_decay, pace_strides

pytestmark = pytest.mark.usefixtures("uncompiled")

DECAYING = [
    partial(keras.optimizers.AdamW, 0.5, weight_decay=0.5),
    pytest.param(partial(keras.optimizers.SGD, 1e-3, momentum=0.9, weight_decay=100.0), marks=pytest.mark.slow),
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


@pytest.mark.parametrize("policy", ["float32", pytest.param("mixed_float16", marks=pytest.mark.slow)])
def test_moving_averages_are_what_is_saved_and_evaluated(tmp_path: Path, policy: str):
    """With a momentum of 0 the average is the last value, and with one near 1 it stays near the first."""
    runs = {}
    for momentum in (None, 0.0, 0.999):
        options = {} if momentum is None else {"use_ema": True, "ema_momentum": momentum}
        optimizer_cls = partial(keras.optimizers.SGD, 0.5, **options)
        options = {"optimizer_cls": optimizer_cls, "dtype_policy": policy, "num_epochs": 1}
        summary = train(tmp_path / str(momentum), **options)
        runs[momentum] = (load(tmp_path / str(momentum)), summary)
    for weight, other in zip(runs[None][0].trainable_weights, runs[0.0][0].trainable_weights, strict=True):
        np.testing.assert_array_equal(weight, other)
    assert runs[0.0][1]["test_loss"] == runs[None][1]["test_loss"]
    assert runs[0.999][1]["test_loss"] != runs[None][1]["test_loss"]
    strides = [layer.strides for layer in diffstride_layers(runs[0.999][0])]
    assert strides
    summary_strides = [pooling["strides"] for pooling in runs[0.999][1]["poolings"] if pooling["strides"]]
    np.testing.assert_array_equal(strides, summary_strides)


# --- The pace of the strides -----------------------------------------------------------------------------------------

EVERY_KIND = [
    partial(keras.optimizers.SGD, momentum=0.9, nesterov=True),
    keras.optimizers.Adam,
    partial(keras.optimizers.AdamW, weight_decay=0.1),
    partial(keras.optimizers.RMSprop, momentum=0.9),
    keras.optimizers.Adagrad,
    keras.optimizers.Lion,
    keras.optimizers.Nadam,
    keras.optimizers.Adamax,
    keras.optimizers.Lamb,
]


def moved(optimizer: keras.optimizers.Optimizer, rates: float = 1.0, rest_steps: int = 0) -> np.ndarray:
    """The values of a stride and of a weight after five steps with equal gradients."""
    stride, weight = keras.Variable([2.0, 3.0], name="strides"), keras.Variable([2.0, 3.0], name="kernel")
    keep_from_decay(optimizer, [stride, weight])
    optimizer.build([stride, weight])
    pace_strides(optimizer, [stride], rates, rest_steps)
    for step in range(5):
        gradient = keras.ops.array([0.3 + step, -0.2])
        optimizer.apply([gradient, gradient], [stride, weight])
    return np.array([stride.numpy(), weight.numpy()])


@pytest.mark.parametrize("optimizer_cls", EVERY_KIND)
def test_a_relative_rate_is_that_of_an_optimizer_for_the_strides_alone(optimizer_cls: partial):
    paced = moved(optimizer_cls(0.01), rates=3.0)
    np.testing.assert_allclose(paced[0], moved(optimizer_cls(0.03))[0], rtol=1e-6)
    np.testing.assert_array_equal(paced[1], moved(optimizer_cls(0.01))[1])


@pytest.mark.parametrize("optimizer_cls", EVERY_KIND)
def test_strides_rest_before_they_move(optimizer_cls: partial):
    other = moved(optimizer_cls(0.01))
    np.testing.assert_array_equal(moved(optimizer_cls(0.01), rest_steps=5)[0], [2.0, 3.0])
    assert np.all(moved(optimizer_cls(0.01), rest_steps=4)[0] != [2.0, 3.0])
    np.testing.assert_array_equal(moved(optimizer_cls(0.01), rest_steps=4)[1], other[1])


def test_the_rate_is_one_factor_more_beside_a_schedule_and_accumulation():
    def with_rate(rate: float) -> keras.optimizers.Optimizer:
        schedule = keras.optimizers.schedules.CosineDecay(rate, 4)
        return keras.optimizers.SGD(schedule, gradient_accumulation_steps=2)

    np.testing.assert_allclose(moved(with_rate(0.01), rates=2.0)[0], moved(with_rate(0.02))[0], rtol=1e-6)
    # Five steps, two to an update: two updates. In the second the strides move, and in the first they rest.
    always, half, never = (moved(with_rate(0.01), rest_steps=steps)[0] for steps in (0, 2, 4))
    assert np.all(abs(always - [2.0, 3.0]) > abs(half - [2.0, 3.0]))
    assert np.all(half != [2.0, 3.0])
    np.testing.assert_array_equal(never, [2.0, 3.0])


def test_strides_keep_their_pace_on_every_replica():
    strategy = two_cpus()
    with strategy.scope():
        stride, weight = keras.Variable([2.0, 3.0], name="strides"), keras.Variable([2.0, 3.0], name="kernel")
        optimizer = keras.optimizers.SGD(0.1)
        optimizer.build([stride, weight])
        pace_strides(optimizer, [stride], relative_rate=3.0, rest_steps=1)

        @tf.function(autograph=False)
        def step() -> None:
            def of_replica() -> None:
                gradient = 0.5 * tf.constant([1.0, -1.0])  # Two replicas add them up.
                optimizer.apply_gradients([(gradient, stride), (gradient, weight)])

            strategy.run(of_replica)

        for _ in range(3):
            step()
    for component in stride.value.values:
        np.testing.assert_allclose(component.numpy(), [2.0 - 2 * 0.3, 3.0 + 2 * 0.3], rtol=1e-6)
    for component in weight.value.values:
        np.testing.assert_allclose(component.numpy(), [2.0 - 3 * 0.1, 3.0 + 3 * 0.1], rtol=1e-6)


@pytest.mark.parametrize("policy", [pytest.param("float32", marks=pytest.mark.slow), "mixed_float16"])
def test_a_run_lets_its_strides_rest_for_its_first_epochs(tmp_path: Path, policy: str):
    train(tmp_path, num_epochs=2, stride_warmup_epochs=1, stride_learning_rate=10.0, dtype_policy=policy)
    with open(tmp_path / "strides.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in ("epoch", "step")]
    at_end = {int(row["epoch"]): [row[name] for name in names] for row in rows}
    assert at_end[0] == at_end[1]
    assert at_end[1] != at_end[2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"stride_learning_rate": 0.0}, "above 0"),
        ({"stride_learning_rate": -1.0}, "at least 0"),
        ({"stride_warmup_epochs": 0.5}, "whole number"),
    ],
)
def test_a_pace_out_of_range_is_refused(tmp_path: Path, wrong: dict[str, float], message: str):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be .*{message}"):
        train(tmp_path, **wrong)


def test_a_pace_without_strides_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"stride_learning_rate .* have nothing to act on"):
        train(tmp_path, model_cls=partial(small, pooling_cls=None), stride_learning_rate=2.0)


def test_strides_cannot_rest_with_an_optimizer_that_divides_by_the_rate(tmp_path: Path):
    with pytest.raises(ValueError, match="stride_warmup_epochs must be 0 with Ftrl"):
        train(tmp_path, optimizer_cls=keras.optimizers.Ftrl, stride_warmup_epochs=1)


@pytest.mark.parametrize(
    ("optimizer_cls", "message"),
    [
        (
            lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()),
            "LossScaleOptimizer: .* Give Adam alone",
        ),
        (lambda: "sgd", "must return a Keras optimizer, got 'sgd'"),
        (lambda: keras.optimizers.MultiOptimizer([]), "must return one optimizer, .* got MultiOptimizer"),
    ],
)
def test_an_optimizer_that_does_not_fit_is_refused(tmp_path: Path, optimizer_cls: Any, message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        train(tmp_path, optimizer_cls=optimizer_cls)


def test_strides_cannot_have_a_pace_with_an_optimizer_that_bounds_the_rate(tmp_path: Path):
    with pytest.raises(ValueError, match="stride_learning_rate must be 1 with Adafactor"):
        train(tmp_path, optimizer_cls=keras.optimizers.Adafactor, stride_learning_rate=5.0)


def test_strides_have_a_pace_beside_a_rate_that_is_a_function(tmp_path: Path):
    layer, model = keras.layers.Dense(1), keras.Sequential([keras.Input((2,))])
    model.add(layer)
    before = np.array(layer.bias)
    optimizer = keras.optimizers.SGD(lambda: 0.1)
    pace_strides(optimizer, [layer.bias], relative_rate=5.0, rest_steps=0)
    optimizer.apply([keras.ops.ones(1)], [layer.bias])
    np.testing.assert_allclose(layer.bias, before - 0.5, rtol=1e-6)
