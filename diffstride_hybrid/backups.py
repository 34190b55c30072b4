"""The last states of a run on the disk, from which it goes on when it is started again."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
from typing import NamedTuple

import tensorflow as tf
from absl import logging

from diffstride_hybrid.errors import first_line, one_line
from diffstride_hybrid.run_folder import synced

KEPT = 2
"""How many states are kept: where the last one is damaged, the one before serves."""


class Backups:
    """TensorFlow checkpoints in a folder, each complete or not there, and named by the step after which it was written.

    TensorFlow itself writes an index in place. Here it writes elsewhere, and the index is moved to its place last. A
    second backup after the same step has a name of its own, so that the first one stays until the second is there.

    Args:
        folder: where they are. It need not exist.
        checkpoint: what they hold.
    """

    def __init__(self, folder: pathlib.Path, checkpoint: tf.train.Checkpoint):
        self._folder = folder
        self._checkpoint = checkpoint
        self._last: _Name | None = None  # Restored or saved.

    def save(self, step: int) -> None:
        """Writes a backup, and only then removes all but the last `KEPT`.

        Raises:
            OSError: it cannot be written. Those from before are kept.
        """
        before = self._names()
        name = _Name(step, 1 + max((other.number for other in before if other.step == step), default=0))
        partial = self._folder / _PARTIAL
        try:
            self._make_folder()
            partial.mkdir(exist_ok=True)
            self._checkpoint.write(str(partial / str(name)))
            # The index last: it makes the others a backup.
            for path in sorted(partial.glob(f"{name}.*"), key=lambda path: path.suffix == ".index"):
                synced(path)
                os.replace(path, self._folder / path.name)
            synced(self._folder)
        except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError):
            raise  # Not the disk's: another worker is gone.
        except (OSError, tf.errors.OpError) as error:
            with contextlib.suppress(OSError):
                for path in (partial, *self._files(name)):
                    _remove(path)
            kept = " The one before is kept." if before and self._names() else ""
            raise OSError(
                f"The backup {self._folder / str(name)} cannot be written: {_reason(error)}.{kept}"
            ) from error
        _remove(partial)
        # What is later than the one that the run went back to is damaged.
        damaged = [other for other in before if self._last is not None and other > self._last]
        self._last = name
        for other in (*damaged, *[other for other in before if other not in damaged][KEPT - 1 :]):
            self._remove(other)

    def _make_folder(self) -> None:
        if not self._folder.is_dir():
            self._folder.mkdir()
            synced(self._folder.parent)

    def restore(self) -> int | None:
        """Restores the last backup, or the last one that is not damaged.

        Returns:
            The step of its name, or None where there are no backups.

        Raises:
            ValueError: it is that of another model or optimiser.
            OSError: all of them are damaged.
        """
        names = self._names()
        for name in names:
            path = self._folder / str(name)
            try:
                status = self._checkpoint.read(str(path))
                try:
                    status.assert_consumed()
                except AssertionError:
                    status.expect_partial()  # Or TensorFlow would warn of each variable when it deletes the status.
                    raise
                self._last = name
                return name.step
            except (ValueError, AssertionError, tf.errors.InvalidArgumentError) as error:  # Shapes, names, dtypes.
                raise ValueError(
                    f"{self._folder.parent} holds the backup of another model or optimizer: choose another workdir."
                ) from error
            except (tf.errors.OpError, IndexError) as error:  # TensorFlow raises the latter for files cut off.
                logging.warning("the backup %s is damaged (%s)", path, first_line(error))
        if names:
            raise OSError(
                f"Every backup in {self._folder} is damaged: move that folder away to begin anew, or choose another "
                "workdir."
            )
        return None

    def tidy(self) -> None:
        """Removes what a process that was killed while it saved has left."""
        if not self._folder.is_dir():
            return
        whole = {path for name in self._names() for path in self._files(name)}
        for path in self._folder.iterdir():
            if path.name == _PARTIAL or (path.name.startswith("ckpt-") and path not in whole):
                _remove(path)

    def _names(self) -> list[_Name]:
        """Those of the backups that are complete, the last one first."""
        found = (re.fullmatch(r"ckpt-(\d+)-(\d+)\.index", path.name) for path in self._folder.glob("ckpt-*.index"))
        return sorted((_Name(int(match[1]), int(match[2])) for match in found if match), reverse=True)

    def _files(self, name: _Name) -> list[pathlib.Path]:
        return list(self._folder.glob(f"{name}.*"))

    def _remove(self, name: _Name) -> None:
        # The index first: what is left without it is no backup.
        for path in sorted(self._files(name), key=lambda path: path.suffix != ".index"):
            path.unlink(missing_ok=True)


_PARTIAL = ".partial"


class _Name(NamedTuple):
    """A backup's: the step after which it was written, and its number among those of that step."""

    step: int
    number: int

    def __str__(self) -> str:
        return f"ckpt-{self.step}-{self.number}"


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
