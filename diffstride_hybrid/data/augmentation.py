"""Augmentation of training images: shifts, flips and mixup, as functions of random numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from diffstride_hybrid.common.arguments import is_whole

AugmentFn = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""Takes images `[batch, height, width, channels]` and random numbers `[batch, 2]`, returns images of the same shape.

The numbers are int64, at least 0, and an image gets the same ones whatever part of the batch it comes in. Each pair can
seed `tf.image.stateless_…`.
"""

MIXUPS = ("pairs", "batch")


def augment(images: tf.Tensor, numbers: tf.Tensor, pad_size: int = 2, flip: bool = True) -> tf.Tensor:
    """Shifts each image by up to `pad_size` pixels along each axis and mirrors half of them.

    Args:
        images: `[batch, height, width, channels]`, normalised. What is shifted in is 0, the mean.
        numbers: `[batch, 2]`, int64, random, see `AugmentFn`.
        pad_size: greatest shift.
        flip: whether to mirror left and right.

    Returns:
        Images of the same shape.
    """
    if not is_whole(pad_size, least=0):
        raise ValueError(f"data.augment.pad_size must be a whole number of at least 0, got {pad_size!r}.")
    height, width = images.shape[1:3]
    choices = 2 * pad_size + 1
    rows, columns = (tf.cast(number % choices, tf.int32) for number in tf.split(numbers, 2, axis=1))
    padded = tf.pad(images, [[0, 0], [pad_size, pad_size], [pad_size, pad_size], [0, 0]])
    columns += tf.range(width)
    if flip:
        mirrored = numbers[:, :1] // choices % 2 == 0
        columns = tf.where(mirrored, tf.reverse(columns, [1]), columns)
    shifted = tf.gather(padded, rows + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(shifted, columns, axis=2, batch_dims=1)


def mix_up(
    images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, mixup: str = "pairs"
) -> tuple[tf.Tensor, tf.Tensor]:
    """Replaces images and labels by convex combinations of two (Zhang et al., arXiv 1710.09412).

    Args:
        images: `[images, height, width, channels]`.
        labels: `[images, classes]`.
        weights: one for each image that results, of the first of the two.
        mixup: 'pairs' mixes image 2 i with image 2 i + 1 into one, which halves the batch; 'batch' mixes each of these
            two with the other one.

    Returns:
        Mixed images and labels.
    """

    def mixed(values: tf.Tensor) -> tf.Tensor:
        first, second = values[0::2], values[1::2]
        if mixup == "batch":
            count = tf.shape(values)[0]
            # The last one of an odd number stays as it is.
            others = tf.minimum(tf.bitwise.bitwise_xor(tf.range(count), 1), count - 1)
            first, second = values, tf.gather(values, others)
        weight = tf.reshape(weights, [-1] + [1] * (values.shape.rank - 1))
        return second + weight * (first - second)

    return mixed(images), mixed(labels)


def mixup_weights(count: int, seed: tf.Tensor, alpha: float) -> tf.Tensor:
    """Samples of Beta(alpha, alpha), from gamma variates in logarithms: for small alpha the variates underflow."""
    seeds = tf.random.experimental.stateless_split(seed, 2)
    gamma = tf.random.stateless_gamma([2, count], seeds[0], alpha + 1.0)
    uniform = tf.random.stateless_uniform([2, count], seeds[1], minval=np.finfo(np.float32).tiny)
    log_gamma = tf.math.log(gamma) + tf.math.log(uniform) / alpha
    return tf.sigmoid(log_gamma[0] - log_gamma[1])


def check_augmentation(augment_fn: AugmentFn, shape: tuple[int, ...]) -> None:
    specs = tf.TensorSpec(shape, tf.float32), tf.TensorSpec([shape[0], 2], tf.int64)
    augmented = tf.function(augment_fn, autograph=False).get_concrete_function(*specs).structured_outputs
    if not augmented.shape.is_compatible_with(shape):
        raise ValueError(
            f"data.load_datasets.augment_fn must keep the shape of its images, {shape}, got {tuple(augmented.shape)}."
        )
