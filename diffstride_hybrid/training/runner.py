"""One sitting of a run: its epochs and backups, and how it resumes, stops and rolls back."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Iterator

import keras
import tensorflow as tf
import tqdm
from absl import logging

from diffstride_hybrid.common import distribution, signals
from diffstride_hybrid.common.errors import one_line
from diffstride_hybrid.runs.backups import Backups
from diffstride_hybrid.runs.folder import BEST_MODEL, RunFolder
from diffstride_hybrid.training import not_finite
from diffstride_hybrid.training.listeners import Listeners
from diffstride_hybrid.training.loop import TrainingLoop
from diffstride_hybrid.training.progress import Progress

MOST_LEFT_OUT = 10
"""The number of batches that a run leaves out because their steps are not finite. It gives up at the next one."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long a run trains, and what it does between its steps.

    Attributes:
        num_epochs: the epochs of the run.
        steps_per_epoch: training steps in an epoch.
        steps_per_execution: training steps in one call of the compiled loop.
        backup_every: training steps between two backups within an epoch; None for backups after each epoch only.
        rolls_back: whether the run goes back to its last backup after a step that is not finite. If not, it stops.
        best_from: number of the epoch, counted from 1, from which on the best model is chosen. Until then, the best
            model of the epochs before it is kept; afterwards, that model no longer counts.
    """

    num_epochs: int
    steps_per_epoch: int
    steps_per_execution: int
    backup_every: int | None
    rolls_back: bool
    best_from: int = 1


class Runner:
    """One sitting of a run: from the start of a process to the end of the run, or until something stops it.

    Args:
        loop: the steps, and the state that they change.
        folder: of the run.
        schedule: epochs, steps and backups.
        request: notes whether a signal asks the process to end.

    Attributes:
        progress: how far the run has come.
    """

    def __init__(self, loop: TrainingLoop, folder: RunFolder, schedule: Schedule, request: signals.StopRequest):
        self.progress = Progress(loop)
        self._loop = loop
        self._folder = folder
        self._schedule = schedule
        self._request = request
        self._listeners: Listeners | None = None
        self._has_backup = False
        # A list of all variables: `tf.train.Checkpoint` does not find all variables of nested Keras models by itself.
        self._state = [*loop.model.variables, *loop.optimizer.variables]
        checkpoint = tf.train.Checkpoint(variables=[variable.value for variable in self._state], progress=self.progress)
        self._backups = Backups(folder.backup, checkpoint)

    @property
    def step(self) -> int:
        """The next step, counted over all epochs."""
        return self.progress.epochs_done * self._schedule.steps_per_epoch + self.progress.steps_done

    def resume(self) -> None:
        """Goes on from the last backup, if there is one.

        Raises:
            ValueError: the backup is of another model or optimizer, or the workers found different backups.
            OSError: every backup is damaged, or a file of the run is.
        """
        if self._folder.writes:
            self._folder.tidy()
            self._backups.tidy()
        restored = self._backups.restore()
        if self._folder.writes:
            for name in ("metrics.csv", "strides.csv"):
                self._folder.check_epoch_rows(name, self.progress.epochs_done)
        self._has_backup = restored is not None
        if self._has_backup:
            within = f" and {self.progress.steps_done:,} steps" if self.progress.steps_done else ""
            self._tell(f"resuming {self._folder.path} after epoch {self.progress.epochs_done}{within}")
        _check_workers_agree(self._loop, self.step)
        if self.step:
            self._loop.start(self.step)

    def begin(self, listeners: Listeners) -> None:
        """Tells the callbacks that training begins or goes on. What they change then was changed when it began.

        Args:
            listeners: the callbacks of the run.
        """
        with self._state_kept() if self._has_backup else contextlib.nullcontext():
            listeners.begin(self.progress.epochs_done, self.progress.callbacks)
        self._listeners = listeners

    def train(self) -> None:
        """Trains the epochs that are left, unless a callback ends the run before. `begin` comes first.

        Raises:
            NotFiniteError: a step is not finite, and the run does not roll back, or has done so too often.
            Stopped: a signal asked the process to end. The state is on the disk.
            OSError: a file cannot be written.
        """
        progress, num_epochs, listeners = self.progress, self._schedule.num_epochs, self._listeners
        if self._schedule.rolls_back and not self._has_backup:
            self._save()  # The first epoch goes back to this one.
        progress.tick()
        # An epoch that has begun is ended, also if a callback asked to stop before the run was interrupted.
        while progress.epochs_done < num_epochs and (progress.steps_done or not listeners.stop):
            epoch = progress.epochs_done
            self._begin_epoch()
            self._train_epoch()
            logs = self._training_logs() | self._validate()
            listeners.on_epoch_end(epoch, logs)
            listeners.agree(self._loop.strategy)
            self._loop.metrics.reset()
            progress.epochs_done, progress.steps_done, progress.epoch_seconds = epoch + 1, 0, 0.0
            self._save()
            self._tell(_epoch_line(epoch + 1, num_epochs, logs))
            if progress.epochs_done < num_epochs and not listeners.stop:
                self._leave_if_asked(saved=True)

    def evaluate(self, split: str) -> dict[str, float]:
        """Loss and accuracy on a split. A signal that comes meanwhile ends the sitting; the next one evaluates again.

        Args:
            split: 'train', 'validation' or 'test'.

        Returns:
            `loss` and `accuracy`.

        Raises:
            Stopped: a signal asked the process to end. The state is on the disk.
        """
        leave = functools.partial(self._leave_if_asked, saved=True)
        return self._loop.evaluate(split, self._schedule.steps_per_execution, leave)

    def _begin_epoch(self) -> None:
        """Tells the callbacks that an epoch begins or goes on. What they change then was changed when it began."""
        progress = self.progress
        goes_on = progress.steps_done > 0
        with self._state_kept() if goes_on else contextlib.nullcontext():
            self._listeners.on_epoch_begin(progress.epochs_done)
        if goes_on:
            self._listeners.restore(progress.callbacks)

    @contextlib.contextmanager
    def _state_kept(self) -> Iterator[None]:
        """A context after which the state of the network and of the optimizer is as before."""
        state = [tf.convert_to_tensor(variable.value) for variable in self._state]
        yield
        for variable, value in zip(self._state, state, strict=True):
            variable.assign(value)

    def _train_epoch(self) -> None:
        progress, steps_per_epoch, listeners = self.progress, self._schedule.steps_per_epoch, self._listeners
        bar = tqdm.tqdm(
            total=steps_per_epoch,
            initial=progress.steps_done,
            desc=f"epoch {progress.epochs_done + 1}/{self._schedule.num_epochs}",
            unit="step",
            leave=False,
            disable=not (self._folder.writes and sys.stderr.isatty()),
        )
        with bar:
            while progress.steps_done < steps_per_epoch:
                began, first, step = time.perf_counter(), progress.steps_done, self.step
                count = min(self._schedule.steps_per_execution, steps_per_epoch - first)
                listeners.on_train_batch_begin(first)
                failed = self._train_steps(step, count)
                if failed is not None:
                    self._not_finite(failed)
                    bar.reset()
                    bar.update(progress.steps_done)
                    continue
                progress.steps_done += count
                progress.epoch_seconds += time.perf_counter() - began
                listeners.on_train_batch_end(progress.steps_done - 1)
                bar.update(count)
                self._leave_if_asked()
                if self._backup_is_due(step):
                    self._save()

    def _backup_is_due(self, before: int) -> bool:
        """Whether a backup within the epoch falls on the steps since `before`. The epoch's end has one anyway."""
        every = self._schedule.backup_every
        if every is None or self.progress.steps_done == self._schedule.steps_per_epoch:
            return False
        return self.step // every > before // every

    def _train_steps(self, step: int, count: int) -> int | None:
        """Trains some steps, without those to leave out.

        Returns:
            The first step that was not finite; None if all were finite.
        """
        last = step + count
        for left_out in (*(other for other in self.progress.left_out if step <= other < last), last):
            if left_out > step and not self._loop.train_steps(left_out - step):
                return step + self._loop.finite_steps
            if left_out < last:
                self._loop.leave_out_step()
            step = left_out + 1
        return None

    def _training_logs(self) -> dict[str, float]:
        loop, seconds = self._loop, self.progress.epoch_seconds
        return {
            **loop.metrics.values(),
            "step": int(keras.ops.convert_to_numpy(loop.optimizer.iterations)),
            "learning_rate": keras.ops.convert_to_numpy(loop.optimizer.learning_rate).item(),
            "seconds": round(seconds, 3),
            "images_per_second": round(self._schedule.steps_per_epoch * loop.datasets.images_per_step / seconds, 1),
        }

    def _validate(self) -> dict[str, float]:
        """Evaluates on the validation images, if there are any, and saves the model if it is the best so far."""
        if not self._loop.datasets.splits["validation"].size:
            return {}
        results = self._loop.evaluate("validation", self._schedule.steps_per_execution, self._leave_if_asked)
        best = self.progress.best_accuracy
        if self.progress.epochs_done + 1 == self._schedule.best_from:
            best = None
        if best is None or results["accuracy"] > best:
            self.progress.best_accuracy = results["accuracy"]
            self._folder.write_model(BEST_MODEL, self._loop.model)
        return {f"val_{name}": value for name, value in results.items()}

    def _not_finite(self, step: int) -> None:
        """Ends the run, or goes back to the last backup and leaves the batch of the step out."""
        loop = self._loop
        images, labels = loop.batch(step)
        epoch, within = divmod(step, self._schedule.steps_per_epoch)
        try:
            first = not_finite.first_not_finite(loop.model, loop.total_loss, images, labels)
        except Exception as error:  # A user's model may raise anything. That must not keep the run from going back.
            first = f"unknown, because repeating the step failed: {one_line(error)}"
        happened = (
            f"Step {step + 1:,} (step {within + 1:,} of epoch {epoch + 1}) is not finite, first {first}; "
            f"{not_finite.strides_in_words(loop.model)}."
        )
        if not self._schedule.rolls_back:
            raise not_finite.NotFiniteError(
                f"{happened} {self._folder.backup} has the state before, if there is one: start the same command with "
                "train.train.on_not_finite = 'roll_back' to go on from it and leave such batches out. Or lower the "
                "learning rate, in another workdir."
            )
        if len(self.progress.left_out) == MOST_LEFT_OUT:
            raise not_finite.NotFiniteError(f"{happened} {MOST_LEFT_OUT} batches have been left out before.")
        self.progress.left_out = sorted([*self.progress.left_out, step])
        if self._folder.writes:
            self._folder.check_there()
        epochs_done = self.progress.epochs_done
        self._backups.restore()
        if self.progress.epochs_done != epochs_done:
            raise OSError(
                f"{happened} The last backup in {self._folder.backup} is damaged: start the same command again to go "
                "on from the one before."
            )
        self._listeners.restore(self.progress.callbacks)
        if self.progress.steps_done == 0:
            self._begin_epoch()
        loop.start(self.step)
        logging.warning("%s Going back to step %d and leaving its batch out.", happened, self.step)

    def _leave_if_asked(self, saved: bool = False) -> None:
        """If a signal came to this process or to another worker, saves the state and ends the sitting."""
        strategy, name = self._loop.strategy, self._request.signal_name
        if not distribution.sum_over_replicas(strategy, int(name is not None)):
            return
        if not saved:
            self._save()
        distribution.wait_for_all_workers(strategy)
        raise signals.Stopped(
            f"stopped by {name or 'a signal to another worker'} after {self.step:,} steps: start the same command "
            f"again to go on in {self._folder.path}."
        )

    def _save(self) -> None:
        self.progress.tick()
        self.progress.note_metrics()
        if self._listeners is not None:
            self.progress.callbacks = self._listeners.state()
        if self._folder.writes:
            self._folder.check_there()
            self._backups.save(self.step)

    def _tell(self, line: str) -> None:
        """Prints a line. A run goes on if nobody can read its lines any more."""
        if self._folder.writes:
            with contextlib.suppress(OSError):
                print(line, flush=True)


def _check_workers_agree(loop: TrainingLoop, next_step: int) -> None:
    """Raises an error if the workers found different backups."""
    replicas = loop.strategy.num_replicas_in_sync
    if distribution.sum_over_replicas(loop.strategy, next_step) != replicas * next_step:
        raise ValueError("The workers do not find the same backup: the workdir must be one folder that all can read.")


def _epoch_line(epoch: int, num_epochs: int, logs: dict[str, float]) -> str:
    parts = [f"epoch {epoch}/{num_epochs}", f"loss {logs['loss']:.4f}", f"accuracy {logs['accuracy']:.2%}"]
    if "val_accuracy" in logs:
        parts.append(f"validation {logs['val_accuracy']:.2%}")
    parts += [f"{logs['images_per_second']:,.0f} images/s", f"{logs['seconds']:.1f} s"]
    return "  ".join(parts)
