"""What a model costs as its strides stand: its multiply-accumulate operations, and a penalty that trains them away."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from diffstride_hybrid.pooling import DiffStride, FourierPooling, SpatialPooling


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


def run_blank(model: keras.Model, input_shape: Sequence[int]) -> None:
    """Runs one image of zeros through a model with one input."""
    images = tf.zeros([1, *input_shape], model.compute_dtype)
    if getattr(model, "inputs", None) and not isinstance(model, keras.Sequential):
        # A functional model's input may be in a list or a dict.
        images = keras.tree.pack_sequence_as(model.input, [images])
    model(images, training=False)


def regularize_strides(model: keras.Model, factor: float) -> None:
    """Penalises small strides of a model's `DiffStride` layers by `factor * sum_l prod_{i <= l} 1 / (s_h^i s_w^i)`.

    This is the regulariser of Riad et al. (ICLR 2022): the share of the first map's area that is left after each
    pooling stands for the time and memory that the layers behind it take.

    The terms are in `model.losses`, so `fit` and `training.train` add them to the loss. They are not saved with a
    model, unless it is a `Resnet` made with `stride_complexity`.

    Args:
        model: a built model whose `DiffStride` layers pool one after the other.
        factor: of the penalty, at least 0.

    Raises:
        ValueError: `factor` is out of range.
    """
    factor = validated_factor(factor)
    layers = diffstride_layers(model)
    for i, layer in enumerate(layers):
        layer.strides.regularizer = _AreaPenalty(factor, layers[: i + 1]) if factor else None


def validated_factor(factor: float) -> float:
    """The factor of a penalty; raises ValueError where it is not a finite number of at least 0."""
    if not (isinstance(factor, (int, float)) and 0 <= factor < math.inf):
        raise ValueError(f"The factor of the stride complexity must be a number of at least 0, got {factor!r}.")
    return factor


class _AreaPenalty(keras.regularizers.Regularizer):
    """One term of the stride complexity. Keras has a regulariser for each variable, and no other place for it."""

    def __init__(self, factor: float, layers: Sequence[DiffStride]):
        self._factor = factor
        self._layers = layers

    def __call__(self, strides: tf.Tensor) -> tf.Tensor:
        del strides  # Those of the last layer.
        return self._factor * _area_left(self._layers)


def _area_left(layers: Sequence[DiffStride]) -> tf.Tensor:
    strides = [tf.convert_to_tensor(layer.strides) for layer in layers]
    return 1 / tf.reduce_prod([pair[0] * pair[-1] for pair in strides])


def diffstride_layers(model: keras.Model) -> list[DiffStride]:
    """The `DiffStride` layers of a model, at any depth, each once, in the order of the model."""
    return [layer for layer in leaf_layers(model) if isinstance(layer, DiffStride)]


def strides_by_path(model: keras.Model) -> dict[str, list[float]]:
    """The strides of each `DiffStride` layer as they stand, by its path."""
    return {layer.path: layer.strides.numpy().tolist() for layer in diffstride_layers(model)}


def leaf_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model, at any depth, each once, in the order of the model."""
    return list(dict.fromkeys(model._flatten_layers(include_self=False, recursive=True)))


@contextlib.contextmanager
def watched_calls(
    layers: Sequence[keras.layers.Layer], report: Callable[[keras.layers.Layer, tf.Tensor, tf.Tensor], None]
) -> Iterator[None]:
    """Has layers report their calls while the context lasts.

    Args:
        layers: whose calls to watch.
        report: called after each call with the layer, its inputs and its outputs.
    """

    def watched(layer: keras.layers.Layer) -> Callable[..., tf.Tensor]:
        call = layer.call

        def reporting(inputs: tf.Tensor, *args: Any, **kwargs: Any) -> tf.Tensor:
            outputs = call(inputs, *args, **kwargs)
            report(layer, inputs, outputs)
            return outputs

        return reporting

    with replaced_calls(layers, watched):
        yield


@contextlib.contextmanager
def replaced_calls(
    layers: Sequence[keras.layers.Layer], replacement: Callable[[keras.layers.Layer], Callable[..., tf.Tensor]]
) -> Iterator[None]:
    """Has layers compute something else while the context lasts.

    Args:
        layers: whose `call` to replace.
        replacement: called with each layer, gives what stands in for its `call`.
    """
    for layer in layers:
        object.__setattr__(layer, "call", replacement(layer))
    try:
        yield
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")


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
