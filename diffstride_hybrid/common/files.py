"""Files that are written completely or not at all, and the rows of CSV files."""

from __future__ import annotations

import contextlib
import csv
import errno
import functools
import io
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
from absl import logging

PARTIAL = ".partial."
"""The start of the name of a file that is being written."""


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Writes a file completely or not at all, and makes its folder if there is none.

    If the context ends without an error, the new file is on the disk and has replaced the old one. If it ends with an
    error, the old file is unchanged and no other file is left.

    Args:
        path: of the file.

    Yields:
        The path to write to while the context lasts.

    Raises:
        OSError: the file cannot be written.
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
    """Waits until a file is on the disk; for a folder, until the names of its files are.

    Some file systems cannot do that, such as those of a network, of FUSE or shared with a virtual machine, and Windows
    cannot for a folder. A warning says so once, and the process goes on: after a power cut the last files may be lost.

    Args:
        path: of the file or folder.

    Raises:
        OSError: it does not exist or cannot be written.
    """
    try:
        # Windows syncs a file only if it is open for writing.
        descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
        _warn_of_lost_safety(error.strerror)


_NOT_OFFERED = {
    getattr(errno, name)
    for name in ("EINVAL", "ENOTSUP", "EOPNOTSUPP", "ENOSYS", "EBADF", "EACCES", "EPERM", "EISDIR")
    if hasattr(errno, name)
}
"""What systems answer that cannot sync. A full, failing or read-only disk answers otherwise."""


@functools.cache
def _warn_of_lost_safety(reason: str) -> None:
    logging.warning(
        "Files cannot be synced with the disk here (%s): after a power cut the last ones may be lost", reason
    )


def remove(path: pathlib.Path) -> None:
    """Deletes a file, or a folder with all that is in it. Does nothing if there is none.

    Args:
        path: of the file or folder. Of a link, the link is deleted.

    Raises:
        OSError: it cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def without_wildcards(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    r"""Finds a path to a folder that TensorFlow can read checkpoints and SavedModels from.

    TensorFlow takes the path of a checkpoint for a pattern, and finds nothing in a folder such as `strides=[1,2]`.

    Args:
        folder: the folder.

    Yields:
        The folder, or a link to it if its path has one of the signs `*?[\`. The link is gone after the context.

    Example:
        >>> import pathlib
        >>> from diffstride_hybrid.common.files import without_wildcards
        >>> with without_wildcards(pathlib.Path("runs/strides=[1,2]")) as path:
        ...     "[" in str(path)
        False
    """
    if not any(sign in str(folder) for sign in "*?[\\" if sign != os.sep):
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        link = pathlib.Path(place) / "link"
        link.symlink_to(folder.absolute(), target_is_directory=True)
        yield link


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a text file completely or not at all, in UTF-8.

    Args:
        path: of the file.
        text: its whole content.

    Raises:
        OSError: the file cannot be written.
    """
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def write_model_whole(path: pathlib.Path, model: keras.Model) -> None:
    """Saves a model in Keras's `.keras` format, completely or not at all.

    Args:
        path: of the file; it ends in '.keras'.
        model: a built model.

    Raises:
        OSError: the file cannot be written.
    """
    with whole_file(path) as partial:
        model.save(partial)


def read_rows(path: pathlib.Path, separator: str = ",") -> list[dict[str, str]]:
    """Reads the rows of a CSV file.

    Args:
        path: of the file.
        separator: between two fields.

    Returns:
        A mapping from column to text for each row; no rows if the file does not exist.
    """
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter=separator))


def rows_as_text(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], separator: str = ",") -> str:
    """Formats rows as the text of a CSV file.

    Args:
        columns: the names of the columns, in order.
        rows: a mapping from column to value for each row. A missing column becomes an empty field.
        separator: between two fields.

    Returns:
        The text, with a line for the head and a line for each row.

    Example:
        >>> from diffstride_hybrid.common.files import rows_as_text
        >>> print(rows_as_text(["epoch", "loss"], [{"epoch": 1, "loss": 0.5}, {"epoch": 2}]), end="")
        epoch,loss
        1,0.5
        2,
    """
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=columns, delimiter=separator, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
