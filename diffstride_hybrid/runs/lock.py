"""A lock that keeps other processes from training in the same folder."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator

from absl import logging

try:
    import fcntl
except ImportError:  # Not on Windows.
    fcntl = None


_WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class FolderLock:
    """Keeps other processes out of a folder. The operating system frees the lock if its process dies.

    On Windows, and on file systems without locks, it keeps nobody out; a warning says so.

    Args:
        folder: an existing folder.
        name: of the lock's file in the folder. It holds the number of the process that has the lock.
    """

    def __init__(self, folder: pathlib.Path, name: str):
        self._folder = folder
        self._file = folder / name
        self._inode: int | None = None  # Of the file, while this object has the lock.

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Has the lock while the context lasts, and deletes the lock's file afterwards.

        Raises:
            OSError: another process has the lock, or the folder cannot be locked.
        """
        descriptor = self._take() if fcntl is not None else None
        if descriptor is None:
            logging.warning("%s cannot be locked here: start no second run in it", self._folder)
            yield
            return
        try:
            yield
        finally:
            if self._is_in_place():
                with contextlib.suppress(OSError):
                    self._file.unlink()
            self._inode = None
            os.close(descriptor)

    def is_lost(self) -> bool:
        """Whether this object took the lock, and since then the lock's file was deleted or replaced."""
        return self._inode is not None and not self._is_in_place()

    def _take(self) -> int | None:
        """Returns the descriptor of the locked file, or None if the file system has no locks."""
        try:
            while True:
                descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o666)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._inode = os.fstat(descriptor).st_ino
                if self._is_in_place():
                    os.ftruncate(descriptor, 0)
                    os.write(descriptor, str(os.getpid()).encode())
                    return descriptor
                self._inode = None
                os.close(descriptor)  # The previous owner deleted the file after we opened it; try again.
        except BlockingIOError:
            owner = os.read(descriptor, 100).decode() or "unknown"
            os.close(descriptor)
            raise OSError(
                f"Process {owner} trains in {self._folder}: wait for it, or choose another workdir."
            ) from None
        except OSError as error:
            if error.errno in _WITHOUT_LOCKS and self._file.exists():
                self._file.unlink()
                self._inode = None
                os.close(descriptor)
                return None
            raise OSError(f"The workdir {self._folder} cannot be locked: {error.strerror}.") from error

    def _is_in_place(self) -> bool:
        """Whether the file of this object's lock still is the file of that name in the folder."""
        try:
            return self._file.stat().st_ino == self._inode
        except OSError:
            return False
