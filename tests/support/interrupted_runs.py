"""Runs of two epochs of six steps each, and what can come between their start and their end."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import pytest

from diffstride_hybrid.training.loop import TrainingLoop
from support.tiny_runs import assert_same_weights, json_of, load, rows_of, train

EPOCHS, STEPS = 2, 6

trained = partial(train, num_epochs=EPOCHS, steps_per_epoch=STEPS, steps_per_execution=1)

INDEX, DATA = "ckpt-{}-1.index", "ckpt-{}-1.data-00000-of-00001"
"""The files of a backup, by its step."""

TIMES = {"seconds", "images_per_second", "training_seconds"}


def assert_same_run(folder: Path, expected: Path, eager: bool = True) -> None:
    """Compares all files of two runs to the bit, except for times."""
    uncompared = TIMES | ({"retraces"} if eager else set())  # If steps run eagerly, each execution counts as a trace.

    def untimed(row: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in row.items() if name not in uncompared}

    for name in ("final.keras", "best.keras"):
        assert_same_weights(load(folder, name), load(expected, name))
    for name in ("metrics.csv", "strides.csv"):
        assert [untimed(row) for row in rows_of(folder / name)] == [untimed(row) for row in rows_of(expected / name)]
    assert untimed(json_of(folder / "summary.json")) == untimed(json_of(expected / "summary.json"))
    assert not list(folder.rglob(".partial*"))


class At(keras.callbacks.Callback):
    """Does something once, after a step counted over all epochs."""

    def __init__(self, step: int, action: Callable[[], None]):
        super().__init__()
        self._step = step
        self._action = action
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._epoch * self.params["steps"] + batch + 1 == self._step:
            self._action()


class Fault(Exception):
    """Ends a run in these tests."""


def fail() -> None:
    raise Fault


def failing_once(monkeypatch: pytest.MonkeyPatch, step: int) -> list[int]:
    """Lets a training step fail at its first try. Returns a list that is empty from then on."""
    train_steps, failures = TrainingLoop.train_steps, [step]

    def failing(loop: TrainingLoop, count: int) -> bool:
        if loop._batches.next_step in failures:
            failures.clear()
            loop.finite_steps = 0
            return False
        return train_steps(loop, count)

    monkeypatch.setattr(TrainingLoop, "train_steps", failing)
    return failures


def stopped_at(step: int, folder: Path, **options: Any) -> None:
    """Trains until the run fails after a step."""
    with pytest.raises(Fault):
        trained(folder, callbacks=[At(step, fail)], **options)


def backups_in(folder: Path) -> list[int]:
    """The steps of the backups of a run."""
    return sorted(int(path.stem.split("-")[1]) for path in (folder / "backup").glob("ckpt-*.index"))
