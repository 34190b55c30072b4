"""Scores of predicted classes: intersection over union, and how many pixels keep their class under a shift."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from experiments.segmentation.camvid import CLASSES, MOST_SHIFT, VOID

SHIFTS = (1, 2, 3)
"""By how many pixels the images are shifted, at most `MOST_SHIFT`."""

DIRECTIONS = ((0, 1), (1, 0), (1, 1))
"""(vertical, horizontal) directions of the shifts."""

Predict = Callable[[np.ndarray], np.ndarray]
"""Predicts the classes `[images, height, width]` of images `[images, height, width, 3]`."""


def confusion(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Counts the pixels of each pair of classes.

    Args:
        labels: integers of any shape, numbers of `CLASSES`, or `VOID`. Pixels of `VOID` are not counted.
        predicted: numbers of `CLASSES`, of the same shape.

    Returns:
        int64 `[classes, classes]`: how many pixels of each class, by row, were predicted as each class, by column.
    """
    counted = labels != VOID
    pairs = len(CLASSES) * labels[counted].astype(np.int64) + predicted[counted]
    return np.bincount(pairs, minlength=len(CLASSES) ** 2).reshape(len(CLASSES), len(CLASSES))


def ious(counts: np.ndarray) -> np.ndarray:
    """Intersection over union of each class, from one confusion matrix of all images.

    Args:
        counts: as `confusion` returns them.

    Returns:
        float64 `[classes]`: the pixels that have the class and were predicted as it, divided by those that have it or
        were predicted as it. NaN if there are none of either.
    """
    both = np.diag(counts)
    either = counts.sum(0) + counts.sum(1) - both
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


def consistency(predict: Predict, larger: np.ndarray, shifts: Sequence[int] = SHIFTS) -> list[float]:
    """The share of pixels that keep their class if the image is shifted.

    An image of `height + MOST_SHIFT` by `width + MOST_SHIFT` pixels is cropped to `height` by `width` twice, at its top
    left corner and `shift` pixels lower, further to the right, or both. No pixel comes from the other edge: the crops
    differ at their edges as two photographs do. The classes of both crops are compared where both show the same place.

    Args:
        predict: predicts the classes of images.
        larger: uint8 `[images, height + MOST_SHIFT, width + MOST_SHIFT, 3]`.
        shifts: lengths of the shifts in pixels, at most `MOST_SHIFT`.

    Returns:
        For each shift, the share of pixels with equal classes, over all images and `DIRECTIONS`, void included.
    """
    first = predict(shifted(larger, 0, 0))
    shares = []
    for shift in shifts:
        equal = [
            same_class(first, predict(shifted(larger, shift * down, shift * right)), shift * down, shift * right)
            for down, right in DIRECTIONS
        ]
        shares.append(sum(part.sum() for part in equal) / sum(part.size for part in equal))
    return shares


def shifted(larger: np.ndarray, down: int, right: int) -> np.ndarray:
    """Crops images at an offset, to a size that is `MOST_SHIFT` smaller on each axis."""
    height, width = (length - MOST_SHIFT for length in larger.shape[1:3])
    return larger[:, down : down + height, right : right + width]


def same_class(first: np.ndarray, second: np.ndarray, down: int, right: int) -> np.ndarray:
    """Where two predictions agree, on the area that both crops show.

    Args:
        first: classes `[images, height, width]` of the crops at the corner.
        second: classes of the crops that begin `down` and `right` pixels further.
        down: vertical offset of the second crop.
        right: horizontal offset of the second crop.

    Returns:
        bool `[images, height - down, width - right]`.
    """
    height, width = first.shape[1:]
    return first[:, down:, right:] == second[:, : height - down, : width - right]
