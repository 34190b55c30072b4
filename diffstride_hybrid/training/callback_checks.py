"""Checks that Keras callbacks fit into a run."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

import keras

from diffstride_hybrid.common import distribution
from diffstride_hybrid.model_tools.macs_budget import MacsBudget

_REFUSED = {
    "BackupAndRestore": "the run keeps backups of its own and resumes by itself",
    "ProgbarLogger": "the run shows its progress by itself",
    "SwapEMAWeights": "bind use_ema of the optimizer: the averages are evaluated and saved at the end",
    "TerminateOnNaN": "the run checks every step by itself, see train.train.on_not_finite",
}
"""Callbacks of Keras that have no effect here, or a harmful one, and what to do in their place."""

_EVENTS_THAT_NEVER_COME = [
    f"on_{kind}{batch}_{end}" for kind in ("test", "predict") for batch in ("", "_batch") for end in ("begin", "end")
]

WRITERS = (keras.callbacks.CSVLogger, keras.callbacks.ModelCheckpoint, keras.callbacks.TensorBoard)
"""Callbacks of Keras that write files and do nothing else. Of several workers, one runs them."""

_MONITORING = (keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau, keras.callbacks.ModelCheckpoint)
"""Callbacks of Keras with a `monitor` and a `mode`."""


def logged_names(validates: bool) -> set[str]:
    """The names of what a run logs at the end of an epoch.

    Args:
        validates: whether the run has validation images.

    Returns:
        Names such as 'val_loss'.
    """
    measured = {"loss", "accuracy"}
    validated = {f"val_{name}" for name in measured} if validates else set()
    return {*measured, *validated, "step", "learning_rate", "seconds", "images_per_second"}


def check_callbacks(
    callbacks: Sequence[Any], optimizer: keras.optimizers.Optimizer, epochs: int, validates: bool
) -> None:
    """Checks that callbacks can work in a run.

    Args:
        callbacks: of the user.
        optimizer: of the run.
        epochs: of the run.
        validates: whether the run has validation images.

    Raises:
        TypeError: one of them is no Keras callback, as an instance.
        ValueError: one is of no use in a run, waits for events that never come, sets a learning rate that follows a
            schedule, may bring back weights from before a budget was met, or monitors what the run does not log.
    """
    logged: set[str] | None = logged_names(validates)
    met = max((each.last_epoch_of(epochs) for each in callbacks if isinstance(each, MacsBudget)), default=1)
    for callback in callbacks:
        name = type(callback).__name__
        if not isinstance(callback, keras.callbacks.Callback):
            raise TypeError(
                f"train.train.callbacks must be Keras callbacks, such as @EarlyStopping(), got {callback!r}."
            )
        reason = next((_REFUSED[each.__name__] for each in type(callback).__mro__ if each.__name__ in _REFUSED), None)
        if reason is not None:
            raise ValueError(f"train.train.callbacks cannot have {name}: {reason}.")
        waits = [
            event
            for event in _EVENTS_THAT_NEVER_COME
            if getattr(type(callback), event) is not getattr(keras.callbacks.Callback, event)
            and not type(callback).__module__.startswith("keras.")
        ]
        if waits:
            raise ValueError(f"train.train.callbacks cannot have {name}: a run never calls its {', '.join(waits)}.")
        sets_rate = isinstance(callback, (keras.callbacks.ReduceLROnPlateau, keras.callbacks.LearningRateScheduler))
        inner = distribution.without_loss_scaling(optimizer)
        if sets_rate and not isinstance(inner._learning_rate, keras.Variable):
            rate = inner._learning_rate
            raise ValueError(
                f"train.train.callbacks cannot have {name}: the optimizer's learning rate follows "
                f"{getattr(rate, '__name__', type(rate).__name__)}. Give it a number."
            )
        brings_back = isinstance(callback, keras.callbacks.EarlyStopping) and callback.restore_best_weights
        if brings_back and callback.start_from_epoch < met - 1:
            raise ValueError(
                f"train.train.callbacks cannot have {name} with restore_best_weights = True: the budget of MACs is met "
                f"at the end of epoch {met}, and it may bring back weights from before. Set its start_from_epoch to at "
                f"least {met - 1}, got {callback.start_from_epoch}."
            )
        if _runs_users_code(callback):
            logged = None  # It may add to the logs that the callbacks after it get.
        elif logged is not None:
            _check_names(callback, logged)
        _check_direction(callback)


def _runs_users_code(callback: keras.callbacks.Callback) -> bool:
    if isinstance(callback, keras.callbacks.LambdaCallback):
        return True
    return not type(callback).__module__.startswith("keras.") and not isinstance(callback, MacsBudget)


def _check_names(callback: keras.callbacks.Callback, logged: Set[str]) -> None:
    """Refuses a callback that monitors, or names a file after, what the logs of an epoch do not have."""
    name, allowed = type(callback).__name__, ", ".join(sorted(logged))
    if _monitors(callback) and callback.monitor not in logged:
        this_run = "this run" if "val_loss" in logged else "this run, without validation images,"
        raise ValueError(
            f"train.train.callbacks cannot have {name} with monitor = {callback.monitor!r}: {this_run} logs {allowed}."
        )
    if isinstance(callback, keras.callbacks.ModelCheckpoint):
        of_epochs = callback.save_freq == "epoch"
        if callback.save_best_only and not of_epochs:
            raise ValueError(
                f"train.train.callbacks cannot have {name} with save_best_only = True and save_freq = "
                f"{callback.save_freq}: a run logs nothing at a batch. Leave save_freq at 'epoch'."
            )
        names = {"epoch", *logged} if of_epochs else {"epoch", "batch"}
        try:
            callback.filepath.format(**dict.fromkeys(names, 1))
        except (LookupError, ValueError) as error:
            raise ValueError(
                f"train.train.callbacks cannot have {name} with filepath = {callback.filepath!r}: its placeholders may "
                f"be {', '.join(sorted(names))}."
            ) from error


def _check_direction(callback: keras.callbacks.Callback) -> None:
    """Settles whether a monitored figure should rise or fall. Keras would ask the metrics of a compiled model."""
    # In Keras 3.10 `ModelCheckpoint` has no mode, and settles the direction by itself.
    if not isinstance(callback, _MONITORING) or getattr(callback, "mode", None) != "auto":
        return
    figure = callback.monitor.removeprefix("val_")
    if figure == "accuracy":
        callback.mode = "max"
    elif figure != "loss":
        name = type(callback).__name__
        raise ValueError(
            f"train.train.callbacks cannot have {name} with monitor = {callback.monitor!r} and mode = 'auto': give "
            "mode = 'min' or 'max'."
        )


def _monitors(callback: keras.callbacks.Callback) -> bool:
    """Whether a callback of Keras acts on what it monitors."""
    if isinstance(callback, keras.callbacks.ModelCheckpoint):
        return callback.save_best_only
    return isinstance(callback, _MONITORING)
