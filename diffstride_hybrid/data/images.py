"""Image files and single images: find and read them, fit them to a size, normalize them for a network."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf


def normalised(images: tf.Tensor, mean: Sequence[float], std: Sequence[float]) -> tf.Tensor:
    """Images as a network takes them.

    Args:
        images: `[..., channels]`, 0..255.
        mean: of each channel, images scaled to 0..1, subtracted.
        std: of each channel, divided by.

    Returns:
        float32 of the same shape.
    """
    mean, std = (np.asarray(statistic, np.float32) for statistic in (mean, std))
    return tf.cast(images, tf.float32) * (1 / (255 * std)) - mean / std


def fitted(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """An image resized until it fits into a size, with black where its sides are of another ratio.

    Args:
        image: `[height, width, channels]`, 0..255.
        size: (height, width).

    Returns:
        uint8 image.
    """
    image = tf.image.resize_with_pad(image, *size, antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(image, 0, 255)), tf.uint8)


SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
"""Which files of a folder are images."""


def find_images(names: Iterable[str | os.PathLike[str]]) -> list[pathlib.Path]:
    """The files that are meant.

    Args:
        names: files, whatever they are called, or folders, which stand for the images in them.

    Returns:
        Paths, those of a folder in the order of their names.

    Raises:
        FileNotFoundError: a name does not exist, or a folder has no images.
    """
    found: list[pathlib.Path] = []
    for path in map(pathlib.Path, names):
        if not path.exists():
            raise FileNotFoundError(f"There is no {path}: give image files, or folders of them.")
        if path.is_file():
            found.append(path)
            continue
        images = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES and entry.is_file())
        if not images:
            raise FileNotFoundError(f"There is no image in {path}: a file's name must end in {', '.join(SUFFIXES)}.")
        found += images
    return found


def read_image(path: pathlib.Path, image_shape: Sequence[int]) -> np.ndarray:
    """Reads an image, upright, in grey or in colour as needed, resized to fit as images of a data set are.

    Args:
        path: of a file in any format that Pillow reads. Of several frames the first one is taken.
        image_shape: (height, width, channels) of the result, of one channel or three.

    Returns:
        uint8 `[height, width, channels]`.

    Raises:
        ValueError: the file is not an image, or the channels are neither one nor three.
    """
    from PIL import Image, ImageOps

    *size, channels = image_shape
    if channels not in (1, 3):
        raise ValueError(f"An image file has one channel or three, and the network takes {channels}.")
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # Of 16 bits, which Pillow would cut off at 255.
                image = Image.fromarray((np.asarray(image) / 257).round().astype("uint8"))
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}.") from error
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    return pixels if pixels.shape == tuple(image_shape) else fitted(pixels, tuple(size)).numpy()
