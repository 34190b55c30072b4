"""A warning for learning rates that end before the run, or long after it."""

from __future__ import annotations

import keras
from absl import logging

_ENDS = (keras.optimizers.schedules.CosineDecay, keras.optimizers.schedules.PolynomialDecay)
"""Schedules that have an end, `decay_steps` after their beginning or their warmup."""

_HARDLY = 1e-6
"""A share of the greatest rate that trains nothing."""


def warn_of_schedule(optimizer: keras.optimizers.Optimizer, num_epochs: int, steps_per_epoch: int) -> None:
    """Warns if the schedule of the learning rate does not fit the run.

    That is so if the rate is 0 in whole epochs at the end, which train nothing, or if the run ends where the schedule
    still has a fifth of its steps to go.

    Args:
        optimizer: of the run.
        num_epochs: the epochs of the run.
        steps_per_epoch: the training steps in each.

    Example:
        >>> from diffstride_hybrid.training.schedule_check import warn_of_schedule
        >>> schedule = keras.optimizers.schedules.CosineDecay(0.1, decay_steps=300)
        >>> warn_of_schedule(keras.optimizers.SGD(schedule), num_epochs=3, steps_per_epoch=100)  # It fits.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    schedule = optimizer._learning_rate
    if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        return
    updates = steps_per_epoch / (optimizer.gradient_accumulation_steps or 1)
    total = int(num_epochs * updates)

    def rate(epoch: int) -> float:
        steps = (int((epoch + part) * updates) for part in (0.0, 0.5))  # A cyclic rate may be 0 at one of them.
        return max(float(schedule(keras.ops.cast(step, "int64"))) for step in steps)

    has_end = isinstance(schedule, _ENDS) and not getattr(schedule, "cycle", False)
    cure = f": bind {type(schedule).__name__}.decay_steps to {total}, the updates of the run" if has_end else ""
    if rate(num_epochs - 1) <= _HARDLY * max(rate(epoch) for epoch in {0, num_epochs // 2}):
        rates = [rate(epoch) for epoch in range(num_epochs)]
        first = next(epoch for epoch, each in enumerate(rates) if max(rates[epoch:]) <= _HARDLY * max(rates))
        logging.warning("The learning rate is 0 from epoch %d of %d on%s.", first + 1, num_epochs, cure)
    elif has_end and 0.8 * (last := schedule.decay_steps + (getattr(schedule, "warmup_steps", 0) or 0)) > total:
        logging.warning("The schedule of the learning rate has %d steps, and the run takes %d%s.", last, total, cure)
