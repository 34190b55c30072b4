"""Says which data set is damaged when reading it fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import tensorflow as tf

from diffstride_hybrid.common.errors import one_line


@contextlib.contextmanager
def naming_damage(name: str, folder: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Says so, and what to do, where something fails within the context because files of a data set are damaged.

    Args:
        name: of the set.
        folder: where it is, if that is known.

    Raises:
        OSError: a file is missing, cut off or damaged, an image cannot be decoded, or a label is out of range.
    """
    try:
        yield
    except tf.errors.OpError as error:
        causes = (tf.errors.DataLossError, tf.errors.NotFoundError, tf.errors.OutOfRangeError)
        # Not those of a machine that is short of something, or gone, which arise as well where data are read.
        possible = (tf.errors.InvalidArgumentError, tf.errors.FailedPreconditionError, tf.errors.InternalError)
        from_data = any(sign in error.message for sign in ("IteratorGetNext", "Decode", OUT_OF_RANGE))
        of_augmentation = "assertion failed" in error.message and OUT_OF_RANGE not in error.message
        if not isinstance(error, causes) and not (isinstance(error, possible) and from_data and not of_augmentation):
            raise
        where = f" in {folder}" if folder else ""
        raise OSError(
            f"The files of data set {name!r}{where} are damaged or incomplete: {one_line(error)} Move them away and "
            "prepare the set again."
        ) from error


OUT_OF_RANGE = "A label is out of range"
