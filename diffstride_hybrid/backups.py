"""The last states of a run on the disk, from which it goes on when it is started again."""

from __future__ import annotations

import os
import pathlib
import re

import tensorflow as tf
from absl import logging

from diffstride_hybrid.run_folder import synced

KEPT = 2
"""How many states are kept: where the last one is damaged, the one before serves."""


class Backups:
    """TensorFlow checkpoints in a folder, each complete or not there, and named by the step after which it was written.

    Args:
        folder: where they are. It need not exist.
        checkpoint: what they hold.
    """

    def __init__(self, folder: pathlib.Path, checkpoint: tf.train.Checkpoint):
        self._folder = folder
        self._checkpoint = checkpoint

    def save(self, step: int) -> None:
        """Writes a backup, and only then removes all but the last `KEPT`.

        Raises:
            OSError: it cannot be written. Those from before are kept.
        """
        prefix = self._folder / f"ckpt-{step}"
        try:
            self._folder.mkdir(exist_ok=True)
            self._checkpoint.write(str(prefix))
            for path in self._files(step):
                synced(path)
            synced(self._folder)
        except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError):
            raise  # Not the disk's: another worker is gone.
        except (OSError, tf.errors.OpError) as error:
            self._remove(step)
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise OSError(f"The backup {prefix} cannot be written: {reason}. The one before is kept.") from error
        for old in self._steps()[KEPT:]:
            self._remove(old)

    def restore(self) -> int | None:
        """Restores the last backup, or the last one that is not damaged.

        Returns:
            The step of its name, or None where there are no backups.

        Raises:
            ValueError: it is that of another model.
            OSError: all of them are damaged.
        """
        steps = self._steps()
        for step in steps:
            path = self._folder / f"ckpt-{step}"
            try:
                status = self._checkpoint.read(str(path))
                try:
                    status.assert_consumed()
                except AssertionError:
                    status.expect_partial()  # Or TensorFlow would warn of each variable when it deletes the status.
                    raise
                return step
            except (ValueError, AssertionError, tf.errors.InvalidArgumentError) as error:  # Shapes, names, dtypes.
                raise ValueError(
                    f"{self._folder.parent} holds the backup of another model: choose another workdir."
                ) from error
            except (tf.errors.OpError, IndexError) as error:  # TensorFlow raises the latter for files cut off.
                logging.warning("the backup %s is damaged (%s)", path, str(error).splitlines()[0])
        if steps:
            raise OSError(
                f"Every backup in {self._folder} is damaged: move that folder away to begin anew, or choose another "
                "workdir."
            )
        return None

    def tidy(self) -> None:
        """Removes what a process that was killed while it saved has left."""
        if not self._folder.is_dir():
            return
        steps = self._steps()
        whole = {path for step in steps for path in self._files(step)}
        for path in self._folder.iterdir():
            if path.name.startswith("ckpt-") and path not in whole:
                _remove(path)

    def _steps(self) -> list[int]:
        """Those of the backups that are complete, the last one first. Their index is written last."""
        found = (re.fullmatch(r"ckpt-(\d+)\.index", path.name) for path in self._folder.glob("ckpt-*.index"))
        return sorted((int(match[1]) for match in found if match), reverse=True)

    def _files(self, step: int) -> list[pathlib.Path]:
        return [path for path in self._folder.glob(f"ckpt-{step}.*") if ".tempstate" not in path.name]

    def _remove(self, step: int) -> None:
        for path in (*self._folder.glob(f"ckpt-{step}.*"), *self._folder.glob(f"ckpt-{step}_*")):
            _remove(path)


def _remove(path: pathlib.Path) -> None:
    if path.is_dir():
        for inner in path.iterdir():
            _remove(inner)
        path.rmdir()
    else:
        os.unlink(path)
