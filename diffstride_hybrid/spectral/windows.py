"""Windows over a spectrum: which bins a pooling keeps along an axis, and with what weight."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from diffstride_hybrid.spectral.options import Length, Mask
from diffstride_hybrid.spectral.sizes import effective_stride, fixed_output_lengths, minimum_stride


class Window(NamedTuple):
    """The part of one axis's spectrum that pooling keeps.

    Attributes:
        length: samples along the axis before pooling.
        output_length: samples along the axis after pooling.
        bins: int32 `[kept]`, the kept bins of the input's DFT. The i-th of them is bin i of the output's spectrum.
        weights: `[kept]`, float32 or float64, what each kept bin is multiplied by. Carries the gradient to the stride.
        negatives: how many of the bins, the last ones, are of negative frequency. None for a one-sided window, which
            lists only the non-negative frequencies, as `rfft` does.
        unequal: of a two-sided window, the first of the frequencies k for which k and -k may have unequal weights, and
            how many of them there are at most. Beside them both signs weigh 1, or both 0. None where all are equal.
        learned: whether the weights depend on a stride that is trained.
    """

    length: Length
    output_length: Length
    bins: tf.Tensor
    weights: tf.Tensor
    negatives: Length | None
    unequal: tuple[Length, int] | None
    learned: bool


def diffstride_windows(
    height: Length,
    width: Length,
    strides: tf.Tensor,
    *,
    smoothness_factor: float,
    cropping: bool,
    lower_limit_stride: float | None,
    upper_limit_stride: float | None,
    mask: Mask,
    kept: tuple[int, int] | None = None,
    trainable: bool = True,
    dtype: tf.DType = tf.float32,
) -> tuple[Window, Window]:
    """The soft windows of DiffStride over rows and columns.

    A bin's weight is `clip((R + t - position) / R, 0, 1)`: 1 up to the threshold `t`, then a ramp of length `R`.

    `mask='symmetric'` follows the paper on both axes: a bin's position is its absolute frequency, `t` is half the
    strided length. `mask='released'` gives what the released code computes: on rows, positive frequencies lie one
    position further out than negative ones of the same size (on an odd number of rows zero lies at position 1, too),
    and on columns `t` is 1 greater and the highest kept bin becomes the Nyquist bin of the output.

    Args:
        height: rows of the feature map.
        width: columns of the feature map.
        strides: `[2]` or `[1]`, see `diffstride`.
        smoothness_factor: `R`.
        cropping: whether bins of weight 0 are dropped.
        lower_limit_stride: least effective stride.
        upper_limit_stride: greatest effective stride.
        mask: 'released' or 'symmetric'.
        kept: a fixed number of kept bins (rows, columns), or None for those of positive weight.
        trainable: whether the strides are trained.
        dtype: float32 or float64, of the weights.

    Returns:
        The window over rows, two-sided, and the window over columns, one-sided.
    """
    minima = [
        tf.convert_to_tensor(minimum_stride(length, smoothness_factor, dtype), dtype) for length in (height, width)
    ]
    if strides.shape[0] == 1:
        minima = [tf.maximum(*minima)] * 2
    row_stride, column_stride = (
        effective_stride(tf.cast(strides[i], dtype), minimum, lower_limit_stride, upper_limit_stride)
        for i, minimum in zip((0, strides.shape[0] - 1), minima)
    )
    row_threshold = _threshold(height, row_stride)
    column_threshold = _threshold(width, column_stride)
    if mask == "released":
        row_positions = _released_row_positions(height)
        column_threshold += 1.0
    else:
        row_positions = tf.minimum(tf.range(height), height - tf.range(height))
    column_positions = tf.range(width // 2 + 1)
    row_weights = _soft_window(row_positions, row_threshold, smoothness_factor)
    column_weights = _soft_window(column_positions, column_threshold, smoothness_factor)

    if kept is not None:
        output_height, kept_columns = kept
    elif cropping:
        output_height, kept_columns = (tf.math.count_nonzero(w, dtype=tf.int32) for w in (row_weights, column_weights))
    else:
        output_height, kept_columns = height, width // 2 + 1
    # On an odd number of rows the released mask counts the highest positive frequency among the negative ones.
    negatives = output_height - output_height // 2 if mask == "released" else output_height // 2
    row_bins = tf.concat([tf.range(output_height - negatives), tf.range(height - negatives, height)], 0)
    column_bins = tf.range(kept_columns)
    if mask == "released":
        output_width = 2 * (kept_columns - 1)
    else:
        at_most = min if isinstance(kept_columns, int) and isinstance(width, int) else tf.minimum
        output_width = at_most(2 * kept_columns - 1, width)
    unequal = None
    if mask == "released":
        first = tf.cast(tf.math.ceil(row_threshold), tf.int32) - height % 2
        unequal = (first, unequal_frequencies(smoothness_factor))
    return (
        Window(height, output_height, row_bins, tf.gather(row_weights, row_bins), negatives, unequal, trainable),
        Window(width, output_width, column_bins, tf.gather(column_weights, column_bins), None, None, trainable),
    )


def fixed_windows(
    height: Length, width: Length, strides: tuple[float, float], dtype: tf.DType = tf.float32
) -> tuple[Window, Window]:
    """The hard windows of `fixed_spectral_pooling` over rows, two-sided, and over columns, one-sided.

    Args:
        height: rows of the feature map.
        width: columns of the feature map.
        strides: vertical and horizontal, at least 1.
        dtype: float32 or float64, of the weights.

    Returns:
        Both windows.
    """
    output_height, output_width = fixed_output_lengths(height, width, strides)
    low = output_height // 2
    rows = Window(
        length=height,
        output_length=output_height,
        bins=tf.concat([tf.range(low), tf.range(height - low, height)], 0),
        weights=tf.ones([output_height], dtype),
        negatives=low,
        unequal=(low, 1),
        learned=False,
    )
    columns = Window(
        length=width,
        output_length=output_width,
        bins=tf.range(output_width // 2 + 1),
        weights=tf.ones([output_width // 2 + 1], dtype),
        negatives=None,
        unequal=None,
        learned=False,
    )
    return rows, columns


def diffstride_window_1d(
    length: Length, stride: tf.Tensor, *, kept: int | None = None, dtype: tf.DType = tf.float32, **options: Any
) -> Window:
    """The window of `diffstride_1d`: the one over the columns of a map of one row.

    Args:
        length: samples of the signal.
        stride: `[1]`.
        kept: a fixed number of kept bins, or None for those of positive weight.
        dtype: float32 or float64, of the weights.
        **options: see `diffstride_windows`.

    Returns:
        A one-sided window.
    """
    strides = tf.concat([[1.0], tf.cast(stride, tf.float32)], 0)
    _, window = diffstride_windows(1, length, strides, kept=None if kept is None else (1, kept), dtype=dtype, **options)
    return window


def kept_bins(rows: Window, columns: Window) -> tuple[int, int]:
    """How many bins two windows keep, as Python integers. The windows must have been made eagerly."""
    return int(tf.size(rows.bins)), int(tf.size(columns.bins))


def _threshold(length: Length, stride: tf.Tensor) -> tf.Tensor:
    return tf.maximum(tf.cast(length, stride.dtype) / stride, 2.0) / 2.0


def _released_row_positions(length: Length) -> tf.Tensor:
    """[0, 1, …, m - 1, m - 1, …, 1, 0] for `2 m` rows, [1, 2, …, m, m, …, 1, 0] for `2 m + 1`."""
    bins = tf.range(length)
    return tf.minimum(bins + length % 2, length - 1 - bins)


def _soft_window(positions: tf.Tensor, threshold: tf.Tensor, smoothness_factor: float) -> tf.Tensor:
    positions = tf.cast(positions[1:], threshold.dtype)
    if smoothness_factor < np.finfo(np.float32).eps:  # Such a ramp is lost when it is added to a threshold.
        weights = tf.cast(positions < threshold, threshold.dtype)
    else:
        weights = tf.clip_by_value((smoothness_factor + threshold - positions) / smoothness_factor, 0.0, 1.0)
    # Frequency 0 weighs 1 even where it lies at position 1, of an odd number of rows, and the threshold is as low.
    return tf.concat([[1.0], weights], 0)


def resampling_window(length: Length, output_length: Length, dtype: tf.DType = tf.float32) -> Window:
    """The one-sided window of `spectral_pooling`. Its Nyquist bin counts twice where two input bins fold into it."""
    bins = tf.range(output_length // 2 + 1)
    folded = (2 * bins == output_length) & (output_length < length)
    return Window(length, output_length, bins, tf.where(folded, tf.cast(2, dtype), 1), None, None, learned=False)


def unequal_frequencies(smoothness_factor: float) -> int:
    """How many row frequencies at most `mask='released'` weighs differently by sign: those on its ramp."""
    return math.ceil(smoothness_factor) + 2
