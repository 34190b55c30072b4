"""The numbers and images of the picture: a run's strides, a photograph, and a pooling of it."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_sample_image

from diffstride_hybrid import DiffStride, spectral
from diffstride_hybrid.common.files import read_rows

SIZE = 128
"""Height and width of the photograph, in samples."""


class StrideCourse(NamedTuple):
    """The strides of one layer while it was trained.

    Attributes:
        layer: path of the layer in its model.
        epochs: finished epochs, 0 for the start of the training.
        strides: float32 `[epochs, 2]`, vertical and horizontal.
    """

    layer: str
    epochs: np.ndarray
    strides: np.ndarray

    @property
    def before(self) -> np.ndarray:
        """The strides before training, `[2]`."""
        return self.strides[0]

    @property
    def after(self) -> np.ndarray:
        """The strides after training, `[2]`."""
        return self.strides[-1]


class Pooling(NamedTuple):
    """A photograph pooled by DiffStride, and the window that pooled it.

    Attributes:
        strides: `[2]`, vertical and horizontal.
        image: float32 `[height, width, 3]`, from 0 to 1, the smaller image.
        row_weights: `[SIZE]`, the window's weight at the frequencies `-SIZE / 2` to `SIZE / 2 - 1` along a column.
        column_weights: `[SIZE]`, the same along a row.
    """

    strides: np.ndarray
    image: np.ndarray
    row_weights: np.ndarray
    column_weights: np.ndarray


def read_courses(workdir: pathlib.Path) -> list[StrideCourse]:
    """Reads how the strides of a run went from its `strides.csv`.

    Args:
        workdir: folder of a run.

    Returns:
        One course for each layer with trained strides, in the order of the model.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: `strides.csv` is damaged, has no strides, or has none yet from after an epoch.
    """
    if not workdir.is_dir():
        raise FileNotFoundError(f"There is no folder {workdir}: --workdir must be the folder of a finished run.")
    path = workdir / "strides.csv"
    rows = read_rows(path)
    names = rows[0] if rows else {}
    layers = [name.removesuffix("/vertical_stride") for name in names if name.endswith("/vertical_stride")]
    if not layers or len(rows) < 2:
        raise ValueError(
            f"{path} has no strides from before and after training: --workdir must be the folder of a run that has "
            "finished an epoch with pooling_cls = @pooling.DiffStride."
        )
    try:
        return [_course(layer, rows) for layer in layers]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): take the folder of another run.") from error


def _course(layer: str, rows: list[dict[str, str]]) -> StrideCourse:
    ways = ("vertical", "horizontal")
    strides = [[float(row[f"{layer}/{way}_stride"]) for way in ways] for row in rows]
    return StrideCourse(layer, np.array([int(row["epoch"]) for row in rows]), np.array(strides, "float32"))


def furthest_moved(courses: list[StrideCourse]) -> StrideCourse:
    """The layer whose strides changed most, by the ratio of the sizes before and after training."""
    return max(courses, key=lambda course: np.abs(np.log(course.after / course.before)).sum())


def photograph() -> np.ndarray:
    """Scikit-learn's photograph of a flower, cut to a square and reduced to `[SIZE, SIZE, 3]`, float32, 0 to 1."""
    factor, top, left = 3, 29, 116
    side = factor * SIZE
    square = load_sample_image("flower.jpg")[top : top + side, left : left + side]
    return (square.reshape(SIZE, factor, SIZE, factor, 3).mean((1, 3)) / 255).astype("float32")


def spectrum(image: np.ndarray) -> np.ndarray:
    """Mean magnitude of an image's DFT over its channels, in decibels of the greatest, with frequency 0 in the middle.

    Args:
        image: `[height, width, channels]`.

    Returns:
        `[height, width]`, at most 0.
    """
    magnitude = np.abs(np.fft.fft2(image, axes=(0, 1))).mean(-1)
    return np.fft.fftshift(20 * np.log10(magnitude / magnitude.max() + 1e-6))


def pooled(image: np.ndarray, strides: np.ndarray) -> Pooling:
    """Pools an image with the layer `DiffStride` and reads the window that the layer uses.

    Args:
        image: float32 `[SIZE, SIZE, 3]`.
        strides: `[2]`, vertical and horizontal, at least 1.

    Returns:
        The smaller image and the window.
    """
    layer = DiffStride(strides=strides.tolist(), mask="symmetric", norm="forward")
    smaller = np.asarray(layer(image[None]))[0]
    rows, columns = spectral.diffstride_windows(
        *image.shape[:2],
        layer.strides.numpy(),
        smoothness_factor=layer.smoothness_factor,
        cropping=False,
        lower_limit_stride=layer.lower_limit_stride,
        upper_limit_stride=layer.upper_limit_stride,
        mask=layer.mask,
    )
    # The window over columns lists the frequencies from 0 on: the negative ones weigh the same.
    frequencies = np.arange(image.shape[1]) - image.shape[1] // 2
    return Pooling(
        layer.strides.numpy(),
        np.clip(smaller, 0, 1),
        np.fft.fftshift(rows.weights.numpy()),
        columns.weights.numpy()[np.abs(frequencies)],
    )
