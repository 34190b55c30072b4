"""Batch normalization by TensorFlow's fused kernel, if there is TensorFlow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from diffstride_hybrid.backends import current
from diffstride_hybrid.common.registration import register

if current.NAME == "tensorflow":
    from diffstride_hybrid.layers.fused_kernel import normalized
else:

    def normalized(layer: Any, plain_call: Callable[..., Any], inputs: Any, training: Any, mask: Any) -> Any:
        """Normalizes by Keras's own operations."""
        return plain_call(inputs, training=training, mask=mask)


@register
class FusedBatchNormalization(keras.layers.BatchNormalization):
    """Keras's batch normalization, computed by `FusedBatchNormV3` if that kernel can serve.

    Keras 3 computes batch normalization in several operations, and in half precision casts the whole map to float32 and
    back. The fused kernel takes float32, float16 and bfloat16, holds statistics in float32 and gives the same result to
    rounding. It serves four-dimensional inputs without a mask whose channels lie where the device's kernel wants them.
    Keras computes everything else: float64, `synchronized`, `renorm`, channels in axis 1 on a CPU, and all on JAX and
    PyTorch, which fuse the operations themselves or have a kernel that Keras calls.

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

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        return normalized(self, super().call, inputs, training, mask)
