"""Augmentation of training images: shifts, flips and mixup, as functions of random numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from diffstride_hybrid.common.arguments import validated_flag, validated_whole

AugmentFn = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""Takes images `[batch, height, width, channels]` and random numbers `[batch, 2]`, returns images of the same shape.

The numbers are int64 and at least 0. An image gets the same two numbers whatever part of the batch is augmented
together with it. The two numbers can seed `tf.image.stateless_random_crop` and its like.
"""

MIXUPS = ("pairs", "batch")


def augment(images: tf.Tensor, numbers: tf.Tensor, pad_size: int = 2, flip: bool = True) -> tf.Tensor:
    """Shifts each image by up to `pad_size` pixels along each axis and mirrors half of the images.

    Pixels that are shifted in from outside are 0, which is the mean of normalized images.

    Args:
        images: `[batch, height, width, channels]`, float32, normalized.
        numbers: `[batch, 2]`, int64, at least 0, random: they choose shifts and mirroring, so the same numbers give
            the same images.
        pad_size: the largest shift, in pixels.
        flip: whether to mirror half of the images left to right.

    Returns:
        Images of the shape and dtype of `images`.

    Raises:
        ValueError: `pad_size` is not a whole number of at least 0.
        TypeError: `flip` is neither True nor False.

    Example:
        >>> images = tf.ones([8, 32, 32, 3])
        >>> numbers = tf.random.stateless_uniform([8, 2], [1, 2], 0, tf.int64.max, tf.int64)
        >>> augment(images, numbers).shape
        TensorShape([8, 32, 32, 3])
    """
    validated_whole("data.augment.pad_size", pad_size, least=0)
    validated_flag("data.augment.flip", flip)
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
    """Replaces images and labels by convex combinations of two images and their labels (mixup).

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", arXiv 1710.09412.

    Args:
        images: `[images, height, width, channels]`, float32.
        labels: `[images, classes]`, float32.
        weights: float32, one for each resulting image: the weight of the first of its two images. 'pairs' needs half
            as many weights as there are images, 'batch' as many.
        mixup: 'pairs' mixes image 2 i with image 2 i + 1 into one image, which halves the batch; 'batch' mixes each of
            these two with the other and keeps both results.

    Returns:
        Mixed images and mixed labels, in the dtypes of `images` and `labels`.

    Example:
        >>> images, labels = mix_up(tf.ones([4, 8, 8, 1]), tf.eye(4), tf.constant([0.25, 0.5]))
        >>> images.shape, labels.shape
        (TensorShape([2, 8, 8, 1]), TensorShape([2, 4]))
    """

    def mixed(values: tf.Tensor) -> tf.Tensor:
        first, second = values[0::2], values[1::2]
        if mixup == "batch":
            count = tf.shape(values)[0]
            # In a batch of odd size the last image has no partner: it is mixed with itself.
            others = tf.minimum(tf.bitwise.bitwise_xor(tf.range(count), 1), count - 1)
            first, second = values, tf.gather(values, others)
        weight = tf.reshape(weights, [-1] + [1] * (values.shape.rank - 1))
        return second + weight * (first - second)

    return mixed(images), mixed(labels)


def mixup_weights(count: int, seed: tf.Tensor, alpha: float) -> tf.Tensor:
    """Samples mixup weights from the distribution Beta(alpha, alpha).

    A beta variate is the quotient of gamma variates. These are kept as logarithms, because for small `alpha` the
    variates themselves underflow. The step from alpha + 1 to alpha is by Marsaglia and Tsang, "A Simple Method for
    Generating Gamma Variables" (2000).

    Args:
        count: how many samples.
        seed: `[2]`, integers.
        alpha: parameter of the distribution, above 0.

    Returns:
        `[count]`, float32, from 0 to 1.
    """
    seeds = tf.random.experimental.stateless_split(seed, 2)
    gamma = tf.random.stateless_gamma([2, count], seeds[0], alpha + 1.0)
    uniform = tf.random.stateless_uniform([2, count], seeds[1], minval=np.finfo(np.float32).tiny)
    log_gamma = tf.math.log(gamma) + tf.math.log(uniform) / alpha
    return tf.sigmoid(log_gamma[0] - log_gamma[1])


def check_augmentation(augment_fn: AugmentFn, shape: tuple[int, ...]) -> None:
    """Traces an augmentation once, so that a mistake in it is found before training starts.

    Args:
        augment_fn: takes images and random numbers, returns images.
        shape: (batch, height, width, channels) of a training batch.

    Raises:
        ValueError: the augmentation changes the shape of its images.
    """
    specs = tf.TensorSpec(shape, tf.float32), tf.TensorSpec([shape[0], 2], tf.int64)
    augmented = tf.function(augment_fn, autograph=False).get_concrete_function(*specs).structured_outputs
    if not augmented.shape.is_compatible_with(shape):
        raise ValueError(
            f"data.load_datasets.augment_fn must keep the shape of its images, {shape}, got {tuple(augmented.shape)}."
        )
