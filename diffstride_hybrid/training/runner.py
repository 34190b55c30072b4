"""One sitting of a run: its epochs, its backups, and what happens when something comes between."""

from __future__ import annotations

import sys
import time

import keras
import tensorflow as tf
import tqdm
from absl import logging

from diffstride_hybrid.common import distribution, signals
from diffstride_hybrid.common.errors import one_line
from diffstride_hybrid.runs.backups import Backups
from diffstride_hybrid.runs.folder import BEST_MODEL, RunFolder
from diffstride_hybrid.training import diagnosis
from diffstride_hybrid.training.loop import TrainingLoop
from diffstride_hybrid.training.progress import Progress

MOST_LEFT_OUT = 10
"""How many batches whose step is not finite a run leaves out, before it takes itself for broken."""


class Runner:
    """One sitting of a run: epochs, backups within and after them, and what to do when something comes between.

    Args:
        loop: what trains.
        folder: of the run.
        num_epochs: see `train`.
        steps_per_epoch: see `train`.
        steps_per_execution: see `train`.
        backup_every: see `train`.
        on_not_finite: see `train`.
        request: whether the process was asked to end.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        folder: RunFolder,
        num_epochs: int,
        steps_per_epoch: int,
        steps_per_execution: int,
        backup_every: int | None,
        on_not_finite: str,
        request: signals.StopRequest,
    ):
        self.progress = Progress(loop)
        self._loop = loop
        self._folder = folder
        self._num_epochs = num_epochs
        self._steps_per_epoch = steps_per_epoch
        self._steps_per_execution = steps_per_execution
        self._backup_every = backup_every
        self._rolls_back = on_not_finite == "roll_back"
        self._request = request
        # Variables are listed one by one: `tf.train.Checkpoint` does not find all of those of nested Keras models.
        state = [*loop.model.variables, *loop.optimizer.variables]
        checkpoint = tf.train.Checkpoint(variables=[variable.value for variable in state], progress=self.progress)
        self._backups = Backups(folder.backup, checkpoint)

    @property
    def step(self) -> int:
        """The next step, counted over all epochs."""
        return self.progress.epochs_done * self._steps_per_epoch + self.progress.steps_done

    def resume(self) -> None:
        """Goes on from the last backup, where there is one."""
        if self._folder.writes:
            self._folder.tidy()
            self._backups.tidy()
        restored = self._backups.restore()
        if self._folder.writes:
            for name in ("metrics.csv", "strides.csv"):
                self._folder.check_epoch_rows(name, self.progress.epochs_done)
        if restored is None:
            if self._rolls_back:
                self._save()  # What to go back to in the first epoch.
        elif self._folder.writes:
            within = f" and {self.progress.steps_done:,} steps" if self.progress.steps_done else ""
            print(f"resuming {self._folder.path} after epoch {self.progress.epochs_done}{within}", flush=True)
        _check_workers_agree(self._loop, self.step)
        if self.step:
            self._loop.start(self.step)

    def train(self, listeners: keras.callbacks.CallbackList) -> None:
        """Trains all epochs that are left."""
        progress = self.progress
        progress.tick()
        while progress.epochs_done < self._num_epochs:
            epoch = progress.epochs_done
            listeners.on_epoch_begin(epoch)
            self._train_epoch(listeners)
            logs = self._training_logs()
            if self._loop.datasets.splits["validation"].size:
                validation = self._loop.evaluate("validation", self._steps_per_execution, self._leave_if_asked)
                logs |= {f"val_{name}": value for name, value in validation.items()}
                if progress.best_accuracy is None or logs["val_accuracy"] > progress.best_accuracy:
                    progress.best_accuracy = logs["val_accuracy"]
                    self._folder.write_model(BEST_MODEL, self._loop.model)
            listeners.on_epoch_end(epoch, logs)
            self._loop.results()
            progress.epochs_done, progress.steps_done, progress.epoch_seconds = epoch + 1, 0, 0.0
            self._save()
            if self._folder.writes:
                print(_epoch_line(epoch + 1, self._num_epochs, logs), flush=True)
            if progress.epochs_done < self._num_epochs:
                self._leave_if_asked(saved=True)

    def _train_epoch(self, listeners: keras.callbacks.CallbackList) -> None:
        progress = self.progress
        bar = tqdm.tqdm(
            total=self._steps_per_epoch,
            initial=progress.steps_done,
            desc=f"epoch {progress.epochs_done + 1}/{self._num_epochs}",
            unit="step",
            leave=False,
            disable=not (self._folder.writes and sys.stderr.isatty()),
        )
        with bar:
            while progress.steps_done < self._steps_per_epoch:
                began, first, step = time.perf_counter(), progress.steps_done, self.step
                count = min(self._steps_per_execution, self._steps_per_epoch - first)
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
                every = self._backup_every
                # At the end of the epoch there is one anyway.
                if (
                    every is not None
                    and self.step // every > step // every
                    and progress.steps_done < self._steps_per_epoch
                ):
                    self._save()

    def _train_steps(self, step: int, count: int) -> int | None:
        """Trains some steps but for those left out; returns the first that was not finite, None where all were."""
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
            **loop.results(reset=False),
            "step": int(keras.ops.convert_to_numpy(loop.optimizer.iterations)),
            "learning_rate": keras.ops.convert_to_numpy(loop.optimizer.learning_rate).item(),
            "seconds": round(seconds, 3),
            "images_per_second": round(self._steps_per_epoch * loop.datasets.images_per_step / seconds, 1),
        }

    def _not_finite(self, step: int) -> None:
        """Says what happened, and ends the run or goes back to the last backup without the step's batch."""
        loop = self._loop
        images, labels = loop.batch(step)
        epoch, within = divmod(step, self._steps_per_epoch)
        try:
            first = diagnosis.first_not_finite(loop.model, loop.total_loss, images, labels)
        except Exception as error:  # Whatever a model of the user's own does, it must not keep the run from going back.
            first = f"what cannot be told as the step cannot be repeated: {one_line(error)}"
        happened = (
            f"Step {step + 1:,} (step {within + 1:,} of epoch {epoch + 1}) is not finite, first {first}; "
            f"{diagnosis.strides_in_words(loop.model)}."
        )
        if not self._rolls_back:
            raise diagnosis.NotFiniteError(
                f"{happened} {self._folder.backup} has the state before, if there is one. Lower the learning rate, or "
                "bind train.train.on_not_finite = 'roll_back' to go back to it and leave such batches out."
            )
        if len(self.progress.left_out) == MOST_LEFT_OUT:
            raise diagnosis.NotFiniteError(f"{happened} {MOST_LEFT_OUT} batches have been left out before.")
        self.progress.left_out = sorted([*self.progress.left_out, step])
        self._backups.restore()
        loop.start(self.step)
        logging.warning("%s Going back to step %d and leaving its batch out.", happened, self.step)

    def _leave_if_asked(self, saved: bool = False) -> None:
        """Ends the sitting after a signal to this process or to another worker, with its state on the disk."""
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
        if self._folder.writes:
            self._backups.save(self.step)


def _check_workers_agree(loop: TrainingLoop, next_step: int) -> None:
    """Raises where not every worker found the same backup."""
    replicas = loop.strategy.num_replicas_in_sync
    if distribution.sum_over_replicas(loop.strategy, next_step) != replicas * next_step:
        raise ValueError("The workers do not find the same backup: the workdir must be one folder that all can read.")


def _epoch_line(epoch: int, num_epochs: int, logs: dict[str, float]) -> str:
    parts = [f"epoch {epoch}/{num_epochs}", f"loss {logs['loss']:.4f}", f"accuracy {logs['accuracy']:.2%}"]
    if "val_accuracy" in logs:
        parts.append(f"validation {logs['val_accuracy']:.2%}")
    parts += [f"{logs['images_per_second']:,.0f} images/s", f"{logs['seconds']:.1f} s"]
    return "  ".join(parts)
