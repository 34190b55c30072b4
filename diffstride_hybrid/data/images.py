"""Image files and single images: find and read them, fit them to a size, normalize them for a network."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import tensorflow as tf

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")


def normalize_images(images: tf.Tensor, mean: Sequence[float], std: Sequence[float]) -> tf.Tensor:
    """Scales images to 0..1, subtracts the mean of each channel and divides by its standard deviation.

    Args:
        images: `[..., channels]`, any real dtype, 0..255.
        mean: of each channel, of images scaled to 0..1.
        std: standard deviation of each channel, of images scaled to 0..1.

    Returns:
        float32 tensor of the shape of `images`.

    Example:
        >>> normalize_images(tf.constant([[[0.0]], [[255.0]]]), mean=[0.5], std=[0.25]).numpy().ravel()
        array([-2.,  2.], dtype=float32)
    """
    mean, std = (np.asarray(statistic, np.float32) for statistic in (mean, std))
    return tf.cast(images, tf.float32) * (1 / (255 * std)) - mean / std


def fit_to_size(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Resizes an image until it fits into a size, keeps the ratio of its sides, and fills the rest with black.

    Args:
        image: `[height, width, channels]`, any real dtype, 0..255.
        size: (height, width) of the result, in pixels.

    Returns:
        uint8 tensor `[*size, channels]`.
    """
    image = tf.image.resize_with_pad(image, *size, antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(image, 0, 255)), tf.uint8)


def find_images(names: Iterable[str | os.PathLike[str]]) -> list[pathlib.Path]:
    """Lists the image files that a user names, one by one or by their folder.

    Args:
        names: files of any name, or folders. A folder stands for the files in it whose names end as those of images.

    Returns:
        Paths of files. The files of a folder are sorted by name.

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
        images = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in _SUFFIXES and entry.is_file())
        if not images:
            raise FileNotFoundError(f"There is no image in {path}: a file's name must end in {', '.join(_SUFFIXES)}.")
        found += images
    return found


def read_image(path: pathlib.Path, image_shape: Sequence[int]) -> np.ndarray:
    """Reads an image upright, makes it gray or color as needed, and resizes it as images of a data set are resized.

    Args:
        path: of a file in any format that Pillow reads. Of a file with several frames the first frame is read.
        image_shape: (height, width, channels) of the result, with 1 or 3 channels.

    Returns:
        uint8 array `[height, width, channels]`.

    Raises:
        ValueError: the file is not an image, or `image_shape` has neither 1 nor 3 channels.
    """
    from PIL import Image, ImageOps

    *size, channels = image_shape
    if channels not in (1, 3):
        raise ValueError(f"An image file has one channel or three, and the network takes {channels}.")
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # Pillow would cut off values of 16 bits at 255.
                image = Image.fromarray((np.asarray(image) / 257).round().astype("uint8"))
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}.") from error
    pixels = pixels.reshape(*pixels.shape[:2], channels)
    return pixels if pixels.shape == tuple(image_shape) else fit_to_size(pixels, tuple(size)).numpy()
