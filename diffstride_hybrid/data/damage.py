"""Says which data set is damaged when reading it fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import tensorflow as tf

from diffstride_hybrid.common.errors import one_line

LABEL_OUT_OF_RANGE = "A label is out of range"

_SURELY_DAMAGE = (tf.errors.DataLossError, tf.errors.OutOfRangeError)
# These errors have other causes as well, so their message decides: a GPU's library raises NotFoundError if it has no
# algorithm for a convolution. ResourceExhaustedError and UnavailableError are left
# out: reading data can raise them too, but then the machine is short of something or gone, and the files are fine.
_POSSIBLY_DAMAGE = (
    *(tf.errors.InvalidArgumentError, tf.errors.FailedPreconditionError),
    *(tf.errors.InternalError, tf.errors.NotFoundError),
)
_SIGNS_OF_READING = ("IteratorGetNext", "Decode", LABEL_OUT_OF_RANGE)


@contextlib.contextmanager
def naming_damaged_files(name: str, folder: str | os.PathLike[str] | None = None, own: bool = False) -> Iterator[None]:
    """A context in which the files of a data set are read: an error that comes of damaged files names the set.

    Args:
        name: of the data set.
        folder: where its files are. None if that is not known.
        own: whether they are a user's own files, which cannot be prepared again.

    Yields:
        Nothing.

    Raises:
        OSError: a file is missing, cut off or damaged, an image cannot be decoded, or a label is out of range. The
            message says what to do. All other errors pass unchanged.
    """
    try:
        yield
    except tf.errors.OpError as error:
        if not _is_damage(error):
            raise
        where = f" in {folder}" if folder else ""
        cure = "Put back the file, or remove it." if own else "Move them away and prepare the set again."
        raise OSError(
            f"The files of data set {name!r}{where} are damaged or incomplete: {one_line(error)} {cure}"
        ) from error


def _is_damage(error: tf.errors.OpError) -> bool:
    if isinstance(error, _SURELY_DAMAGE):
        return True
    # An assertion of a user's augmentation fails in the input pipeline as well, and is no damage.
    of_augmentation = "assertion failed" in error.message and LABEL_OUT_OF_RANGE not in error.message
    read = any(sign in error.message for sign in _SIGNS_OF_READING)
    return isinstance(error, _POSSIBLY_DAMAGE) and read and not of_augmentation
