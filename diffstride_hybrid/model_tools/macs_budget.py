"""`MacsBudget`: a callback that brings a model to a number of MACs while it trains, and keeps it there."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

from diffstride_hybrid.backends import current
from diffstride_hybrid.common.arguments import validated_whole
from diffstride_hybrid.model_tools.cost_model import CostModel, Strides, cost_record, cropping_layers
from diffstride_hybrid.model_tools.crop_refresh import HYSTERESIS, refresh_crops
from diffstride_hybrid.model_tools.macs import macs
from diffstride_hybrid.model_tools.settling import mean_ratio, settled, stepped, stride_limits

_ATTEMPTS = 4
"""How often the strides are settled anew if a count contradicts the prediction."""


class _Beginning(NamedTuple):
    """What was counted when training began: see the attributes of `MacsBudget` of the same names."""

    record: np.ndarray
    start: float
    goal: float
    ratios: list[float]


class MacsBudget(keras.callbacks.Callback):
    """A callback that brings the MACs of a model to a target while its strides are trained, and holds them there.

    From the beginning of training to the end of the epoch `epoch` the cost follows a schedule, linear in its logarithm.
    After each execution of training steps the strides take a step along the gradient of the MACs, beside the
    optimizer's own: the least change of their logarithms at which the cost, for maps of any fraction of a sample, is
    the scheduled one. Before the target epoch strides that are past the schedule are let be; afterwards the cost is
    held from both sides. The strides stay free to trade the cost among each other.

    The penalty of `regularize_strides` would be another direction. It falls mostly with the first stride, and there
    pools almost everything away: on Fashion-MNIST networks held to half and to 35 % of their MACs were 1.2 and 1.3
    points less accurate by it, over three seeds.

    Maps have whole sizes. So at the end of each epoch from the target epoch on, before validation, the strides are
    moved by as little as brings the model's true MACs within `tolerance` of the target. Static crops are set with them.

    In `fit`, give it before other callbacks. An `EarlyStopping` with `restore_best_weights` brings back the strides of
    an earlier epoch too, so its `start_from_epoch` must be at least `epoch - 1`. `training.run.train` has the arguments
    `macs_budget` and `macs_budget_epoch` in its place.

    Args:
        target: at most 1, a share of the MACs that the model has at the initial strides in the constructors of its
            layers. Above 1, a number of MACs for one image, as `macs(model).macs` counts them.
        epoch: number of epochs after which the target is reached. If None, half of the epochs, at least 1.
        tolerance: by what share of the target the MACs may differ from it.
        input_shape: as for `macs`.

    Attributes:
        rest_epochs: number of first epochs in which the budget rests.

    Raises:
        ValueError: an argument is out of range; or, when training begins, the model has no stride to train, the target
            cannot be reached, or the epochs do not fit.

    Example:
        >>> model = keras.Sequential([keras.Input((32, 32, 1)), DiffStride(2.0), keras.layers.Conv2D(2, 3)])
        >>> model.compile("sgd", "mse")
        >>> images, maps = np.zeros([4, 32, 32, 1]), np.zeros([4, 1, 1, 2])
        >>> _ = model.fit(images, maps, epochs=2, callbacks=[MacsBudget(0.5)], verbose=0)
        >>> abs(macs(model).macs / (0.5 * 22 * 22 * 9 * 2) - 1) < 0.03
        True
    """

    def __init__(self, target: float, epoch: int | None = None, tolerance: float = 0.03, input_shape: Any = None):
        super().__init__()
        self.rest_epochs = 0
        self._target = validated_target("target", target)
        self._target_epoch = None if epoch is None else validated_whole("epoch", epoch, least=1)
        if not _is_number(tolerance) or not 0 < tolerance < 1:
            raise ValueError(f"tolerance must be a number above 0 and below 1, got {tolerance!r}.")
        self._tolerance = float(tolerance)
        self._input_shape = input_shape
        self._beginning: _Beginning | None = None
        self._costs: CostModel | None = None
        # A tuple, which backups leave out: a run that rolls back to the end of an epoch is in the next one already.
        self._epoch: tuple[int] = (0,)
        self._forget()

    def _forget(self) -> None:
        """Resets what a backup keeps: numbers and arrays. A run that resumes gets them back after `on_train_begin`."""
        self._record: np.ndarray | None = None  # From `cost_record`, at the beginning.
        self._start: float | None = None  # MACs at the beginning.
        self._goal: float | None = None  # MACs at the end of the target epoch.
        self._ratios: list[float] | None = None  # MACs for one of `CostModel.smooth`, at the beginning and the target.
        self._scale = 1.0  # MACs for one of `CostModel.whole`.
        self._first_epoch = self._ended_epoch = -1
        self._warned = False

    @property
    def goal(self) -> int:
        """The target in MACs for one image, from the beginning of training on."""
        return round(self._begun("_goal"))

    def macs_target(self, epochs: int) -> int:
        """The scheduled MACs for one image, from the beginning of training on.

        Args:
            epochs: number of epochs done.
        """
        return round(self._scheduled(epochs))

    @property
    def last_epoch(self) -> int:
        """The number of epochs after which the target is reached, from the beginning of training on."""
        return self.last_epoch_of(self.params["epochs"])

    def last_epoch_of(self, epochs: int) -> int:
        """The number of epochs after which the target is reached.

        Args:
            epochs: of the training.
        """
        if self._target_epoch is not None:
            return self._target_epoch
        return max(1, epochs // 2, self.rest_epochs + 1)

    # --- Events ------------------------------------------------------------------------------------------------------

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._forget()
        layers = cropping_layers(self.model)
        if not any(layer.trainable for layer in layers):
            raise ValueError(
                f"A budget of MACs needs a DiffStride layer that crops and is trainable; {self.model.name} has "
                f"{'none that is trainable' if layers else 'none'}. Pool by DiffStride, or leave the budget out."
            )
        self._check_epochs()
        record = cost_record(self.model, self._input_shape)
        self._costs = costs = CostModel(layers, record)
        strides, limits = costs.strides(), stride_limits(costs)
        initial = [
            np.clip(np.float32(layer.initial_strides[: len(each)]), low, high)
            for layer, each, low, high in zip(costs.layers, strides, *stride_limits(costs, frozen=False))
        ]
        start, initial_cost = float(record[:, -1].sum()), costs.whole(initial)
        if not initial_cost:
            raise ValueError(
                f"{self.model.name} has no MACs that a budget could bound: give the classes of its layers a method "
                "macs(input_shape, output_shape), see `macs`."
            )
        goal = self._target * initial_cost if self._target <= 1 else self._target
        least, most = costs.whole(limits.most), costs.whole(limits.least)
        if not least <= round(goal) <= most:
            raise ValueError(
                f"A budget of {goal:,.0f} MACs cannot be reached: the strides of {self.model.name} give {least:,} to "
                f"{most:,} MACs for one image, {least / initial_cost:.3g} to {most / initial_cost:.3g} of those at the "
                "initial strides. Choose a target between them, or other limits of the strides."
            )
        ratio = start / costs.smooth(strides)
        at_goal = stepped(costs, strides, limits, goal / ratio)
        self._beginning = _Beginning(record, start, goal, [ratio, mean_ratio(costs, at_goal, limits)])

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._epoch = (epoch,)
        if self._record is None:
            self._record, self._start, self._goal, self._ratios = self._beginning
            self._first_epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        steps = self.params.get("steps")
        self._follow(self._epoch[0] + ((batch + 1) / steps if steps else 0.0))
        if steps and batch + 1 >= steps:
            self._end_epoch(self._epoch[0])

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self._ended_epoch != epoch:  # The number of steps was not known, or there were fewer.
            self._follow(epoch + 1)
            self._end_epoch(epoch)

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self.finish()

    def finish(self) -> None:
        """Settles the strides if they have changed since the last step, as moving averages of an optimizer do.

        A training that ends before the target epoch is left where it is, with a warning.
        """
        if self._ended_epoch + 1 >= self.last_epoch:
            self._settle()
        elif not self._warned:
            self._warned = True
            warnings.warn(
                f"Training ended after {self._ended_epoch + 1} epochs, and the budget of {self.goal:,} MACs is for the "
                f"end of epoch {self.last_epoch}: the model has {macs(self.model, self._input_shape).macs:,}. Set an "
                "earlier epoch.",
                stacklevel=2,
            )

    # --- The schedule ------------------------------------------------------------------------------------------------

    def _check_epochs(self) -> None:
        epochs = self.params["epochs"]
        if not self.rest_epochs < self.last_epoch <= epochs:
            raise ValueError(
                f"The epoch of a budget must be at least {self.rest_epochs + 1} and at most {epochs}, the epochs of "
                f"this training, got {self.last_epoch}"
                + (f": the strides rest for {self.rest_epochs}." if self.rest_epochs else ".")
            )

    def _begun(self, name: str) -> Any:
        """A number from the beginning of this training, or of the run that it resumes."""
        kept = getattr(self, name)
        return getattr(self._beginning, name[1:]) if kept is None else kept

    def _share_done(self, epochs: float) -> float:
        """How much of the schedule is over, from 0 to 1."""
        first = max(self._first_epoch, self.rest_epochs)
        return min(max((epochs - first) / (self.last_epoch - first), 0.0), 1.0) if self.last_epoch > first else 1.0

    def _scheduled(self, epochs: float) -> float:
        return _between(self._begun("_start"), self._begun("_goal"), self._share_done(epochs))

    # --- The steps ---------------------------------------------------------------------------------------------------

    @property
    def _model_costs(self) -> CostModel:
        if self._costs is None or not np.array_equal(self._costs.record, self._record):
            self._costs = CostModel(cropping_layers(self.model), self._record)
        return self._costs

    def _follow(self, epochs: float) -> None:
        """Takes a step to the scheduled cost."""
        if epochs <= self.rest_epochs:
            return
        current.bring_weights_back(self.model)
        costs = self._model_costs
        wanted = self._scheduled(epochs) / _between(*self._ratios, self._share_done(epochs))
        strides = costs.strides()
        excess = costs.smooth(strides) - wanted
        is_past = excess <= 0 if self._goal <= self._start else excess >= 0
        if excess and not (is_past and epochs < self.last_epoch):
            self._assign(stepped(costs, strides, stride_limits(costs), wanted))

    def _end_epoch(self, epoch: int) -> None:
        self._ended_epoch = epoch
        if epoch + 1 >= self.last_epoch:
            self._settle()

    def _settle(self) -> None:
        """Brings the true MACs within the tolerance, or as near to it as whole sizes allow."""
        current.bring_weights_back(self.model)
        costs, goal = self._model_costs, self._goal
        if self._are_static:
            refresh_crops(self.model, self._input_shape, HYSTERESIS)
        strides, count = costs.strides(), macs(self.model, self._input_shape).macs
        # A crop that is held may have another size than the strides ask for.
        if self._is_near(count) and self._is_near(self._scale * costs.whole(strides)):
            return
        limits, tried = stride_limits(costs), []
        for _ in range(_ATTEMPTS):
            strides = settled(costs, strides, limits, goal / self._scale, self._tolerance)
            count = self._counted_at(strides)
            tried.append((abs(count / goal - 1), count, strides))
            if self._is_near(count):
                break
            # Other layers may follow the strides in another way than was taken for granted, so measure it here.
            self._scale = count / costs.whole(strides)
            strides = stepped(costs, strides, limits, goal * costs.smooth(strides) / count)
        if not self._is_near(count):
            _, count, strides = min(tried, key=lambda each: each[0])
            self._counted_at(strides)
            self._warn(count)
        self._ratios = [goal / costs.smooth(strides)] * 2  # The steps of the next epochs hold this place.

    def _counted_at(self, strides: Strides) -> int:
        self._assign(strides)
        if self._are_static:
            refresh_crops(self.model, self._input_shape)
        return macs(self.model, self._input_shape).macs

    def _assign(self, strides: Strides) -> None:
        for layer, values in zip(self._model_costs.layers, strides):
            layer.strides.assign(values)

    @property
    def _are_static(self) -> bool:
        return any(layer.crop_is_static for layer in self._model_costs.layers)

    def _is_near(self, count: float) -> bool:
        return abs(count / self._goal - 1) <= self._tolerance

    def _warn(self, count: int) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"Training reached {count:,} MACs in place of the budget of {self.goal:,} "
                f"({count / self._goal - 1:+.1%}): maps have whole sizes, and none near the present ones is within the "
                "tolerance. Give another target or a greater tolerance.",
                stacklevel=4,
            )


def _between(first: float, last: float, share: float) -> float:
    """Goes from one number to another one in equal factors; at the ends it gives them to the bit."""
    return last if share >= 1 else first * (last / first) ** share


def validated_target(name: str, target: Any) -> float:
    """Checks a target of MACs.

    Args:
        name: of the argument, for the message.
        target: the value that a user gave.

    Returns:
        A Python float.

    Raises:
        ValueError: it is not a finite number above 0.
    """
    if not _is_number(target) or not 0 < target < math.inf:
        raise ValueError(
            f"{name} must be a finite number above 0, got {target!r}: at most 1 for a share of the MACs at the initial "
            "strides, above 1 for MACs of one image."
        )
    return float(target)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
