"""Counts the multiply-accumulate operations (MACs) of a model as its strides stand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from diffstride_hybrid.layers.fourier_pooling import FourierPooling
from diffstride_hybrid.layers.spatial_pooling import SpatialPooling
from diffstride_hybrid.model_tools.inspection import leaf_layers, run_blank, watched_calls


class LayerCost(NamedTuple):
    """One call of one layer on one image.

    Attributes:
        layer: the layer. A layer that is called twice has two entries.
        input_shape: of the image's feature map, without the batch axis.
        output_shape: likewise.
        macs: multiply-accumulate operations.
    """

    layer: keras.layers.Layer
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int

    @property
    def is_pooling(self) -> bool:
        """Whether the layer is one of this package's poolings."""
        return isinstance(self.layer, (FourierPooling, SpatialPooling))


class ModelCost(NamedTuple):
    """The costs of a model for one image, in the order in which its layers run.

    Attributes:
        layers: an entry for every convolution, dense layer and pooling of this package.
    """

    layers: list[LayerCost]

    @property
    def macs(self) -> int:
        """Of convolutions and dense layers: the figure that papers compare."""
        return sum(cost.macs for cost in self.layers if not cost.is_pooling)

    @property
    def pooling_macs(self) -> int:
        """Of the poolings' own matrix products, which `macs` leaves out."""
        return sum(cost.macs for cost in self.layers if cost.is_pooling)

    def pooling_sizes(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Input and output (height, width) of every pooling, by the layer's path, in the order of the model."""
        sizes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        for cost in self.layers:
            if cost.is_pooling:
                before, after = (cost.layer.spatial_size(shape) for shape in (cost.input_shape, cost.output_shape))
                sizes.setdefault(cost.layer.path, (before, after))
        return sizes


def macs(model: keras.Model, input_shape: Sequence[int] | None = None) -> ModelCost:
    """Counts the multiply-accumulate operations of one forward pass by running one image through the model.

    Dynamic sizes are thus the ones that the trained strides give. Convolutions and dense layers count
    `output positions x kernel positions x input channels x output channels`, poolings of this package the matrix
    products of the 'matmul' engine. Everything else (normalisation, activations, sums) is left out.

    Args:
        model: a built model with one input.
        input_shape: (height, width, channels), or (time, channels) for signals. The model's own where None.

    Returns:
        The costs by layer.

    Raises:
        ValueError: `input_shape` is None and the model's is not known.
    """
    own_shape = getattr(model, "input_shape", None)
    shape = own_shape and own_shape[1:] if input_shape is None else input_shape
    if shape is None or None in shape:
        raise ValueError(f"input_shape must be given for a model of input shape {own_shape}.")
    costs: list[LayerCost] = []

    def count(layer: keras.layers.Layer, inputs: tf.Tensor, outputs: tf.Tensor) -> None:
        shapes = tuple(inputs.shape[1:]), tuple(outputs.shape[1:])
        costs.append(LayerCost(layer, *shapes, _layer_macs(layer, *shapes)))

    with watched_calls([layer for layer in leaf_layers(model) if isinstance(layer, _COUNTED)], count):
        run_blank(model, shape)
    return ModelCost(costs)


_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)

_COUNTED = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    *_TRANSPOSED,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
    keras.layers.Dense,
    FourierPooling,
    SpatialPooling,
)


def _layer_macs(layer: keras.layers.Layer, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
    if isinstance(layer, FourierPooling):
        return layer.matmul_macs(input_shape, output_shape)
    if isinstance(layer, SpatialPooling):
        return math.prod(output_shape) * math.prod(layer.pool_size)
    if isinstance(layer, keras.layers.Dense):
        return math.prod(output_shape) * input_shape[-1]
    if isinstance(layer, _TRANSPOSED):
        output_shape = input_shape
    positions = math.prod(output_shape[1:] if layer.data_format == "channels_first" else output_shape[:-1])
    if isinstance(layer, keras.layers.SeparableConv2D):
        return positions * (math.prod(layer.depthwise_kernel.shape) + math.prod(layer.pointwise_kernel.shape))
    return positions * math.prod(layer.kernel.shape)
