"""Batch normalization by TensorFlow's fused kernel, if there is TensorFlow, and an activated convolution behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from diffstride_hybrid.backends import current
from diffstride_hybrid.common.registration import register
from diffstride_hybrid.spectral.options import Tensor

if current.NAME == "tensorflow":
    from diffstride_hybrid.layers.fused_kernel import normalized, recomputing_convolution
else:
    recomputing_convolution = None

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


def activated_convolution(
    norm: keras.layers.Layer, convolution: keras.layers.Layer, inputs: Tensor, training: bool | None
) -> Tensor:
    """`convolution(relu(norm(inputs)))`, in half of the memory if TensorFlow's kernels can serve.

    A training step keeps what the gradients need: the inputs of `norm`, and its activated outputs for the convolution.
    By TensorFlow's kernels the outputs are computed again in the backward pass, at the cost of a pass over the map.

    Args:
        norm: a built layer. A `FusedBatchNormalization` lets the kernels serve.
        convolution: a built layer. A plain `keras.layers.Conv2D` without a bias lets them serve.
        inputs: the input of `norm`.
        training: whether the batch's own statistics are used.

    Returns:
        The output of `convolution`.

    Example:
        >>> from diffstride_hybrid.layers.normalization import activated_convolution
        >>> norm, convolution = FusedBatchNormalization(), keras.layers.Conv2D(4, 3, padding="same", use_bias=False)
        >>> norm.build((None, 8, 8, 3)), convolution.build((None, 8, 8, 3))
        (None, None)
        >>> activated_convolution(norm, convolution, keras.ops.ones([2, 8, 8, 3]), training=True).shape
        TensorShape([2, 8, 8, 4])
    """
    if training and recomputing_convolution is not None and isinstance(norm, FusedBatchNormalization):
        outputs = recomputing_convolution(norm, convolution, inputs)
        if outputs is not None:
            return outputs
    return convolution(keras.ops.relu(norm(inputs, training=training)))
