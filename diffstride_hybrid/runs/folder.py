"""The folder of one training run: where its files lie, and how they are read and written."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.common import distribution
from diffstride_hybrid.common.files import (
    PARTIAL,
    read_rows,
    remove,
    rows_as_text,
    whole_file,
    write_model_whole,
    write_whole,
)
from diffstride_hybrid.runs.lock import FolderLock

FINAL_MODEL = "final.keras"
"""The name of the model after the last epoch."""

BEST_MODEL = "best.keras"
"""The name of the model with the highest accuracy on the validation images."""


class RunFolder:
    """The files of one run. A run writes `summary.json` last: a folder that has this file holds a finished run.

    If several workers train, only the chief of `tf.distribute.get_strategy()` writes. On other workers, every write
    method does nothing.

    Args:
        path: the folder. It is made if it does not exist.

    Attributes:
        path: the folder.
        writes: whether this process writes.

    Raises:
        OSError: the folder cannot be made or written to.

    Example:
        >>> import tempfile
        >>> from diffstride_hybrid.runs.folder import RunFolder
        >>> with tempfile.TemporaryDirectory() as path:
        ...     folder = RunFolder(path)
        ...     folder.write_json("summary.json", {"epochs": 2})
        ...     folder.is_finished(), folder.read_json("summary.json")
        (True, {'epochs': 2})
    """

    LOCK = ".training.lock"
    """The name of the lock's file."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self.writes = distribution.is_chief(tf.distribute.get_strategy())
        self._lock = FolderLock(self.path, self.LOCK)
        if not self.writes:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise OSError(f"The workdir {self.path} cannot be written to: {error.strerror}.") from error

    @property
    def backup(self) -> pathlib.Path:
        """The folder of the backups."""
        return self.path / "backup"

    @property
    def tensorboard(self) -> pathlib.Path:
        """The folder of the TensorBoard events."""
        return self.path / "tensorboard"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training here while the context lasts, or until this process dies.

        Raises:
            OSError: another process trains here, or the folder cannot be locked.
        """
        if not self.writes:
            yield
            return
        with self._lock.held():
            yield

    def tidy(self) -> None:
        """Deletes the unfinished files of a process that was killed while it wrote."""
        for partial in (*self.path.glob(f"{PARTIAL}*"), *self.path.glob(f"*/{PARTIAL}*")):
            remove(partial)  # An export leaves a folder.

    def has_begun(self) -> bool:
        """Whether a run has come to its first epoch here."""
        return (self.path / "run.json").exists()

    def is_finished(self) -> bool:
        """Whether a run has ended here."""
        return (self.path / "summary.json").exists()

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file.

        Args:
            name: of the file in the folder.
            text: its whole content.

        Raises:
            OSError: the file cannot be written, or the folder is gone.
        """
        if not self.writes:
            return
        self.check_there()
        write_whole(self.path / name, text)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Writes a JSON file.

        Args:
            name: of the file in the folder.
            values: what JSON can hold.

        Raises:
            OSError: the file cannot be written, or the folder is gone.
        """
        self.write_text(name, json.dumps(values, indent=2) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads a JSON file.

        Args:
            name: of the file in the folder.

        Returns:
            The file's value.

        Raises:
            OSError: the file is missing, cannot be read or is damaged.
        """
        return read_json(self.path / name)

    def write_model(self, name: str, model: keras.Model) -> None:
        """Saves a model in Keras's `.keras` format.

        Args:
            name: of the file in the folder.
            model: a built model.

        Raises:
            OSError: the file cannot be written, or the folder is gone.
        """
        if not self.writes:
            return
        self.check_there()
        write_model_whole(self.path / name, model)

    def write_figure(self, name: str, figure: Any) -> None:
        """Saves a figure.

        Args:
            name: of the file in the folder; its ending says the format.
            figure: a `matplotlib.figure.Figure`.

        Raises:
            OSError: the file cannot be written, or the folder is gone.
        """
        if not self.writes:
            return
        self.check_there()
        with whole_file(self.path / name) as partial:
            figure.savefig(partial, dpi=150)

    def read_rows(self, name: str) -> list[dict[str, str]]:
        """Reads the rows of a CSV file.

        Args:
            name: of the file in the folder.

        Returns:
            A mapping from column to text for each row; no rows if the file does not exist.
        """
        return read_rows(self.path / name)

    def write_epoch_row(self, name: str, row: Mapping[str, Any]) -> None:
        """Adds the row of an epoch to a CSV file.

        It replaces rows of this epoch and of later ones: a resumed run finds them if it was stopped after its last
        backup.

        Args:
            name: of the file in the folder.
            row: the columns and values, with the number of the epoch as `epoch`.

        Raises:
            OSError: the file cannot be written, or the folder is gone.
        """
        rows = [earlier for earlier in self.read_rows(name) if int(earlier["epoch"]) < row["epoch"]]
        columns = dict.fromkeys([*(rows[0] if rows else ()), *row])  # Not every epoch need be validated.
        self.write_text(name, rows_as_text(list(columns), [*rows, row]))

    def check_epoch_rows(self, name: str, epochs: int) -> None:
        """Checks that a CSV file has a row for each epoch from its first row to the last epoch done.

        A file that does not exist passes.

        Args:
            name: of the file in the folder.
            epochs: the number of epochs done.

        Raises:
            OSError: the file is damaged.
        """
        path = self.path / name
        if not path.exists():
            return
        try:
            found = [int(row["epoch"]) for row in self.read_rows(name)]
        except (KeyError, TypeError, ValueError, csv.Error) as error:
            raise OSError(_damaged(path, error)) from error
        lacking = set(range(min(found, default=epochs), epochs + 1)) - {0, *found}
        if lacking:
            raise OSError(_damaged(path, f"no row of epoch {min(lacking)}"))

    def check_there(self) -> None:
        """Checks that the folder still is the one in which this run began, before something is written there.

        Raises:
            FileNotFoundError: the folder is gone, or was made anew by another run.
        """
        if not self.path.is_dir() or self._lock.is_lost():
            raise FileNotFoundError(f"The workdir {self.path} is gone: nothing more can be written there.")


def read_json(path: pathlib.Path) -> Any:
    """Reads a JSON file. Unlike `RunFolder`, it makes no folder and needs no right to write.

    Args:
        path: of the file.

    Returns:
        The file's value.

    Raises:
        OSError: the file is missing, cannot be read or is damaged. The message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise OSError(_damaged(path, error)) from error


def _damaged(path: pathlib.Path, how: Exception | str) -> str:
    return f"{path} is damaged ({how}): put it right, or move it away."
