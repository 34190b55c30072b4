"""Batch normalization of a Keras layer by TensorFlow's kernel `FusedBatchNormV3`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf


def normalized(
    layer: keras.layers.BatchNormalization,
    plain_call: Callable[..., tf.Tensor],
    inputs: tf.Tensor,
    training: bool | None,
    mask: Any,
) -> tf.Tensor:
    """What a layer gives, by the fused kernel if it can serve.

    Args:
        layer: a built layer.
        plain_call: Keras's own computation, called with `inputs`, `training` and `mask`.
        inputs: the layer's input.
        training: whether the batch's own statistics are used.
        mask: the layer's mask, or None.

    Returns:
        The normalized maps.
    """
    train = bool(training) and layer.trainable
    averages = (layer.moving_mean, layer.moving_variance)
    if mask is not None or not _fuses(layer, inputs):
        outputs = plain_call(inputs, training=training, mask=mask)
        if train and not layer.synchronized:
            for average, mean in zip(averages, _mean_over_replicas(list(map(tf.convert_to_tensor, averages)))):
                average.assign(mean)
        return outputs
    channels = inputs.shape[layer.axis]
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=tf.convert_to_tensor(layer.gamma) if layer.scale else tf.ones([channels]),
        offset=tf.convert_to_tensor(layer.beta) if layer.center else tf.zeros([channels]),
        mean=[] if train else tf.convert_to_tensor(layer.moving_mean),
        variance=[] if train else tf.convert_to_tensor(layer.moving_variance),
        epsilon=layer.epsilon,
        data_format="NHWC" if _is_channels_last(layer, inputs) else "NCHW",
        is_training=train,
    )
    if train:
        # The kernel returns the unbiased variance; Keras averages the biased one.
        variance *= 1.0 - channels / tf.cast(tf.size(inputs), tf.float32)
        mean, variance = _mean_over_replicas([mean, variance])
        for average, batch_value in zip(averages, (mean, variance)):
            average.value.assign_sub((tf.convert_to_tensor(average) - batch_value) * (1.0 - layer.momentum))
    return outputs


def _fuses(layer: keras.layers.BatchNormalization, inputs: tf.Tensor) -> bool:
    """Whether the fused kernel can serve these inputs."""
    renorm = getattr(layer, "renorm", False)  # Keras has this option from 3.14 on.
    if layer.synchronized or renorm or inputs.shape.rank != 4 or inputs.shape[layer.axis] is None:
        return False
    if inputs.dtype not in (tf.float32, tf.float16, tf.bfloat16) or layer.variable_dtype != "float32":
        return False
    return _is_channels_last(layer, inputs) or (layer.axis == 1 and bool(tf.config.list_physical_devices("GPU")))


def _is_channels_last(layer: keras.layers.BatchNormalization, inputs: tf.Tensor) -> bool:
    return layer.axis in (-1, inputs.shape.rank - 1)


def _mean_over_replicas(statistics: list[tf.Tensor]) -> list[tf.Tensor]:
    """Averages statistics over all replicas, which normalize each by its own images but share the moving averages."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return statistics
    return replica.all_reduce(tf.distribute.ReduceOp.MEAN, statistics)
