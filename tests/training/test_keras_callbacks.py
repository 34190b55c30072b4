"""Keras's own callbacks in a run: they act, and a run that was stopped in between ends as one left alone."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from support.damage import truncate
from support.interrupted_runs import DATA, TIMES, At, Fault, assert_same_run, fail, failing_once
from support.tiny_runs import json_of, load, rows_of, train

from diffstride_hybrid.model_tools.macs_budget import MacsBudget
from diffstride_hybrid.training.loop import TrainingLoop

Make = Callable[[Path], list[keras.callbacks.Callback]]

pytestmark = pytest.mark.usefixtures("uncompiled")

plain_sgd = functools.partial(keras.optimizers.SGD, 0.1, momentum=0.9)

run = functools.partial(train, num_epochs=4, steps_per_epoch=3, steps_per_execution=1, optimizer_cls=plain_sgd)


def test_early_stopping_stops(tmp_path: Path):
    """Keras's callback never stops after the first epoch."""
    stop = keras.callbacks.EarlyStopping("val_loss", min_delta=10.0, patience=0)
    summary = run(tmp_path, callbacks=[stop])
    assert (summary["epochs"], summary["steps"]) == (2, 6)
    assert len(rows_of(tmp_path / "metrics.csv")) == 2
    assert json_of(tmp_path / "summary.json")["epochs"] == 2


@pytest.mark.slow
def test_early_stopping_brings_back_the_best_weights(tmp_path: Path):
    """With a rate that grows, the first epoch is the best one."""
    rates = keras.callbacks.LearningRateScheduler(lambda epoch: [0.01, 30.0, 30.0, 30.0][epoch])
    stop = keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    run(tmp_path / "stopped", callbacks=[rates, stop])
    run(tmp_path / "first", num_epochs=1, callbacks=[keras.callbacks.LearningRateScheduler(lambda epoch: 0.01)])
    losses = [float(row["val_loss"]) for row in rows_of(tmp_path / "stopped/metrics.csv")]
    assert losses.index(min(losses)) == 0
    for weight, other in zip(load(tmp_path / "stopped").weights, load(tmp_path / "first").weights, strict=True):
        np.testing.assert_array_equal(weight, other)


def test_rates_are_set(tmp_path: Path):
    run(tmp_path, callbacks=[keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)])
    rates = [float(row["learning_rate"]) for row in rows_of(tmp_path / "metrics.csv")]
    assert rates == pytest.approx([0.05, 0.025, 0.0125, 0.00625])


halved = functools.partial(keras.callbacks.LearningRateScheduler, lambda epoch, rate: rate / 2)


@pytest.mark.parametrize("step", [4, pytest.param(5, marks=pytest.mark.slow)])
def test_a_rate_that_is_set_relative_to_the_last_is_set_once_in_an_epoch(step: int, tmp_path: Path):
    """The epoch that a stopped run goes on with has begun before."""
    options = {"num_epochs": 2, "backup_every": 1}
    run(tmp_path / "alone", callbacks=[halved()], **options)
    with pytest.raises(Fault):
        run(tmp_path / "stopped", callbacks=[halved(), At(step, fail)], **options)
    run(tmp_path / "stopped", callbacks=[halved()], **options)
    assert_same_run(tmp_path / "stopped", tmp_path / "alone")


@pytest.mark.parametrize("step", [0, 3])
def test_a_run_that_rolls_back_to_the_beginning_of_an_epoch_sets_its_rate(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    failing_once(monkeypatch, step)
    rates = keras.callbacks.LearningRateScheduler(lambda epoch: [0.01, 0.02][epoch])
    run(tmp_path, num_epochs=2, callbacks=[rates], on_not_finite="roll_back")
    assert [float(row["learning_rate"]) for row in rows_of(tmp_path / "metrics.csv")] == pytest.approx([0.01, 0.02])


def test_a_run_does_not_roll_back_past_its_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The last backup, that of the end of the second epoch, is damaged while the third one is trained."""
    failing_once(monkeypatch, 7)

    def damage() -> None:
        truncate(tmp_path / "backup" / DATA.format(6))

    with pytest.raises(
        OSError, match=r"is not finite, .*The last backup in .* is damaged: start the same command again"
    ):
        run(tmp_path, callbacks=[At(7, damage)], on_not_finite="roll_back")
    run(tmp_path, on_not_finite="roll_back")
    assert [row["epoch"] for row in rows_of(tmp_path / "metrics.csv")] == ["1", "2", "3", "4"]


def test_the_weights_that_a_callback_brings_back_are_kept_beside_moving_averages(tmp_path: Path):
    averaging = functools.partial(keras.optimizers.SGD, 0.1, use_ema=True)
    stop = keras.callbacks.EarlyStopping("val_loss", min_delta=10.0, patience=1, restore_best_weights=True)
    run(tmp_path, optimizer_cls=averaging, callbacks=[stop])
    for weight, best in zip(load(tmp_path).get_weights(), stop.best_weights, strict=True):
        np.testing.assert_array_equal(weight, best)


def test_weights_from_before_a_budget_was_met_are_not_brought_back(tmp_path: Path):
    def stop(first: int) -> keras.callbacks.EarlyStopping:
        return keras.callbacks.EarlyStopping("val_loss", restore_best_weights=True, start_from_epoch=first)

    message = r"EarlyStopping with restore_best_weights = True.* start_from_epoch to at least 2, got 1"
    for options in ({"macs_budget": 0.5, "macs_budget_epoch": 3}, {}):
        own = [] if options else [MacsBudget(0.5, 3, input_shape=(16, 16, 1))]
        with pytest.raises(ValueError, match=message):
            run(tmp_path, callbacks=[*own, stop(1), At(1, fail)], **options)
        with pytest.raises(Fault):
            run(tmp_path, callbacks=[*own, stop(2), At(1, fail)], **options)


def everything(folder: Path) -> list[keras.callbacks.Callback]:
    """All that keep a state. The loss never falls by 10, so the rate falls after every epoch but the first."""
    return [
        keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=10.0),
        keras.callbacks.EarlyStopping("loss", patience=2, min_delta=10.0, restore_best_weights=True),
        keras.callbacks.CSVLogger(folder / "log.csv"),
        keras.callbacks.TensorBoard(folder / "board"),
        keras.callbacks.ModelCheckpoint(folder / "best_{epoch}.keras", "loss", save_best_only=True),
    ]


@pytest.mark.parametrize("step", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_a_stopped_run_ends_as_one_left_alone(step: int, tmp_path: Path):
    runs = []
    for name in ("alone", "stopped"):
        folder = tmp_path / name
        if name == "stopped":
            with pytest.raises(Fault):
                run(folder, num_epochs=6, callbacks=[*everything(folder), At(step, fail)])
        runs.append(run(folder, num_epochs=6, callbacks=everything(folder)))
    assert_same_run(tmp_path / "stopped", tmp_path / "alone")
    assert runs[0]["epochs"] == runs[1]["epochs"] == 3
    logs = [
        [
            {name: value for name, value in row.items() if name not in TIMES}
            for row in rows_of(tmp_path / name / "log.csv")
        ]
        for name in ("stopped", "alone")
    ]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 3
    rates = [float(row["learning_rate"]) for row in rows_of(tmp_path / "alone/metrics.csv")]
    assert rates[-1] < rates[0]
    assert list((tmp_path / "stopped/board").rglob("*tfevents*"))
    assert (tmp_path / "stopped/best_1.keras").exists()


class Counts(keras.callbacks.Callback):
    """Counts batches, and keeps the count beside an array that does not change."""

    def __init__(self):
        super().__init__()
        self.batches = 0
        self.seen: list[int] = []
        self.fixed = np.arange(3)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1
        self.seen.append(batch)


@pytest.mark.parametrize("backup_every", [None, 2])
def test_a_run_that_rolls_back_takes_its_callbacks_along(
    backup_every: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """To the state in which it began, or to that of a backup within the epoch. The failing step comes once."""
    train_steps, calls = TrainingLoop.train_steps, []

    def fails_once(loop: TrainingLoop, count: int) -> bool:
        calls.append(count)
        return len(calls) != 4 and train_steps(loop, count)

    monkeypatch.setattr(TrainingLoop, "train_steps", fails_once)
    counts = Counts()
    fixed = counts.fixed
    run(
        tmp_path,
        num_epochs=1,
        steps_per_epoch=5,
        callbacks=[counts],
        on_not_finite="roll_back",
        backup_every=backup_every,
    )
    assert counts.batches == len(counts.seen) == 5
    assert counts.seen == [0, 1, 2, 3, 4]
    assert counts.fixed is fixed


class WaitsForEvaluation(keras.callbacks.Callback):
    def on_test_begin(self, logs: Any = None) -> None:
        raise AssertionError


@pytest.mark.parametrize(
    ("callback", "culprit"),
    [
        (lambda: keras.callbacks.BackupAndRestore("folder"), "cannot have BackupAndRestore: the run keeps backups"),
        (keras.callbacks.TerminateOnNaN, "cannot have TerminateOnNaN: the run checks every step"),
        (keras.callbacks.SwapEMAWeights, "cannot have SwapEMAWeights: bind use_ema"),
        (WaitsForEvaluation, "cannot have WaitsForEvaluation: a run never calls its on_test_begin"),
        (lambda: keras.callbacks.EarlyStopping, "must be Keras callbacks, such as"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(tmp_path: Path, callback: Callable[[], Any], culprit: str):
    with pytest.raises((ValueError, TypeError), match=culprit):
        run(tmp_path, callbacks=[callback(), At(1, fail)])


def test_a_callback_of_ones_own_keeps_what_has_changed_and_nothing_else(tmp_path: Path):
    class Counts(keras.callbacks.Callback):
        def __init__(self, name: str):
            super().__init__()
            self._name, self.epochs, self.weights = name, 0, []

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.epochs += 1
            self.weights.append(self.model.get_weights()[0])

    with pytest.raises(Fault):
        run(tmp_path, callbacks=[Counts("old"), At(8, fail)])
    counts = Counts("new")
    run(tmp_path, callbacks=[counts])
    assert (counts._name, counts.epochs, len(counts.weights)) == ("new", 4, 4)
    assert counts.weights[0].shape == counts.weights[3].shape


class Begins(keras.callbacks.Callback):
    """Changes the network and the rate before training, and keeps the rate that it found."""

    def on_train_begin(self, logs: Any = None) -> None:
        self.base = float(self.model.optimizer.learning_rate)
        self.model.optimizer.learning_rate = self.base / 100
        self.model.set_weights([weight * np.array(1.25, weight.dtype) for weight in self.model.get_weights()])

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = self.base * (epoch + 1) / 10


@pytest.mark.parametrize("backup_every", [None, 1], ids=["between epochs", "within"])
def test_what_a_callback_does_at_the_beginning_is_done_once(backup_every: int | None, tmp_path: Path):
    options = {"num_epochs": 3, "backup_every": backup_every}
    run(tmp_path / "alone", callbacks=[Begins()], **options)
    with pytest.raises(Fault):
        run(tmp_path / "stopped", callbacks=[Begins(), At(5, fail)], **options)
    run(tmp_path / "stopped", callbacks=[Begins()], **options)
    assert_same_run(tmp_path / "stopped", tmp_path / "alone")
    rates = [float(row["learning_rate"]) for row in rows_of(tmp_path / "alone/metrics.csv")]
    assert rates == pytest.approx([0.001, 0.01, 0.02])


def test_a_log_that_several_runs_append_to_keeps_the_rows_of_the_others(tmp_path: Path):
    def log() -> keras.callbacks.Callback:
        return keras.callbacks.CSVLogger(tmp_path / "log.csv", append=True)

    run(tmp_path / "first", callbacks=[log()])
    with pytest.raises(Fault):
        run(tmp_path / "second", callbacks=[log(), At(7, fail)])
    run(tmp_path / "second", callbacks=[log()])
    assert [row["epoch"] for row in rows_of(tmp_path / "log.csv")] == ["0", "1", "2", "3"] * 2


def test_a_rate_that_follows_a_schedule_is_not_set(tmp_path: Path):
    schedule = functools.partial(keras.optimizers.SGD, keras.optimizers.schedules.CosineDecay(0.1, 10))
    with pytest.raises(ValueError, match="cannot have ReduceLROnPlateau: the optimizer's learning rate follows Cosine"):
        run(tmp_path, optimizer_cls=schedule, callbacks=[keras.callbacks.ReduceLROnPlateau()])


def test_gin_binds_callbacks(tmp_path: Path):
    from support.commands import options_of, run_here

    bindings = {
        "train.train.num_epochs": 4,
        "train.train.callbacks": "[@tf.keras.callbacks.EarlyStopping()]",
        "tf.keras.callbacks.EarlyStopping.min_delta": 100.0,
        "tf.keras.callbacks.EarlyStopping.monitor": "'val_loss'",
    }
    result = run_here("train", "--gin_file=base", f"--workdir={tmp_path / 'run'}", *options_of(bindings))
    assert result.code == 0, result.err
    assert "after 2 epochs" in result.out


@pytest.mark.slow
def test_a_signal_during_the_last_evaluation_is_heeded_and_the_run_ends_there(tmp_path: Path, monkeypatch: Any):
    import os
    import signal

    from diffstride_hybrid.common.signals import Stopped
    from diffstride_hybrid.training.loop import TrainingLoop

    evaluate = TrainingLoop.evaluate

    def interrupted(loop: TrainingLoop, split: str, *arguments: Any) -> dict[str, float]:
        if split == "test":
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(loop, split, *arguments)

    monkeypatch.setattr(TrainingLoop, "evaluate", interrupted)
    with pytest.raises(Stopped, match="stopped by SIGTERM after 12 steps"):
        run(tmp_path / "stopped")
    assert not (tmp_path / "stopped/summary.json").exists()
    monkeypatch.setattr(TrainingLoop, "evaluate", evaluate)
    run(tmp_path / "stopped")
    run(tmp_path / "alone")
    assert_same_run(tmp_path / "stopped", tmp_path / "alone")
