"""Warnings of learning rates that do not end with the run."""

from typing import Any

import keras
import pytest

from diffstride_hybrid.training.schedule_check import warn_of_schedule

schedules = keras.optimizers.schedules


@pytest.mark.parametrize(
    "rate",
    [
        0.1,
        schedules.CosineDecay(0.1, 400),
        schedules.CosineDecay(0.1, 300, warmup_target=0.2, warmup_steps=100),
        schedules.CosineDecay(0.1, 480, alpha=0.1),
        schedules.CosineDecay(0.1, 200, alpha=0.01),
        schedules.PolynomialDecay(0.1, 30, end_learning_rate=0.0, cycle=True),
        schedules.ExponentialDecay(0.1, 10_000, 0.5),
        schedules.PiecewiseConstantDecay([100, 200], [0.1, 0.01, 0.001]),
    ],
)
def test_a_rate_that_trains_to_the_end_is_not_named(warned: list[str], rate: Any):
    warn_of_schedule(keras.optimizers.SGD(rate), num_epochs=4, steps_per_epoch=100)
    assert warned == []


@pytest.mark.parametrize("wrap", [lambda each: each, keras.optimizers.LossScaleOptimizer])
def test_epochs_that_train_nothing_are_named(warned: list[str], wrap: Any):
    optimizer = wrap(keras.optimizers.Adam(schedules.CosineDecay(0.1, 250)))
    warn_of_schedule(optimizer, num_epochs=4, steps_per_epoch=100)
    cure = "bind CosineDecay.decay_steps to 400, the updates of the run."
    assert warned == [f"The learning rate is 0 from epoch 4 of 4 on: {cure}"]


def test_a_schedule_without_an_end_of_its_own_may_be_0_too(warned: list[str]):
    schedule = schedules.PiecewiseConstantDecay([100], [0.1, 0.0])
    warn_of_schedule(keras.optimizers.SGD(schedule), num_epochs=4, steps_per_epoch=100)
    assert warned == ["The learning rate is 0 from epoch 3 of 4 on."]


def test_a_run_that_ends_long_before_its_schedule_is_named(warned: list[str]):
    schedule = schedules.CosineDecay(0.1, 1263)
    warn_of_schedule(keras.optimizers.Adam(schedule), num_epochs=3, steps_per_epoch=1)
    cure = "bind CosineDecay.decay_steps to 3, the updates of the run."
    assert warned == [f"The schedule of the learning rate has 1263 steps, and the run takes 3: {cure}"]


def test_accumulated_gradients_make_fewer_updates(warned: list[str]):
    optimizer = keras.optimizers.SGD(schedules.CosineDecay(0.1, 100), gradient_accumulation_steps=4)
    warn_of_schedule(optimizer, num_epochs=4, steps_per_epoch=100)
    assert warned == []
