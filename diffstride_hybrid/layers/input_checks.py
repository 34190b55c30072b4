"""Checks of a layer's input: its dtype, and its size, which is known when the graph is built or only when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from diffstride_hybrid.backends import current
from diffstride_hybrid.spectral.layout import spatial_axes
from diffstride_hybrid.spectral.options import Tensor

Size = tuple[int, int]
"""Height and width in samples. A signal counts as a map of one row: (1, samples)."""


def check_floating(layer: keras.layers.Layer, inputs: Any) -> None:
    """Refuses input that is not of a floating-point dtype.

    Args:
        layer: the layer that is called, for the message.
        inputs: a tensor, an array or a `keras.KerasTensor`.

    Raises:
        TypeError: the dtype is not floating-point.
    """
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    if "float" not in dtype:
        raise TypeError(
            f"{type(layer).__name__} needs floating-point input, got {dtype}: cast it first, for instance with "
            "keras.layers.Rescaling(1 / 255)."
        )


def check_size(layer: keras.layers.Layer, shape: Sequence[int | None], size: Sequence[int | None], least: Size) -> None:
    """Refuses maps that are known to be too small to be pooled.

    Args:
        layer: the layer that is called, for the message.
        shape: of its input, for the message.
        size: height and width of the input, None if unknown.
        least: the smallest height and width allowed.

    Raises:
        ValueError: a known length is below `least`.
    """
    if any(length is not None and length < n for length, n in zip(size, least)):
        raise ValueError(f"{_needs_at_least(layer, least)} {tuple(shape)} ({layer.data_format}).")


def checked_when_run(layer: keras.layers.Layer, inputs: Tensor, least: Size) -> Tensor:
    """The inputs, with an assertion in the graph if their size is not known yet.

    Args:
        layer: the layer that is called. It has the method `spatial_size`.
        inputs: its input.
        least: the smallest height and width allowed.

    Returns:
        `inputs`. If their size is known, nothing is added to the graph.

    Raises:
        tf.errors.InvalidArgumentError: when TensorFlow's graph runs, on an input that is too small.
    """
    if None not in layer.spatial_size(inputs.shape[1:]):
        return inputs
    least_shape = [0] * len(inputs.shape)
    axes = spatial_axes(layer.data_format, len(inputs.shape))
    for axis, length in zip(axes, least[-len(axes) :]):
        least_shape[axis] = length
    return current.checked_when_run(inputs, least_shape, _needs_at_least(layer, least))


def _needs_at_least(layer: keras.layers.Layer, least: Size) -> str:
    return f"{type(layer).__name__} needs at least {'x'.join(map(str, least))} samples to pool, got"
