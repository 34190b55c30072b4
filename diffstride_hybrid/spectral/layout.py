"""Lengths of axes and the order of channels, known when the graph is traced or only when it runs."""

from __future__ import annotations

import tensorflow as tf

from diffstride_hybrid.spectral.options import DataFormat, Length


def spatial_lengths(inputs: tf.Tensor, data_format: DataFormat) -> tuple[Length, Length]:
    """Height and width of a feature map, each a Python integer where it is known."""
    first = 1 if data_format == "channels_last" else 2
    dynamic = tf.shape(inputs)
    height, width = (dynamic[axis] if inputs.shape[axis] is None else inputs.shape[axis] for axis in (first, first + 1))
    return height, width


def signal_length(inputs: tf.Tensor, data_format: DataFormat) -> Length:
    """Samples of a signal, a Python integer where it is known."""
    return length_of(inputs, 1 if data_format == "channels_last" else 2)


def working_dtype(inputs: tf.Tensor) -> tf.DType:
    return tf.float64 if inputs.dtype == tf.float64 else tf.float32


def as_complex(real: tf.Tensor) -> tf.Tensor:
    return tf.complex(real, tf.zeros_like(real))


def length_of(tensor: tf.Tensor, axis: int) -> Length:
    return tf.shape(tensor)[axis] if tensor.shape[axis] is None else tensor.shape[axis]


def to_channels_first(inputs: tf.Tensor, data_format: DataFormat) -> tf.Tensor:
    return tf.transpose(inputs, [0, 3, 1, 2]) if data_format == "channels_last" else inputs


def from_channels_first(
    outputs: tf.Tensor, inputs: tf.Tensor, height: Length, width: Length, data_format: DataFormat
) -> tf.Tensor:
    if data_format == "channels_last":
        outputs = tf.transpose(outputs, [0, 2, 3, 1])
    return with_static_shape(tf.cast(outputs, inputs.dtype), inputs, height, width, data_format)


def with_static_shape(
    outputs: tf.Tensor, inputs: tf.Tensor, height: Length, width: Length, data_format: DataFormat
) -> tf.Tensor:
    spatial = [length if isinstance(length, int) else None for length in (height, width)]
    batch = inputs.shape[0]
    if data_format == "channels_last":
        return tf.ensure_shape(outputs, [batch, *spatial, inputs.shape[3]])
    return tf.ensure_shape(outputs, [batch, inputs.shape[1], *spatial])
