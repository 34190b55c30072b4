"""A penalty on small strides, which trains a model's cost down."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
import tensorflow as tf

from diffstride_hybrid.layers.diffstride import DiffStride
from diffstride_hybrid.model_tools.inspection import diffstride_layers


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
