"""Files that are written whole or not at all, and the rows of CSV files."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

PARTIAL = ".partial."


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Has a file written whole or not at all: gives the name to write it under, and makes its folder.

    When the context ends well, what was written is on the disk and in the place of the file from before. When it fails
    the file from before stays as it was, and nothing else is left.

    Raises:
        OSError: it cannot be written.
    """
    partial = path.with_name(f"{PARTIAL}{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        synced(partial)
        os.replace(partial, path)
        synced(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        if isinstance(error, OSError):
            raise OSError(f"{path} cannot be written: {error.strerror or error}.") from error
        raise


def synced(path: pathlib.Path) -> None:
    """Returns once a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a text file as `whole_file` says."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def write_model_whole(path: pathlib.Path, model: keras.Model) -> None:
    """Saves a model in Keras's `.keras` format as `whole_file` says."""
    with whole_file(path) as partial:
        model.save(partial)


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
