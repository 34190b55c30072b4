"""Strides and output sizes: least and effective strides, lengths after pooling."""

from __future__ import annotations

import math

import tensorflow as tf

from diffstride_hybrid.spectral.options import Length


def minimum_stride(length: Length, smoothness_factor: float, dtype: tf.DType = tf.float32) -> float | tf.Tensor:
    """The stride `n / (n - R)` at which the window's ramp ends at the highest frequency; 1 where `n <= R`."""
    if isinstance(length, int):
        return length / (length - smoothness_factor) if length > smoothness_factor else 1.0
    length = tf.cast(length, dtype)
    room = length - smoothness_factor
    return tf.where(room > 0, length / tf.where(room > 0, room, 1.0), 1.0)


def effective_stride(
    stride: tf.Tensor, minimum: float | tf.Tensor, lower_limit: float | None, upper_limit: float | None
) -> tf.Tensor:
    """Clips a stride to what the axis and the limits allow.

    The gradient passes the minimum as if it were not there, so that a stride that has shrunk to it can grow again.
    """
    minimum = tf.convert_to_tensor(minimum, stride.dtype)
    stride = stride + tf.stop_gradient(tf.maximum(stride, minimum) - stride)
    upper = stride.dtype.max if upper_limit is None else upper_limit
    return tf.clip_by_value(stride, 1.0 if lower_limit is None else lower_limit, upper)


def fixed_output_lengths(height: Length, width: Length, strides: tuple[float, float]) -> tuple[Length, Length]:
    """Size after `fixed_spectral_pooling`: rows are rounded down to an even number, both are at least 2."""
    rows = spectral_output_length(height, strides[0])
    return rows - rows % 2, spectral_output_length(width, strides[1])


def spectral_output_lengths(height: Length, width: Length, strides: tuple[float, float]) -> tuple[Length, Length]:
    """Size that `SpectralPooling` gives by its strides: `max(2, floor(n / stride))` along each axis."""
    return spectral_output_length(height, strides[0]), spectral_output_length(width, strides[1])


def spectral_output_length(length: Length, stride: float) -> Length:
    """`max(2, floor(length / stride))`, where a stride of `length / n` has n for its result."""
    rounding = 1e-6  # Of such a stride, and of a graph that multiplies by 1 / stride instead.
    if isinstance(length, int):
        return max(2, math.floor(length / stride + rounding))
    return tf.maximum(2, tf.cast(tf.floor(tf.cast(length, tf.float64) / stride + rounding), tf.int32))
