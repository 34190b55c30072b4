"""Which axis is which, and the lengths of axes: known when a graph is traced, or only when it runs."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import ops

from diffstride_hybrid.spectral.options import DataFormat, Length, Tensor


def spatial_axes(data_format: DataFormat, rank: int = 4) -> tuple[int, ...]:
    """The axes of a batch that are pooled: height and width of maps, time of signals.

    Args:
        data_format: which axis holds the channels.
        rank: 4 for a batch of feature maps, 3 for a batch of signals.

    Returns:
        Two axes for maps, one for signals.

    Example:
        >>> from diffstride_hybrid.spectral.layout import spatial_axes
        >>> spatial_axes("channels_last"), spatial_axes("channels_first", rank=3)
        ((1, 2), (2,))
    """
    first = 1 if data_format == "channels_last" else 2
    return tuple(range(first, first + rank - 2))


def spatial_lengths(inputs: Tensor, data_format: DataFormat) -> tuple[Length, Length]:
    """Height and width of a batch of feature maps, in samples, each a Python integer if it is known.

    Args:
        inputs: `[batch, height, width, channels]`, or `[batch, channels, height, width]`.
        data_format: which axis holds the channels.

    Returns:
        Height and width.
    """
    shape = ops.shape(inputs)
    height, width = (shape[axis] for axis in spatial_axes(data_format))
    return height, width


def signal_length(inputs: Tensor, data_format: DataFormat) -> Length:
    """Samples of a batch of signals, a Python integer if the number is known.

    Args:
        inputs: `[batch, time, channels]`, or `[batch, channels, time]`.
        data_format: which axis holds the channels.

    Returns:
        The number of samples.
    """
    (axis,) = spatial_axes(data_format, rank=3)
    return ops.shape(inputs)[axis]


def resized(
    shape: Sequence[int | None], lengths: Sequence[Length | None], data_format: DataFormat
) -> tuple[int | None, ...]:
    """The shape of a batch after its spatial axes have been pooled.

    Args:
        shape: of the batch before, 4 numbers for maps, 3 for signals.
        lengths: the new height and width, or the new number of samples. All but a Python integer counts as unknown.
        data_format: which axis holds the channels.

    Returns:
        `shape` with the new lengths, None for those that are unknown.
    """
    pooled = list(shape)
    for axis, length in zip(spatial_axes(data_format, len(pooled)), lengths):
        pooled[axis] = length if isinstance(length, int) else None
    return tuple(pooled)


def working_dtype(inputs: Tensor) -> str:
    """The dtype for transforms and windows: float64 for float64, else float32."""
    return "float64" if keras.backend.standardize_dtype(inputs.dtype) == "float64" else "float32"
