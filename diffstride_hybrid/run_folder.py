"""The folder of one training run: where its files lie, written whole or not at all."""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid import distribution


class RunFolder:
    """Files of one run. The last one written is `summary.json`: a folder that has it holds a finished run.

    Where several machines train, only the chief of `tf.distribute.get_strategy()` writes. On the others nothing that
    writes does anything.

    Args:
        path: the folder, made where it does not exist.

    Raises:
        OSError: the folder cannot be made or written to.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self.writes = distribution.is_chief(tf.distribute.get_strategy())
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
        """Where the checkpoints for resuming are."""
        return self.path / "backup"

    @property
    def tensorboard(self) -> pathlib.Path:
        """Where the TensorBoard events are."""
        return self.path / "tensorboard"

    def is_finished(self) -> bool:
        """Whether a run has ended here."""
        return (self.path / "summary.json").exists()

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file."""
        if not self.writes:
            return
        write_whole(self.path / name, text)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Writes a JSON file."""
        self.write_text(name, json.dumps(values, indent=2) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads a JSON file."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def write_model(self, name: str, model: keras.Model) -> None:
        """Saves a model in Keras's `.keras` format."""
        if not self.writes:
            return
        write_model_whole(self.path / name, model)

    def write_figure(self, name: str, figure: Any) -> None:
        """Saves a matplotlib figure."""
        if not self.writes:
            return
        partial = self._partial(name)
        figure.savefig(partial, dpi=150)
        os.replace(partial, self.path / name)

    def read_rows(self, name: str) -> list[dict[str, str]]:
        """The rows of a CSV file, none where it does not exist."""
        return read_rows(self.path / name)

    def write_epoch_row(self, name: str, row: Mapping[str, Any]) -> None:
        """Adds the row of an epoch to a CSV file, in place of its own and later rows, which a resumed run may find.

        Args:
            name: of the file.
            row: its columns, `epoch` among them.
        """
        rows = [earlier for earlier in self.read_rows(name) if int(earlier["epoch"]) < row["epoch"]]
        self.write_text(name, rows_as_text(list(row), [*rows, row]))

    def _partial(self, name: str) -> pathlib.Path:
        return _partial(self.path / name)


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a text file, in a way that leaves the file from before if it is interrupted. Makes the folder, too."""
    partial = _partial(path)
    with open(partial, "w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_model_whole(path: pathlib.Path, model: keras.Model) -> None:
    """Saves a model in Keras's `.keras` format as `write_whole` does a text."""
    partial = _partial(path)
    model.save(partial)
    os.replace(partial, path)


def read_rows(path: pathlib.Path) -> list[dict[str, str]]:
    """The rows of a CSV file, none where it does not exist."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def rows_as_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    """The content of a CSV file. A column that a row lacks is left empty."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _partial(path: pathlib.Path) -> pathlib.Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".partial.{path.name}")
