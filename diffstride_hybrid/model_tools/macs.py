"""Counts the multiply-accumulate operations (MACs) of a model at its current strides."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from diffstride_hybrid.layers.fourier_pooling import FourierPooling
from diffstride_hybrid.layers.spatial_pooling import SpatialPooling
from diffstride_hybrid.model_tools.inspection import leaf_layers, run_blank, watched_calls


class LayerCost(NamedTuple):
    """The cost of one call of one layer on one image.

    Attributes:
        layer: the layer. A layer that is called twice has two entries.
        input_shape: shape of the layer's input, without the batch axis; of its first input if it has several.
        output_shape: shape of the layer's output, without the batch axis; of its first output if it has several.
        macs: multiply-accumulate operations.
    """

    layer: keras.layers.Layer
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int

    @property
    def is_pooling(self) -> bool:
        """Whether the layer is a pooling of this package."""
        return isinstance(self.layer, (FourierPooling, SpatialPooling))


class ModelCost(NamedTuple):
    """The cost of a model for one image.

    Attributes:
        layers: an entry for every call of a layer that is counted, in the order in which the layers run.
    """

    layers: list[LayerCost]

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations of all layers but the poolings: the figure that papers compare."""
        return sum(cost.macs for cost in self.layers if not cost.is_pooling)

    @property
    def pooling_macs(self) -> int:
        """Multiply-accumulate operations of the poolings, which `macs` leaves out."""
        return sum(cost.macs for cost in self.layers if cost.is_pooling)

    def pooling_sizes(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Finds the size of the maps before and after each pooling of this package.

        Returns:
            (height, width) of the input and of the output, by the path of the pooling, in the order of the model. Of a
            pooling that is called twice: the sizes of the first call.
        """
        sizes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        for cost in self.layers:
            if cost.is_pooling:
                before, after = (cost.layer.spatial_size(shape) for shape in (cost.input_shape, cost.output_shape))
                sizes.setdefault(cost.layer.path, (before, after))
        return sizes


def macs(model: keras.Model, input_shape: Sequence[int] | None = None) -> ModelCost:
    """Counts the multiply-accumulate operations of one forward pass, by running one blank image through the model.

    The sizes of all maps are therefore those that the current strides give. The count is

    - for convolutions and dense layers: output positions x kernel positions x input channels x output channels;
    - for poolings of this package: the matrix products of the method 'matmul';
    - for any other layer that has a method `macs(input_shape, output_shape)`, shapes without the batch axis: the whole
      number that this method returns;
    - for everything else, such as normalization, activations, sums and the products of two maps in attention: 0.

    A layer of another class that owns a kernel, such as a recurrent cell or a layer of your own, counts 0 too, and a
    warning says so once for each layer.

    Args:
        model: a built model with one input.
        input_shape: (height, width, channels) of an image, or (time, channels) of a signal. The model's own if None.

    Returns:
        The cost of each layer, with the sums `macs` and `pooling_macs`.

    Raises:
        ValueError: `input_shape` is None and the model's own is not known.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, padding="same")])
        >>> macs(model).macs == 8 * 8 * 3 * 3 * 3 * 4
        True
    """
    own_shape = getattr(model, "input_shape", None)
    shape = own_shape and own_shape[1:] if input_shape is None else input_shape
    if shape is None or None in shape:
        raise ValueError(f"input_shape must be given for a model of input shape {own_shape}.")
    costs: list[LayerCost] = []

    def count(layer: keras.layers.Layer, inputs: Any, outputs: Any) -> None:
        shapes = _image_shape(inputs), _image_shape(outputs)
        costs.append(LayerCost(layer, *shapes, _layer_macs(layer, *shapes)))

    counted, others = [], []
    for layer in leaf_layers(model):
        (counted if isinstance(layer, _COUNTED) or _has_own_count(layer) else others).append(layer)
    with watched_calls(counted, count):
        run_blank(model, shape)
    _warn_of_kernels(others)
    return ModelCost(costs)


_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)

_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)

_COUNTED = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    *_TRANSPOSED,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    *_SEPARABLE,
    keras.layers.Dense,
    keras.layers.EinsumDense,
    FourierPooling,
    SpatialPooling,
)

_WITHOUT_PRODUCTS = (
    keras.layers.BatchNormalization,
    keras.layers.Embedding,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.Normalization,
    keras.layers.PReLU,
    keras.layers.SpectralNormalization,
)
"""Layers whose weights may look like a kernel, and which multiply no more than element by element."""


def _image_shape(tensors: Any) -> tuple[int, ...]:
    return tuple(keras.tree.flatten(tensors)[0].shape[1:])


def _has_own_count(layer: keras.layers.Layer) -> bool:
    return not isinstance(layer, keras.Model) and callable(getattr(layer, "macs", None))


def _layer_macs(layer: keras.layers.Layer, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
    if _has_own_count(layer):
        return layer.macs(input_shape, output_shape)
    if isinstance(layer, FourierPooling):
        return layer.matmul_macs(input_shape, output_shape)
    if isinstance(layer, SpatialPooling):
        return math.prod(output_shape) * math.prod(layer.pool_size)
    if isinstance(layer, keras.layers.Dense):
        return math.prod(output_shape) * input_shape[-1]
    if isinstance(layer, keras.layers.EinsumDense):
        return math.prod(input_shape) * _einsum_factor(layer)
    if isinstance(layer, _TRANSPOSED):
        output_shape = input_shape
    positions = math.prod(output_shape[1:] if layer.data_format == "channels_first" else output_shape[:-1])
    if isinstance(layer, _SEPARABLE):
        return positions * (math.prod(layer.depthwise_kernel.shape) + math.prod(layer.pointwise_kernel.shape))
    return positions * math.prod(layer.kernel.shape)


def _einsum_factor(layer: keras.layers.EinsumDense) -> int:
    """The number of kernel entries that multiply each entry of the input: an axis in both is the same axis."""
    inputs, kernel = layer.equation.replace(" ", "").split("->")[0].split(",")
    return math.prod(length for label, length in zip(kernel, layer.kernel.shape) if label not in inputs)


# --- Layers that nobody has counted ----------------------------------------------------------------------------------
_examined: weakref.WeakSet[keras.layers.Layer] = weakref.WeakSet()
"""Built layers that were examined before: a training run counts after every epoch, and warns once."""


def _warn_of_kernels(layers: Sequence[keras.layers.Layer]) -> None:
    """Warns of layers whose products are not counted. An error would end training runs that need no exact count."""
    for layer in layers:
        if not layer.built or layer in _examined:
            continue
        _examined.add(layer)
        if isinstance(layer, _WITHOUT_PRODUCTS) or not _owns_a_kernel(layer):
            continue
        warnings.warn(
            f"macs counts 0 for layer {layer.path} of class {type(layer).__name__}, which has a kernel: give the class "
            "a method macs(input_shape, output_shape) that returns its multiply-accumulate operations for one image.",
            stacklevel=3,
        )


def _owns_a_kernel(layer: keras.layers.Layer) -> bool:
    """Whether a weight of the layer itself, not of layers in it, has two axes or more that are longer than 1."""
    of_others = {id(weight) for inner in leaf_layers(layer) for weight in inner.weights}
    return any(
        sum(length > 1 for length in weight.shape) >= 2 for weight in layer.weights if id(weight) not in of_others
    )
