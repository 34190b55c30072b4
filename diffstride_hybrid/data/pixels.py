"""Single images: normalize them for a network, fit them to a size, bring them to 8 bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


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

    Example:
        >>> fit_to_size(np.full([256, 128, 1], 9.0), (4, 4)).numpy()[0, :, 0]
        array([0, 9, 9, 0], dtype=uint8)
    """
    # Whole numbers: TensorFlow's resize_with_pad divides in float32, and shrinks 256x256 to 223x223 for 224x224.
    target_height, target_width = tf.unstack(tf.constant(size, tf.int64))
    height, width = tf.unstack(tf.shape(image, tf.int64)[:2])
    is_tall = height * target_width >= width * target_height
    new_height = tf.where(is_tall, target_height, tf.maximum(height * target_width // width, 1))
    new_width = tf.where(is_tall, tf.maximum(width * target_height // height, 1), target_width)
    resized = tf.image.resize(image, tf.cast([new_height, new_width], tf.int32), antialias=True)
    spare_height = (target_height * width - height * target_width) // (2 * width)
    spare_width = (target_width * height - width * target_height) // (2 * height)
    above, left = tf.maximum(spare_height, 0), tf.maximum(spare_width, 0)
    padded = tf.image.pad_to_bounding_box(resized, tf.cast(above, tf.int32), tf.cast(left, tf.int32), *size)
    return tf.cast(tf.round(tf.clip_by_value(padded, 0, 255)), tf.uint8)


def to_8_bits(values: tf.Tensor) -> tf.Tensor:
    """Scales integers from 0..65535 to 0..255 and rounds them.

    Args:
        values: integers of 16 bits, of any shape.

    Returns:
        uint8 tensor of the same shape.

    Example:
        >>> to_8_bits([0, 20_000, 40_000, 65_535]).numpy()
        array([  0,  78, 156, 255], dtype=uint8)
    """
    return tf.cast(tf.round(tf.cast(values, tf.float32) / 257), tf.uint8)
