"""Strides and output sizes: the least stride, the stride that takes effect, and lengths after pooling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops

from diffstride_hybrid.backends import current
from diffstride_hybrid.spectral.options import Length, Limits, Tensor


def minimum_stride(length: Length, smoothness_factor: float, dtype: str = "float32") -> float | Tensor:
    """The least stride of an axis, at which the middle of the window's ramp lies at the highest frequency.

    `s_min = n / (n - R)` if `n > R`, else 1. By the paper's formula, `mask='symmetric'`, the highest frequency then has
    the weight 1/2. The ramp ends there at the stride `n / (n - 2 R)`, and beyond the spectrum at smaller ones.

    Args:
        length: `n`, samples along the axis.
        smoothness_factor: `R`, the length of the ramp in bins.
        dtype: of the result if `length` is a tensor.

    Returns:
        A Python float, or a tensor of the shape of `length` if that is one.

    Example:
        >>> from diffstride_hybrid import spectral
        >>> spectral.minimum_stride(16, 4.0)
        1.3333333333333333
    """
    if isinstance(length, int):
        return length / (length - smoothness_factor) if length > max(smoothness_factor, 1) else 1.0
    length = ops.cast(length, dtype)
    room = length - smoothness_factor
    return length / ops.where((room > 0) & (length > 1), room, length)


def effective_strides(strides: Tensor, minima: Tensor, lower_limit: Limits, upper_limit: Limits) -> Tensor:
    """Clips strides to the values that the axes and the limits allow.

    `s_eff = clip(max(s, s_min), lower or 1, upper or ∞)`. The gradient passes `max(s, s_min)` as if it were `s`, so
    that a stride that has shrunk to the minimum can grow again.

    Args:
        strides: `s`, float32 or float64, of the vertical and the horizontal axis, or one that serves both; `[2]` or
            `[1]`, or `[2, m]` or `[1, m]`.
        minima: `s_min`, results of `minimum_stride`, of the same rank.
        lower_limit: least value, or one for each axis. 1 if None.
        upper_limit: greatest value, or one for each axis. Unlimited if None.

    Returns:
        Of the shape and dtype of `strides`.
    """
    strides = strides + ops.stop_gradient(ops.maximum(strides, minima) - strides)
    lower, upper = (limits_of_axes(limits)[: strides.shape[0]] for limits in (lower_limit, upper_limit))
    if not any(lower) and not any(upper):  # No axis has a minimum below 1.
        return strides
    unlimited = float(np.finfo(np.float32).max)
    pairs = ([low or 1.0 for low in lower], [high or unlimited for high in upper])
    low, high = (of_axes(*pair, dtype=strides.dtype, rank=len(strides.shape)) for pair in pairs)
    return current.clipped(strides, low, high)


def of_axes(*values: Any, dtype: Any = "float32", rank: int = 1) -> Tensor:
    """Values of the vertical and the horizontal axis, or one that serves both, as a tensor.

    Args:
        *values: numbers, or scalar tensors.
        dtype: of the result.
        rank: of the result, whose axes but the first have the length 1.

    Returns:
        `[2, 1, …]` or `[1, 1, …]`.
    """
    if all(isinstance(value, (int, float)) for value in values):
        return ops.convert_to_tensor(np.reshape(values, [-1] + [1] * (rank - 1)), dtype)
    numbers = ops.cast(ops.stack(values), dtype)
    return numbers if rank == 1 else ops.reshape(numbers, [-1] + [1] * (rank - 1))


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
