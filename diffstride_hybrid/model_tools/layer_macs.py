"""The multiply-accumulate operations (MACs) of one call of one layer of Keras."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from diffstride_hybrid.layers.fourier_pooling import FourierPooling
from diffstride_hybrid.layers.spatial_pooling import SpatialPooling
from diffstride_hybrid.model_tools.inspection import first_argument

_CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)

_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)

_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)

_RECURRENT = (keras.layers.RNN, keras.layers.ConvLSTM1D, keras.layers.ConvLSTM2D, keras.layers.ConvLSTM3D)

_PROJECTED_ATTENTION = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)

# The oldest Keras that is supported has no such layer.
_REVERSIBLE = tuple(filter(None, [getattr(keras.layers, "ReversibleEmbedding", None)]))

WITHOUT_PRODUCTS = (
    keras.layers.BatchNormalization,
    keras.layers.Embedding,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.Normalization,
    keras.layers.PReLU,
    keras.layers.SpectralNormalization,
)
"""Layers whose weights may look like a kernel, and which multiply no more than element by element."""


def counter_of(layer: keras.layers.Layer) -> Callable[..., int] | None:
    """Finds the function that counts the operations of a layer. Those of layers in it do not count.

    Args:
        layer: a built layer.

    Returns:
        A function of the arguments of the layer's `call` and, as `outputs`, of its result, all with a batch axis of
        one. It returns multiply-accumulate operations. None if the layer is of no class that is known here.
    """
    if not isinstance(layer, keras.Model) and callable(getattr(layer, "macs", None)):
        return lambda *args, outputs, **kwargs: layer.macs(shape_of(first_argument(args, kwargs)), shape_of(outputs))
    counter = next((count for classes, count in _COUNTERS if isinstance(layer, classes)), None)
    if counter is None or (counter is _recurrent and not all(map(_is_known_cell, cells_of(layer)))):
        return None

    def count(*args: Any, outputs: Any, **kwargs: Any) -> int:
        given = inspect.signature(type(layer).call).bind(layer, *args, **kwargs).arguments
        tensors = [value for name, value in given.items() if name != "self"]
        return counter(layer, tensors, shape_of(outputs))

    return count


def shape_of(tensors: Any) -> tuple[int, ...]:
    """The shape of a tensor, or of the first of several, without the batch axis.

    Args:
        tensors: a tensor or a structure of tensors.
    """
    return tuple(keras.tree.flatten(tensors)[0].shape[1:])


def cells_of(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """The cells of a recurrent layer, those of stacked cells one by one. Other layers have none.

    Args:
        layer: any layer.
    """
    if isinstance(layer, _RECURRENT):
        yield from getattr(layer.cell, "cells", [layer.cell])


def _is_known_cell(cell: keras.layers.Layer) -> bool:
    known = (keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell)
    # Keras shows the class of the cells of ConvLSTM by no public name.
    return isinstance(cell, known) or type(cell).__name__ == "ConvLSTMCell"


def _convolution(layer: keras.layers.Layer, tensors: Sequence[Any], output_shape: tuple[int, ...]) -> int:
    return _positions(layer, output_shape) * math.prod(layer.kernel.shape)


def _transposed(layer: keras.layers.Layer, tensors: Sequence[Any], output_shape: tuple[int, ...]) -> int:
    return _positions(layer, shape_of(tensors[0])) * math.prod(layer.kernel.shape)


def _separable(layer: keras.layers.Layer, tensors: Sequence[Any], output_shape: tuple[int, ...]) -> int:
    kernels = layer.depthwise_kernel, layer.pointwise_kernel
    return _positions(layer, output_shape) * sum(math.prod(kernel.shape) for kernel in kernels)


def _positions(layer: keras.layers.Layer, shape: tuple[int, ...]) -> int:
    return math.prod(shape[1:] if layer.data_format == "channels_first" else shape[:-1])


def _dense(layer: keras.layers.Layer, tensors: Sequence[Any], output_shape: tuple[int, ...]) -> int:
    return math.prod(output_shape) * shape_of(tensors[0])[-1]


def _einsum_dense(layer: keras.layers.Layer, tensors: Sequence[Any], output_shape: tuple[int, ...]) -> int:
    """An axis of the kernel that the input has too is the same axis, so each entry of the input meets the others."""
    inputs, kernel = layer.equation.replace(" ", "").split("->")[0].split(",")
    others = (length for label, length in zip(kernel, layer.kernel.shape) if label not in inputs)
    return math.prod(shape_of(tensors[0])) * math.prod(others)


def _fourier_pooling(layer: keras.layers.Layer, tensors: Sequence[Any], output_shape: tuple[int, ...]) -> int:
    return layer.matmul_macs(shape_of(tensors[0]), output_shape)


def _spatial_pooling(layer: keras.layers.Layer, tensors: Sequence[Any], output_shape: tuple[int, ...]) -> int:
    return math.prod(output_shape) * math.prod(layer.pool_size)


def _recurrent(layer: keras.layers.Layer, tensors: Sequence[Any], output_shape: tuple[int, ...]) -> int:
    """Each step multiplies the input by one kernel and the state by another, at each position of a ConvLSTM's map."""
    steps, total = shape_of(tensors[0])[0], 0
    for cell in cells_of(layer):
        rank = len(cell.kernel.shape) - 2
        channels_first = getattr(cell, "data_format", None) == "channels_first"
        positions = math.prod((output_shape if channels_first else output_shape[:-1])[-rank:] if rank else ())
        total += positions * (math.prod(cell.kernel.shape) + math.prod(cell.recurrent_kernel.shape))
    return steps * total


def _projected_attention(layer: keras.layers.Layer, tensors: Sequence[Any], output_shape: tuple[int, ...]) -> int:
    """Scores and their sums over the values. The projections are layers of their own."""
    config = layer.get_config()
    query, value = tensors[0].shape, tensors[1].shape
    axes = config.get("attention_axes") or range(1, len(query) - 1)
    key_size = config.get("key_dim", config.get("head_dim"))
    value_size = config.get("value_dim") or key_size
    heads = config.get("num_heads", config.get("num_query_heads"))
    return math.prod(query[1:-1]) * math.prod(value[axis] for axis in axes) * heads * (key_size + value_size)


def _attention(layer: keras.layers.Layer, tensors: Sequence[Any], output_shape: tuple[int, ...]) -> int:
    query, value = (tensor.shape for tensor in tensors[0][:2])
    return math.prod(query[1:-1]) * math.prod(value[1:-1]) * (query[-1] + value[-1])


def _reversible_embedding(layer: keras.layers.Layer, tensors: Sequence[Any], output_shape: tuple[int, ...]) -> int:
    """Looks numbers up, which costs nothing, or multiplies by the table to turn vectors into logits."""
    is_reversed = len(tensors) > 1 and bool(tensors[1])
    return math.prod(shape_of(tensors[0])) * output_shape[-1] if is_reversed else 0


def _dot(layer: keras.layers.Layer, tensors: Sequence[Any], output_shape: tuple[int, ...]) -> int:
    axes = layer.axes if isinstance(layer.axes, int) else layer.axes[0]
    return math.prod(output_shape) * tensors[0][0].shape[axes]


_COUNTERS: tuple[tuple[Any, Callable[..., int]], ...] = (
    (FourierPooling, _fourier_pooling),
    (SpatialPooling, _spatial_pooling),
    (_TRANSPOSED, _transposed),
    (_SEPARABLE, _separable),
    (_CONVOLUTIONS, _convolution),
    (keras.layers.Dense, _dense),
    (keras.layers.EinsumDense, _einsum_dense),
    (_RECURRENT, _recurrent),
    (_PROJECTED_ATTENTION, _projected_attention),
    ((keras.layers.Attention, keras.layers.AdditiveAttention), _attention),
    (keras.layers.Dot, _dot),
    (_REVERSIBLE, _reversible_embedding),
)
