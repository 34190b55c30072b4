"""Batch normalization by TensorFlow's fused kernel."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.common.registration import register


@register
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch normalization, computed by `FusedBatchNormV3` if that kernel can serve.

    Keras 3 computes batch normalization in several operations, and in half precision casts the whole map to float32 and
    back. The fused kernel takes float32, float16 and bfloat16, holds statistics in float32 and gives the same result to
    rounding. It serves four-dimensional inputs without a mask whose channels lie where the device's kernel wants them.
    Keras computes everything else: float64, `synchronized`, `renorm`, and channels in axis 1 on a CPU.

    Arguments and weights are those of `keras.layers.BatchNormalization`. The method is that of Ioffe and Szegedy,
    "Batch normalization", ICML 2015, arXiv 1502.03167.

    Input shape:
        Floating-point, any shape with a known number of channels along `axis`.

    Output shape:
        The input's, in the layer's compute dtype.

    Example:
        >>> FusedBatchNormalization()(np.ones([2, 8, 8, 3]), training=True).shape
        TensorShape([2, 8, 8, 3])
    """

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> tf.Tensor:
        train = bool(training) and self.trainable
        averages = (self.moving_mean, self.moving_variance)
        if mask is not None or not self._fuses(inputs):
            outputs = super().call(inputs, training=training, mask=mask)
            if train and not self.synchronized:
                for average, mean in zip(averages, _mean_over_replicas(list(map(tf.convert_to_tensor, averages)))):
                    average.assign(mean)
            return outputs
        channels = inputs.shape[self.axis]
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.convert_to_tensor(self.gamma) if self.scale else tf.ones([channels]),
            offset=tf.convert_to_tensor(self.beta) if self.center else tf.zeros([channels]),
            mean=[] if train else tf.convert_to_tensor(self.moving_mean),
            variance=[] if train else tf.convert_to_tensor(self.moving_variance),
            epsilon=self.epsilon,
            data_format="NHWC" if self._channels_last(inputs) else "NCHW",
            is_training=train,
        )
        if train:
            # The kernel returns the unbiased variance; Keras averages the biased one.
            count = tf.cast(tf.size(inputs) // channels, tf.float32)
            variance *= tf.maximum(count - 1.0, 1.0) / count
            mean, variance = _mean_over_replicas([mean, variance])
            for average, batch_value in zip(averages, (mean, variance)):
                average.assign(average * self.momentum + batch_value * (1.0 - self.momentum))
        return outputs

    def _fuses(self, inputs: tf.Tensor) -> bool:
        """Whether the fused kernel can serve these inputs."""
        renorm = getattr(self, "renorm", False)  # Keras has this option from 3.14 on.
        if self.synchronized or renorm or inputs.shape.rank != 4 or inputs.shape[self.axis] is None:
            return False
        if inputs.dtype not in (tf.float32, tf.float16, tf.bfloat16) or self.variable_dtype != "float32":
            return False
        return self._channels_last(inputs) or (self.axis == 1 and bool(tf.config.list_physical_devices("GPU")))

    def _channels_last(self, inputs: tf.Tensor) -> bool:
        return self.axis in (-1, inputs.shape.rank - 1)


def _mean_over_replicas(statistics: list[tf.Tensor]) -> list[tf.Tensor]:
    """Averages statistics over all replicas, which normalize each by its own images but share the moving averages."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return statistics
    return replica.all_reduce(tf.distribute.ReduceOp.MEAN, statistics)
