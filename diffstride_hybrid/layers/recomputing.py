"""Parts of a residual network that keep less for the backward pass, in which they compute some maps again."""

from __future__ import annotations

import functools
from collections.abc import Callable

import keras
from keras.src.backend.common.stateless_scope import get_stateless_scope

from diffstride_hybrid.backends import current
from diffstride_hybrid.layers.diffstride import DiffStride
from diffstride_hybrid.layers.normalization import FusedBatchNormalization
from diffstride_hybrid.spectral.options import Tensor

if current.NAME == "tensorflow":
    from diffstride_hybrid.layers.fused_kernel import recomputed, recomputing_convolution
else:
    recomputed = recomputing_convolution = None


def activated_convolution(
    norm: keras.layers.Layer,
    convolution: keras.layers.Layer,
    inputs: Tensor,
    training: bool | None,
    pooling: keras.layers.Layer | None = None,
) -> Tensor:
    """`convolution(relu(norm(inputs)))`, and a pooling of it, in half of the memory if TensorFlow's kernels can serve.

    A training step keeps what the gradients need: the inputs of `norm`, its activated outputs for the convolution, and
    spectra for the gradient to the strides of a `DiffStride`. By TensorFlow's kernels the inputs alone are kept. The
    others are computed again in the backward pass: the activation at the cost of a pass over the map, the spectra at
    the cost of the convolution and the pooling.

    Args:
        norm: a built layer. A `FusedBatchNormalization` lets the kernels serve.
        convolution: a built layer. A plain `keras.layers.Conv2D` without a bias lets them serve.
        inputs: the input of `norm`.
        training: whether the batch's own statistics are used.
        pooling: a built layer that pools the output of the convolution, or None.

    Returns:
        The output of the last layer.

    Example:
        >>> from diffstride_hybrid.layers.recomputing import activated_convolution
        >>> norm, convolution = FusedBatchNormalization(), keras.layers.Conv2D(4, 3, padding="same", use_bias=False)
        >>> norm.build((None, 8, 8, 3)), convolution.build((None, 8, 8, 3))
        (None, None)
        >>> activated_convolution(norm, convolution, keras.ops.ones([2, 8, 8, 3]), training=True).shape
        TensorShape([2, 8, 8, 4])
    """
    outputs, again = None, _to_compute_again(pooling, training)
    # A subclass may compute something else in a call of its own.
    is_fused = type(norm).call is FusedBatchNormalization.call
    if training and recomputing_convolution is not None and is_fused:
        outputs = recomputing_convolution(norm, convolution, inputs, again)
        if outputs is not None and again is not None:
            return outputs
    if outputs is None:
        outputs = convolution(keras.ops.relu(norm(inputs, training=training)))
    return outputs if pooling is None else pooling(outputs)


def recomputed_pooling(pooling: keras.layers.Layer, inputs: Tensor, training: bool | None) -> Tensor:
    """`pooling(inputs)`, of which a training step on TensorFlow keeps nothing but `inputs`.

    It saves memory if something else keeps `inputs` anyway.

    Args:
        pooling: a built layer.
        inputs: its input.
        training: whether this is part of a training step.

    Returns:
        The pooled maps.
    """
    again = _to_compute_again(pooling, training)
    return pooling(inputs) if again is None else recomputed(again, inputs)


def _to_compute_again(pooling: keras.layers.Layer | None, training: bool | None) -> Callable[[Tensor], Tensor] | None:
    """The call of a pooling whose gradient needs spectra. None if it needs none, or if somebody watches the calls."""
    if not training or recomputed is None or not isinstance(pooling, DiffStride):
        return None
    if not pooling.trainable or "call" in vars(pooling):
        return None
    if get_stateless_scope() is not None:
        return None  # The backward pass would compute again with the layer's own strides.
    # In the backward pass Keras does not know that this is training, so the call says so.
    return functools.partial(pooling, training=True)
