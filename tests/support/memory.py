"""The memory of a training step."""

import statistics

import keras
import tensorflow as tf

from diffstride_hybrid.backends import current


def median_peak_megabytes(model: keras.Model, images: tf.Tensor) -> float:
    """The median of nine peaks of a compiled forward and backward pass.

    Each peak depends on the order of the kernels, and is too low if a thread of an earlier test frees memory meanwhile.
    """

    @tf.function(autograph=False)
    def step() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(images, training=True) ** 2)
        return tape.gradient(loss, model.trainable_variables)

    step()
    return statistics.median(current.peak_megabytes(step) for _ in range(9))
