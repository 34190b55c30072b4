"""Counts the multiply-accumulate operations (MACs) of a model at its current strides."""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras

from diffstride_hybrid.backends import current
from diffstride_hybrid.layers.fourier_pooling import FourierPooling
from diffstride_hybrid.layers.spatial_pooling import SpatialPooling
from diffstride_hybrid.model_tools.inspection import (
    blank_inputs,
    first_argument,
    leaf_layers,
    replaced_calls,
    run_on_blank,
    running_call,
)
from diffstride_hybrid.model_tools.layer_macs import WITHOUT_PRODUCTS, cells_of, counter_of, shape_of


class LayerCost(NamedTuple):
    """The cost of one call of one layer on one image.

    Attributes:
        layer: the layer. A layer that is called twice has two entries.
        input_shape: shape of the layer's input, without the batch axis; of its first input if it has several.
        output_shape: shape of the layer's output, without the batch axis; of its first output if it has several.
        macs: multiply-accumulate operations for one image. If the model takes an image apart, such as into windows or
            frames that stand in the batch axis, those of all its parts.
    """

    layer: keras.layers.Layer
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int

    @property
    def is_pooling(self) -> bool:
        """Whether the layer is a pooling or a spectral resizing of this package."""
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
        """Multiply-accumulate operations of the poolings and spectral resizings, which `macs` leaves out."""
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


def macs(model: keras.Model, input_shape: Any = None) -> ModelCost:
    """Counts the multiply-accumulate operations of one forward pass, by running one blank image through the model.

    The sizes of all maps are therefore those that the current strides give. The count is

    - for convolutions and dense layers: output positions x kernel positions x input channels x output channels;
    - for recurrent layers: steps x the entries of both kernels, at each position of a map for ConvLSTM;
    - for attention: queries x values x (length of a key + length of a value), for each head, beside the projections;
    - for poolings and spectral resizings of this package: the matrix products of the method 'matmul', and for
      `SpatialPooling` output values x samples of the window;
    - for any other layer that has a method `macs(input_shape, output_shape)`, shapes without the batch axis: the whole
      number that this method returns;
    - for everything else, such as normalization, activations, embeddings and sums: 0.

    If a model takes an image apart, such as into windows or frames that stand in the batch axis, all parts count.
    Another layer that owns a kernel, and a product of two tensors in a functional model, count 0 too, and a warning
    names each of them once. What a layer of another class multiplies without a kernel of its own is not seen.

    Args:
        model: a built model.
        input_shape: (height, width, channels) of an image, or (time, channels) of a signal; for a model of several
            inputs a list of shapes, or a dictionary by their names. The model's own if None.

    Returns:
        The cost of each layer, with the sums `macs` and `pooling_macs`.

    Raises:
        ValueError: `input_shape` is None and the model's own is not known, or it does not fit the model.

    Example:
        >>> model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, padding="same")])
        >>> macs(model).macs == 8 * 8 * 3 * 3 * 3 * 4
        True
    """
    inputs = blank_inputs(model, input_shape)
    if inputs is None:
        raise ValueError(f"input_shape must be given for a model of input shape {getattr(model, 'input_shape', None)}.")
    costs: list[LayerCost] = []
    layers = leaf_layers(model)
    counters = {layer: counter for layer in layers if (counter := counter_of(layer)) is not None}

    def counted(layer: keras.layers.Layer) -> Callable[..., Any]:
        call = running_call(layer)

        def counting(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            shapes = shape_of(first_argument(args, kwargs)), shape_of(outputs)
            parts = _batch_of(outputs) / _batch_of(inputs)
            costs.append(LayerCost(layer, *shapes, round(counters[layer](*args, outputs=outputs, **kwargs) * parts)))
            return outputs

        return counting

    uncounted = [layer for layer in layers if layer not in counters]
    with current.uncompiled(), _unrolled(uncounted), replaced_calls(list(counters), counted):
        run_on_blank(model, inputs)
    within = {cell for layer in counters for cell in cells_of(layer)}
    _warn_of_kernels([layer for layer in uncounted if layer not in within])
    _warn_of_operations([model, *layers])
    return ModelCost(costs)


def _batch_of(tensors: Any) -> int:
    """The length of the batch axis of a tensor, or of the first of several."""
    shape = keras.tree.flatten(tensors)[0].shape
    return shape[0] if shape else 1


@contextlib.contextmanager
def _unrolled(layers: Sequence[keras.layers.Layer]) -> Iterator[None]:
    """Runs recurrent layers step by step: a loop of the backend calls its cell once more than it has steps, or once.

    On a GPU a `Bidirectional` hands the weights of its two layers to cuDNN and calls neither: here it calls both.
    """
    loops = [layer for layer in layers if isinstance(layer, keras.layers.RNN) and not layer.unroll]
    pairs = [layer for layer in layers if isinstance(layer, keras.layers.Bidirectional)]
    halves = [
        half for pair in pairs for half in (pair.forward_layer, pair.backward_layer) if hasattr(half, "use_cudnn")
    ]
    uses = [half.use_cudnn for half in halves]
    try:
        for layer in loops:
            layer.unroll = True
        for half in halves:
            half.use_cudnn = False
        yield
    finally:
        for layer in loops:
            layer.unroll = False
        for half, use in zip(halves, uses):
            half.use_cudnn = use


# --- Layers that nobody has counted ----------------------------------------------------------------------------------
_examined: weakref.WeakSet[Any] = weakref.WeakSet()
"""Built layers and operations that were examined before: a training run counts after every epoch, and warns once."""

_PRODUCTS = ("Conv", "ConvTranspose", "DepthwiseConv", "Dot", "DotProductAttention", "Einsum", "Inner", "Matmul")
_PRODUCTS += ("Outer", "SeparableConv", "Tensordot", "Vdot")
"""Classes of Keras's operations, used without a layer, that multiply tensors with each other."""


def _warn_of_kernels(layers: Sequence[keras.layers.Layer]) -> None:
    """Warns of layers whose products are not counted. An error would end training runs that need no exact count."""
    for layer in layers:
        if not layer.built or layer in _examined:
            continue
        _examined.add(layer)
        if _only_looks_like_a_product(layer) or not _owns_a_kernel(layer):
            continue
        warnings.warn(
            f"macs counts 0 for layer {layer.path} of class {type(layer).__name__}, which has a kernel: give the class "
            "a method macs(input_shape, output_shape) that returns its multiply-accumulate operations for one image.",
            stacklevel=3,
        )


def _warn_of_operations(layers: Sequence[keras.layers.Layer]) -> None:
    """Warns of products that are written into a functional model without a layer."""
    for model in layers:
        for operation in getattr(model, "operations", []):
            is_product = type(operation).__name__ in _PRODUCTS and not isinstance(operation, keras.layers.Layer)
            if is_product and operation not in _examined:
                _examined.add(operation)
                warnings.warn(
                    f"macs counts 0 for {operation.name} of {model.name}, a product of tensors without a layer: put it "
                    "into a layer with a method macs(input_shape, output_shape).",
                    stacklevel=3,
                )


def _only_looks_like_a_product(layer: keras.layers.Layer) -> bool:
    """Whether a layer is of a class without products. A class derived from it may multiply in a `call` of its own."""
    return any(isinstance(layer, known) and type(layer).call is known.call for known in WITHOUT_PRODUCTS)


def _owns_a_kernel(layer: keras.layers.Layer) -> bool:
    """Whether a weight of the layer itself, not of layers in it, has two axes or more that are longer than 1."""
    of_others = {id(weight) for inner in leaf_layers(layer) for weight in inner.weights}
    return any(
        sum(length > 1 for length in weight.shape) >= 2 for weight in layer.weights if id(weight) not in of_others
    )
