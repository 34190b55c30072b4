"""A penalty on small strides, which makes training reduce the cost of a model."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import keras

from diffstride_hybrid.common.arguments import validated_number
from diffstride_hybrid.layers.diffstride import DiffStride
from diffstride_hybrid.model_tools.inspection import check_built, diffstride_layers


def regularize_strides(model: keras.Model, factor: float) -> None:
    """Adds the penalty `factor * sum_l prod_{i <= l} 1 / (s_h^i s_w^i)` on small strides to the losses of a model.

    `s_h^i` and `s_w^i` are the vertical and the horizontal stride of the i-th `DiffStride` layer; a `DiffStride1D` has
    one stride, and counts with it alone. This is the regularizer of Riad et al. ("Learning strides in convolutional
    neural networks", ICLR 2022, arXiv 2202.01653): each term is the share of the first map's area that is left after a
    pooling, and stands for the time and the memory that the layers behind that pooling take.

    The terms are in `model.losses`, so `fit` and `training.run.train` add them to the loss. A second call replaces the
    penalty of the first; a factor of 0 removes it. The penalty is not saved with a model, unless the model is a
    `Resnet` made with `stride_complexity`.

    Args:
        model: a built model whose `DiffStride` layers pool one after the other.
        factor: how much the penalty weighs in the loss, a finite number of at least 0. If the model has no `DiffStride`
            for it, a warning says so.

    Raises:
        TypeError: `factor` is not a number.
        ValueError: `factor` is out of range, or the model is not built.

    Example:
        >>> model = keras.Sequential([keras.Input((24, 24, 2)), DiffStride((2.0, 4.0))])
        >>> regularize_strides(model, 0.5)
        >>> [float(loss) for loss in model.losses]
        [0.0625]
    """
    factor = validated_number("factor", factor, at_least=0.0)
    layers = diffstride_layers(model)
    if factor and not layers:
        warnings.warn(
            f"The stride complexity of {model.name} acts on nothing: the model has no DiffStride. Pool by DiffStride, "
            "or leave it out.",
            stacklevel=2,
        )
    check_built(layers, model)
    for layer in layers:
        layer.strides.regularizer = _AreaPenalty(factor, layers, layer) if factor else None


class _AreaPenalty(keras.regularizers.Regularizer):
    """Terms of the penalty. A regularizer of a variable is the only place where Keras takes a loss of weights.

    Keras asks those of trained variables alone. So a layer has its own term and those of the frozen layers behind it,
    and the first one those of the frozen layers before it too.
    """

    def __init__(self, factor: float, layers: Sequence[DiffStride], layer: DiffStride):
        self._factor = factor
        self._layers = layers
        self._layer = layer

    def __call__(self, strides: Any) -> Any:
        del strides  # A term needs the strides of all the layers up to its own.
        trained = [i for i, layer in enumerate(self._layers) if layer.trainable and layer.strides.trainable]
        own = next(i for i, layer in enumerate(self._layers) if layer is self._layer)
        first = 0 if own == min(trained, default=own) else own
        last = min((i for i in trained if i > own), default=len(self._layers))
        return self._factor * sum(_area_left(self._layers[: i + 1]) for i in range(first, last))


def _area_left(layers: Sequence[DiffStride]) -> Any:
    """The share of a map's area that is left after some layers, and of a signal's length.

    A shared stride counts along both axes of a map.
    """
    strides = [layer.strides_of_map(layer.strides) for layer in layers]
    return 1 / math.prod(pair[0] * pair[-1] for pair in strides)
