"""The memory of a training step."""

import keras
import tensorflow as tf

from diffstride_hybrid.backends import current


def least_peak_megabytes(model: keras.Model, images: tf.Tensor) -> float:
    """The least of eight peaks of a compiled forward and backward pass: they depend on the order of the kernels."""

    @tf.function(autograph=False)
    def step() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(images, training=True) ** 2)
        return tape.gradient(loss, model.trainable_variables)

    step()
    return min(current.peak_megabytes(step) for _ in range(8))
