"""Strides and output sizes: the least stride, the stride that takes effect, and lengths after pooling."""

from __future__ import annotations

import math

import numpy as np
from keras import ops

from diffstride_hybrid.spectral.options import Length, Limits, Tensor


def minimum_stride(length: Length, smoothness_factor: float, dtype: str = "float32") -> float | Tensor:
    """The least stride of an axis, at which the window's ramp ends at the highest frequency.

    `s_min = n / (n - R)` if `n > R`, else 1. At a smaller stride the ramp would reach beyond the spectrum.

    Args:
        length: `n`, samples along the axis.
        smoothness_factor: `R`, the length of the ramp in bins.
        dtype: of the result if `length` is a tensor.

    Returns:
        A Python float, or a scalar tensor if `length` is a tensor.

    Example:
        >>> from diffstride_hybrid import spectral
        >>> spectral.minimum_stride(16, 4.0)
        1.3333333333333333
    """
    if isinstance(length, int):
        return length / (length - smoothness_factor) if length > smoothness_factor else 1.0
    length = ops.cast(length, dtype)
    room = length - smoothness_factor
    return ops.where(room > 0, length / ops.where(room > 0, room, 1.0), 1.0)


def effective_stride(
    stride: Tensor, minimum: float | Tensor, lower_limit: float | None, upper_limit: float | None
) -> Tensor:
    """Clips a stride to the values that the axis and the limits allow.

    `s_eff = clip(max(s, s_min), lower or 1, upper or ∞)`. The gradient passes `max(s, s_min)` as if it were `s`, so
    that a stride that has shrunk to the minimum can grow again.

    Args:
        stride: `s`, a float32 or float64 scalar.
        minimum: `s_min`, the result of `minimum_stride`.
        lower_limit: least value. 1 if None.
        upper_limit: greatest value. Unlimited if None.

    Returns:
        A scalar in the dtype of `stride`.
    """
    stride = stride + ops.stop_gradient(ops.maximum(stride, minimum) - stride)
    upper = np.finfo(np.float32).max if upper_limit is None else upper_limit
    return clipped(stride, 1.0 if lower_limit is None else lower_limit, upper)


def clipped(values: Tensor, low: float, high: float) -> Tensor:
    """Clips values to a range, with the gradient 1 at both ends, where JAX and PyTorch would give a half.

    Args:
        values: floating-point.
        low: least value.
        high: greatest value.

    Returns:
        Of the shape and dtype of `values`.

    Example:
        >>> from diffstride_hybrid.spectral.sizes import clipped
        >>> clipped(np.array([0.5, 2.0, 9.0]), 1.0, 4.0).numpy().tolist()
        [1.0, 2.0, 4.0]
    """
    is_outside = ops.logical_or(values < low, values > high)
    return ops.where(is_outside, ops.stop_gradient(ops.clip(values, low, high)), values)


def limits_of_axes(limits: Limits) -> tuple[float | None, float | None]:
    """Splits limits of strides.

    Args:
        limits: one limit for both axes, or a pair; None is no limit.

    Returns:
        The vertical and the horizontal limit.

    Example:
        >>> limits_of_axes(3.0), limits_of_axes((1.0, None))
        ((3.0, 3.0), (1.0, None))
    """
    return tuple(limits) if isinstance(limits, (tuple, list)) else (limits, limits)


def fixed_output_lengths(height: Length, width: Length, strides: tuple[float, float]) -> tuple[Length, Length]:
    """The size that `fixed_spectral_pooling` gives: `max(2, floor(n / stride))`, and an even number of rows.

    A single row or column passes through.

    Args:
        height: rows of the feature map.
        width: columns of the feature map.
        strides: vertical and horizontal, at least 1.

    Returns:
        Rows, rounded down to an even number, and columns.
    """
    rows = spectral_output_length(height, strides[0])
    at_least = max if isinstance(rows, int) else ops.maximum
    return at_least(rows - rows % 2, 1), spectral_output_length(width, strides[1])


def spectral_output_lengths(height: Length, width: Length, strides: tuple[float, float]) -> tuple[Length, Length]:
    """The size that `SpectralPooling` gives for its strides: `max(2, floor(n / stride))` along each axis.

    A single row or column passes through.

    Args:
        height: rows of the feature map.
        width: columns of the feature map.
        strides: vertical and horizontal, at least 1.

    Returns:
        Rows and columns.
    """
    return spectral_output_length(height, strides[0]), spectral_output_length(width, strides[1])


def spectral_output_length(length: Length, stride: float) -> Length:
    """`max(2, floor(length / stride))`, and 1 for a single sample, which passes through.

    A stride of `length / n`, rounded or not, gives exactly `n`.

    Args:
        length: samples along the axis.
        stride: at least 1.

    Returns:
        A Python integer, or an int32 scalar if `length` is a tensor.

    Example:
        >>> from diffstride_hybrid import spectral
        >>> spectral.spectral_output_length(32, 1.5), spectral.spectral_output_length(32, 32 / 7)
        (21, 7)
    """
    rounding = 1e-6  # Tolerates rounding in length / n, and graphs that multiply by 1 / stride.
    if isinstance(length, int):
        return min(length, max(2, math.floor(length / stride + rounding)))
    whole = ops.cast(ops.floor(ops.cast(length, "float64") / stride + rounding), "int32")
    return ops.minimum(length, ops.maximum(2, whole))
