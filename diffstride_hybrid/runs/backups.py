"""Backups: the last states of a run, from which it goes on when it is started again."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
from typing import NamedTuple

import tensorflow as tf
from absl import logging

from diffstride_hybrid.common.errors import first_line, one_line
from diffstride_hybrid.common.files import remove, synced, without_wildcards

KEPT = 2
"""The number of backups kept: if the last one is damaged, the run goes on from the one before."""

_PARTIAL = ".partial"  # The folder in which a backup is written.


class Backups:
    """TensorFlow checkpoints in a folder. Each one is complete or does not exist.

    A backup is named `ckpt-{step}-{number}`: the step after which it was written, and its number among the backups of
    that step. A second backup after the same step gets a new name, so that the first one stays until the second is
    complete.

    TensorFlow alone would write the index of a checkpoint in place. This class writes all files elsewhere, and moves
    the index to its place last.

    Args:
        folder: of the backups. It need not exist.
        checkpoint: the objects to save and restore.

    Example:
        >>> import pathlib, tempfile
        >>> from diffstride_hybrid.runs.backups import Backups
        >>> with tempfile.TemporaryDirectory() as path:
        ...     backups = Backups(pathlib.Path(path), tf.train.Checkpoint(x=tf.Variable(1.0)))
        ...     backups.save(step=7)
        ...     backups.restore()
        7
    """

    def __init__(self, folder: pathlib.Path, checkpoint: tf.train.Checkpoint):
        self._folder = folder
        self._checkpoint = checkpoint
        self._last: _Name | None = None  # The backup that was restored or saved last.

    def save(self, step: int) -> None:
        """Writes a backup, and only then deletes older ones, all but the last `KEPT`.

        Args:
            step: the number of training steps done.

        Raises:
            OSError: the backup cannot be written. The older backups are kept.
        """
        before = self._names()
        name = _Name(step, 1 + max((other.number for other in before if other.step == step), default=0))
        partial = self._folder / _PARTIAL
        try:
            self._make_folder()
            partial.mkdir(exist_ok=True)
            self._checkpoint.write(str(partial / str(name)))
            # The index last: without it the other files are no backup.
            for path in sorted(partial.glob(f"{name}.*"), key=lambda path: path.suffix == ".index"):
                synced(path)
                os.replace(path, self._folder / path.name)
            synced(self._folder)
        except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError):
            raise  # The disk is fine: another worker is gone.
        except (OSError, tf.errors.OpError) as error:
            with contextlib.suppress(OSError):
                for path in (partial, *self._files(name)):
                    remove(path)
            kept = " The one before is kept." if before and self._names() else ""
            raise OSError(
                f"The backup {self._folder / str(name)} cannot be written: {_reason(error)}.{kept}"
            ) from error
        remove(partial)
        # Any backup newer than the restored one is damaged.
        damaged = [other for other in before if self._last is not None and other > self._last]
        self._last = name
        for other in (*damaged, *[other for other in before if other not in damaged][KEPT - 1 :]):
            self._remove(other)

    def _make_folder(self) -> None:
        if not self._folder.is_dir():
            self._folder.mkdir()
            synced(self._folder.parent)

    def restore(self) -> int | None:
        """Restores the last backup that is not damaged.

        Returns:
            The step of the backup; None if there are no backups.

        Raises:
            ValueError: the backup is of another model or optimizer.
            OSError: every backup is damaged.
        """
        names = self._names()
        for name in names:
            path = self._folder / str(name)
            try:
                with without_wildcards(self._folder) as folder:
                    status = self._checkpoint.read(str(folder / str(name)))
                try:
                    status.assert_consumed()
                except AssertionError:
                    status.expect_partial()  # Otherwise TensorFlow warns of each variable when it deletes the status.
                    raise
                self._last = name
                return name.step
            except (ValueError, AssertionError, tf.errors.InvalidArgumentError) as error:  # Shapes, names, dtypes.
                raise ValueError(
                    f"{self._folder.parent} holds the backup of another model or optimizer: choose another workdir."
                ) from error
            except (tf.errors.OpError, IndexError) as error:  # `IndexError` if a file is cut off.
                logging.warning("the backup %s is damaged (%s)", path, first_line(error))
        if names:
            raise OSError(
                f"Every backup in {self._folder} is damaged: move that folder away to begin anew, or choose another "
                "workdir."
            )
        return None

    def tidy(self) -> None:
        """Deletes the unfinished files of a process that was killed while it saved."""
        if not self._folder.is_dir():
            return
        whole = {path for name in self._names() for path in self._files(name)}
        for path in self._folder.iterdir():
            if path.name == _PARTIAL or (path.name.startswith("ckpt-") and path not in whole):
                remove(path)

    def _names(self) -> list[_Name]:
        """The names of the complete backups, the last one first."""
        found = (re.fullmatch(r"ckpt-(\d+)-(\d+)\.index", path.name) for path in self._folder.glob("ckpt-*.index"))
        return sorted((_Name(int(match[1]), int(match[2])) for match in found if match), reverse=True)

    def _files(self, name: _Name) -> list[pathlib.Path]:
        return list(self._folder.glob(f"{name}.*"))

    def _remove(self, name: _Name) -> None:
        # The index first: the other files without it are no backup.
        for path in sorted(self._files(name), key=lambda path: path.suffix != ".index"):
            path.unlink(missing_ok=True)


class _Name(NamedTuple):
    """The step after which a backup was written, and its number among the backups of that step."""

    step: int
    number: int

    def __str__(self) -> str:
        return f"ckpt-{self.step}-{self.number}"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error)
