"""The folder of one training run: where its files lie, written whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid import distribution

try:
    import fcntl
except ImportError:  # Not on Windows.
    fcntl = None


class RunFolder:
    """Files of one run. The last one written is `summary.json`: a folder that has it holds a finished run.

    Where several machines train, only the chief of `tf.distribute.get_strategy()` writes. On the others nothing that
    writes does anything.

    Args:
        path: the folder, made where it does not exist.

    Raises:
        OSError: the folder cannot be made or written to.
    """

    LOCK = ".training.lock"

    def __init__(self, path: str | os.PathLike[str]):
        self.path = pathlib.Path(path)
        self._lock: int | None = None  # The file's number, while this object holds it.
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

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training here while the context lasts, or until this process is dead.

        Raises:
            OSError: another process trains here, or the folder cannot be locked.
        """
        if not self.writes or fcntl is None:
            yield
            return
        lock = self._take_lock()
        try:
            yield
        finally:
            if self._holds_lock():
                with contextlib.suppress(OSError):
                    (self.path / self.LOCK).unlink()
            self._lock = None
            os.close(lock)

    def _take_lock(self) -> int:
        try:
            while True:
                lock = os.open(self.path / self.LOCK, os.O_RDWR | os.O_CREAT, 0o666)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._lock = os.fstat(lock).st_ino
                if self._holds_lock():
                    os.ftruncate(lock, 0)
                    os.write(lock, str(os.getpid()).encode())
                    return lock
                os.close(lock)  # Who had it has removed it on leaving, after it was opened here.
        except BlockingIOError:
            owner = os.read(lock, 100).decode() or "unknown"
            os.close(lock)
            raise OSError(f"Process {owner} trains in {self.path}: wait for it, or choose another workdir.") from None
        except OSError as error:
            raise OSError(f"The workdir {self.path} cannot be locked: {error.strerror}.") from error

    def _holds_lock(self) -> bool:
        try:
            return (self.path / self.LOCK).stat().st_ino == self._lock
        except OSError:
            return False

    def tidy(self) -> None:
        """Removes what a process that was killed while it wrote has left."""
        for partial in (*self.path.glob(f"{_PARTIAL}*"), *self.path.glob(f"*/{_PARTIAL}*")):
            partial.unlink()

    def has_begun(self) -> bool:
        """Whether a run has got as far as its first step here."""
        return (self.path / "run.json").exists()

    def is_finished(self) -> bool:
        """Whether a run has ended here."""
        return (self.path / "summary.json").exists()

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file."""
        if not self.writes:
            return
        self._check_there()
        write_whole(self.path / name, text)

    def write_json(self, name: str, values: Mapping[str, Any]) -> None:
        """Writes a JSON file."""
        self.write_text(name, json.dumps(values, indent=2) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """Reads a JSON file.

        Raises:
            OSError: it is damaged.
        """
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise OSError(_damaged(path, error)) from error

    def write_model(self, name: str, model: keras.Model) -> None:
        """Saves a model in Keras's `.keras` format."""
        if not self.writes:
            return
        self._check_there()
        write_model_whole(self.path / name, model)

    def write_figure(self, name: str, figure: Any) -> None:
        """Saves a matplotlib figure."""
        if not self.writes:
            return
        self._check_there()
        with whole_file(self.path / name) as partial:
            figure.savefig(partial, dpi=150)

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

    def check_epoch_rows(self, name: str, epochs: int) -> None:
        """Makes sure that a CSV file, if it is there, has a row for each epoch from its first to the last one done.

        Args:
            name: of the file.
            epochs: how many are done.

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

    def _check_there(self) -> None:
        if not self.path.is_dir() or (self._lock is not None and not self._holds_lock()):
            raise FileNotFoundError(f"The workdir {self.path} is gone: nothing more can be written there.")


def _damaged(path: pathlib.Path, how: Exception | str) -> str:
    return f"{path} is damaged ({how}): put it right, or move it away."


_PARTIAL = ".partial."


@contextlib.contextmanager
def whole_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Has a file written whole or not at all: gives the name to write it under, and makes its folder.

    When the context ends well, what was written is on the disk and in the place of the file from before. When it fails
    the file from before stays as it was, and nothing else is left.

    Raises:
        OSError: it cannot be written.
    """
    partial = path.with_name(f"{_PARTIAL}{path.name}")
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
