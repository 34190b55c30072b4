"""Which axis is which, and the lengths of axes: known when a graph is traced, or only when it runs."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from diffstride_hybrid.spectral.options import DataFormat, Length


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


def spatial_lengths(inputs: tf.Tensor, data_format: DataFormat) -> tuple[Length, Length]:
    """Height and width of a batch of feature maps, in samples, each a Python integer if it is known.

    Args:
        inputs: `[batch, height, width, channels]`, or `[batch, channels, height, width]`.
        data_format: which axis holds the channels.

    Returns:
        Height and width.
    """
    axes = spatial_axes(data_format)
    dynamic = tf.shape(inputs) if None in (inputs.shape[axis] for axis in axes) else None
    height, width = (dynamic[axis] if inputs.shape[axis] is None else inputs.shape[axis] for axis in axes)
    return height, width


def signal_length(inputs: tf.Tensor, data_format: DataFormat) -> Length:
    """Samples of a batch of signals, a Python integer if the number is known.

    Args:
        inputs: `[batch, time, channels]`, or `[batch, channels, time]`.
        data_format: which axis holds the channels.

    Returns:
        The number of samples.
    """
    return length_of(inputs, *spatial_axes(data_format, rank=3))


def length_of(tensor: tf.Tensor, axis: int) -> Length:
    """The length of one axis of a tensor, a Python integer if it is known."""
    return tf.shape(tensor)[axis] if tensor.shape[axis] is None else tensor.shape[axis]


def resized(
    shape: Sequence[int | None], lengths: Sequence[Length | None], data_format: DataFormat
) -> tuple[int | None, ...]:
    """The shape of a batch after its spatial axes have been pooled.

    Args:
        shape: of the batch before, 4 numbers for maps, 3 for signals.
        lengths: the new height and width, or the new number of samples. A tensor or None counts as unknown.
        data_format: which axis holds the channels.

    Returns:
        `shape` with the new lengths, None for those that are unknown.
    """
    pooled = list(shape)
    for axis, length in zip(spatial_axes(data_format, len(pooled)), lengths):
        pooled[axis] = None if tf.is_tensor(length) else length
    return tuple(pooled)


def with_static_shape(
    outputs: tf.Tensor, inputs: tf.Tensor, lengths: Sequence[Length], data_format: DataFormat
) -> tf.Tensor:
    """The outputs, with the shape that is known of them when the graph is traced.

    Args:
        outputs: the pooled batch.
        inputs: the batch before pooling, whose other axes the outputs share.
        lengths: of the pooled axes.
        data_format: which axis holds the channels.

    Returns:
        `outputs`.
    """
    return tf.ensure_shape(outputs, resized(inputs.shape, lengths, data_format))


def to_channels_first(inputs: tf.Tensor, data_format: DataFormat) -> tf.Tensor:
    """A batch of maps or signals in `data_format`, with its channels moved to axis 1."""
    if data_format == "channels_first":
        return inputs
    return tf.transpose(inputs, [0, 3, 1, 2] if inputs.shape.rank == 4 else [0, 2, 1])


def from_channels_first(
    outputs: tf.Tensor, inputs: tf.Tensor, lengths: Sequence[Length], data_format: DataFormat
) -> tf.Tensor:
    """A pooled batch with its channels on axis 1, in the order, the dtype and the known shape that `inputs` ask for.

    Args:
        outputs: the pooled batch.
        inputs: the batch before pooling.
        lengths: of the pooled axes.
        data_format: which axis holds the channels of `inputs`.

    Returns:
        The pooled batch in `data_format` and in the dtype of `inputs`.
    """
    if data_format == "channels_last":
        outputs = tf.transpose(outputs, [0, 2, 3, 1] if inputs.shape.rank == 4 else [0, 2, 1])
    return with_static_shape(tf.cast(outputs, inputs.dtype), inputs, lengths, data_format)


def working_dtype(inputs: tf.Tensor) -> tf.DType:
    """The dtype for transforms and windows: float64 for float64, else float32."""
    return tf.float64 if inputs.dtype == tf.float64 else tf.float32


def as_complex(real: tf.Tensor) -> tf.Tensor:
    """A real tensor as a complex one of the same precision."""
    return tf.complex(real, tf.zeros_like(real))
