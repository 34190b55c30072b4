"""Windows over a spectrum: which bins a pooling keeps along an axis, and with what weight."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from diffstride_hybrid.backends.current import as_length
from diffstride_hybrid.spectral.options import Length, Limits, Mask, Tensor
from diffstride_hybrid.spectral.sizes import (
    clipped,
    effective_stride,
    fixed_output_lengths,
    limits_of_axes,
    minimum_stride,
)


class Window(NamedTuple):
    """The part of one axis's spectrum that a pooling keeps.

    Attributes:
        length: samples along the axis before pooling.
        output_length: samples along the axis after pooling.
        bins: int32 `[kept]`, the kept bins of the input's DFT. Number i of them is bin i of the output's spectrum.
        weights: float32 or float64 `[kept]`, the factor of each kept bin. Carries the gradient to the stride.
        negatives: how many of the bins, the last ones, are of negative frequency. None for a one-sided window, which
            lists only the non-negative frequencies, as `rfft` does.
        unequal: for a two-sided window, the first of the frequencies k for which k and -k may have unequal weights, and
            the greatest number of such frequencies. At all others both signs weigh 1, or both weigh 0. None if the
            weights of both signs are equal everywhere.
        learned: whether the weights depend on a stride that is trained.
    """

    length: Length
    output_length: Length
    bins: Tensor
    weights: Tensor
    negatives: Length | None
    unequal: tuple[Length, int] | None
    learned: bool


# --- DiffStride ------------------------------------------------------------------------------------------------------


def diffstride_windows(
    height: Length,
    width: Length,
    strides: Tensor,
    *,
    smoothness_factor: float,
    cropping: bool,
    lower_limit_stride: Limits,
    upper_limit_stride: Limits,
    mask: Mask,
    kept: tuple[int, int] | None = None,
    trainable: bool = True,
    dtype: str = "float32",
) -> tuple[Window, Window]:
    """The soft windows of DiffStride over rows and columns (ICLR 2022, arXiv 2202.01653, figure 1).

    A bin at position `p` has the weight `m(p) = clip((R + t - p) / R, 0, 1)`: 1 up to the threshold `t`, then a ramp of
    length `R`. At `R = 0` the weight is 1 if `p < t`, else 0. For an axis of `n` samples with effective stride `s`:

    - `mask='symmetric'`, the paper's vertical formula, on both axes: `p = |k|` for the bin of frequency `k`, and
      `t = max(n / s, 2) / 2`.
    - `mask='released'`, as the released code computes it. Rows: `t` as above. For an even number of rows
      `p = k` for `k >= 0` and `p = |k| - 1` for `k < 0`; for an odd number `p = k + 1` and `p = |k| - 1`, and the
      highest positive frequency counts among the negative ones. Columns: `p = k` and `t = max(n / s, 2) / 2 + 1`.

    The bins of positive weight are kept. The output has as many rows as rows are kept. With `c` columns kept it has
    `2 (c - 1)` columns for 'released', whose highest bin becomes the output's Nyquist bin, and `min(2 c - 1, n)` for
    'symmetric'.

    Args:
        height: rows of the feature map.
        width: columns of the feature map.
        strides: `[2]`, vertical and horizontal, or `[1]` for one stride that serves both axes and is at least the
            larger of their minimum strides.
        smoothness_factor: `R`, in bins.
        cropping: whether bins of weight 0 are dropped.
        lower_limit_stride: least effective stride, or one for each axis. 1 if None.
        upper_limit_stride: greatest effective stride, or one for each axis. Unlimited if None.
        mask: 'released' or 'symmetric'.
        kept: a fixed number of kept bins, (rows, columns), whatever their weight. None keeps those of positive weight.
        trainable: whether the strides are trained.
        dtype: float32 or float64, of the weights.

    Returns:
        The window over rows, two-sided, and the window over columns, one-sided.

    Example:
        >>> from diffstride_hybrid import spectral
        >>> rows, columns = spectral.diffstride_windows(
        ...     16, 16, np.array([4.0, 4.0]), smoothness_factor=2.0, cropping=True, lower_limit_stride=None,
        ...     upper_limit_stride=None, mask="symmetric")
        >>> columns.weights.numpy().tolist(), int(columns.output_length)
        ([1.0, 1.0, 1.0, 0.5], 7)
    """
    row_stride, column_stride = _effective_strides(
        height, width, strides, smoothness_factor, lower_limit_stride, upper_limit_stride, dtype
    )
    windows = _released_windows if mask == "released" else _symmetric_windows
    thresholds = _threshold(height, row_stride), _threshold(width, column_stride)
    return windows(height, width, thresholds, smoothness_factor, cropping, kept, trainable)


def diffstride_window_1d(
    length: Length, stride: Tensor, *, kept: int | None = None, dtype: str = "float32", **options: Any
) -> Window:
    """The window of `diffstride_1d`: the one over the columns of a map of one row.

    Args:
        length: samples of the signal.
        stride: `[1]`.
        kept: a fixed number of kept bins, or None for those of positive weight.
        dtype: float32 or float64, of the weights.
        **options: `smoothness_factor`, `cropping`, `lower_limit_stride`, `upper_limit_stride`, `mask` and `trainable`,
            for `diffstride_windows`.

    Returns:
        A one-sided window.
    """
    strides = ops.concatenate([ops.ones([1]), ops.cast(stride, "float32")])
    _, window = diffstride_windows(1, length, strides, kept=None if kept is None else (1, kept), dtype=dtype, **options)
    return window


def asked_bins(
    height: Length,
    width: Length,
    strides: Tensor,
    *,
    smoothness_factor: float,
    lower_limit_stride: Limits,
    upper_limit_stride: Limits,
    mask: Mask,
    dtype: str = "float32",
) -> tuple[Tensor, Tensor]:
    """How many bins the windows of `diffstride_windows` keep, also while JAX traces a function.

    Args:
        height: rows of the feature map, 1 for signals.
        width: columns of the feature map.
        strides: as for `diffstride_windows`, and so all below; or `[2, m, 1]` or `[1, m, 1]` for `m` of them at once.
        smoothness_factor: `R`, in bins.
        lower_limit_stride: least effective stride, or one for each axis.
        upper_limit_stride: greatest effective stride, or one for each axis.
        mask: 'released' or 'symmetric'.
        dtype: float32 or float64, of the weights.

    Returns:
        Kept rows and kept columns, int32 scalars, or of shape `[m]`.
    """
    effective = _effective_strides(
        height, width, strides, smoothness_factor, lower_limit_stride, upper_limit_stride, dtype
    )
    thresholds = _threshold(height, effective[0]), _threshold(width, effective[1])
    rows, columns = _soft_windows(height, width, thresholds, smoothness_factor, mask)
    return _positive(rows), _positive(columns)


def kept_bins(rows: Window | None, columns: Window) -> tuple[int, int]:
    """How many bins two windows keep, as Python integers.

    Args:
        rows: the window over rows, made eagerly. None for signals, which are maps of one row.
        columns: the window over columns, made eagerly.

    Returns:
        Kept rows and kept columns.
    """
    return 1 if rows is None else int(rows.bins.shape[0]), int(columns.bins.shape[0])


def unequal_frequencies(smoothness_factor: float) -> int:
    """The greatest number of row frequencies that `mask='released'` weighs differently by sign: those on its ramp."""
    return math.ceil(smoothness_factor) + 2


def _released_windows(
    height: Length,
    width: Length,
    thresholds: tuple[Tensor, Tensor],
    smoothness_factor: float,
    cropping: bool,
    kept: tuple[int, int] | None,
    trainable: bool,
) -> tuple[Window, Window]:
    """The windows for `mask='released'`. `diffstride_windows` states them."""
    row_weights, column_weights = _soft_windows(height, width, thresholds, smoothness_factor, "released")
    if kept is None:
        kept = _kept_counts(height, width, row_weights, column_weights, cropping)
    # A map of one column has the bin of frequency 0 alone.
    at_least = max if isinstance(kept[1], int) else ops.maximum
    output_width = at_least(2 * (kept[1] - 1), 1)
    # On an odd number of rows the released mask counts the highest positive frequency among the negative ones.
    negatives = kept[0] - kept[0] // 2
    first_unequal = ops.cast(ops.ceil(thresholds[0]), "int32") - height % 2
    unequal = first_unequal, unequal_frequencies(smoothness_factor)
    return (
        _lowest_rows(height, row_weights, kept[0], negatives, unequal, trainable),
        _lowest_columns(width, column_weights, kept[1], output_width, trainable),
    )


def _symmetric_windows(
    height: Length,
    width: Length,
    thresholds: tuple[Tensor, Tensor],
    smoothness_factor: float,
    cropping: bool,
    kept: tuple[int, int] | None,
    trainable: bool,
) -> tuple[Window, Window]:
    """The windows for `mask='symmetric'`. `diffstride_windows` states them."""
    row_weights, column_weights = _soft_windows(height, width, thresholds, smoothness_factor, "symmetric")
    if kept is None:
        kept = _kept_counts(height, width, row_weights, column_weights, cropping)
    at_most = min if isinstance(kept[1], int) and isinstance(width, int) else ops.minimum
    return (
        _lowest_rows(height, row_weights, kept[0], kept[0] // 2, None, trainable),
        _lowest_columns(width, column_weights, kept[1], at_most(2 * kept[1] - 1, width), trainable),
    )


def _effective_strides(
    height: Length,
    width: Length,
    strides: Tensor,
    smoothness_factor: float,
    lower_limit: Limits,
    upper_limit: Limits,
    dtype: str,
) -> tuple[Tensor, Tensor]:
    """The vertical and the horizontal effective stride, as scalars of `dtype`."""
    minima = [
        ops.convert_to_tensor(minimum_stride(length, smoothness_factor, dtype), dtype) for length in (height, width)
    ]
    if strides.shape[0] == 1:
        minima = [ops.maximum(*minima)] * 2
    places, limits = (0, strides.shape[0] - 1), zip(limits_of_axes(lower_limit), limits_of_axes(upper_limit))
    vertical, horizontal = (
        effective_stride(ops.cast(strides[i], dtype), minimum, lower, upper)
        for i, minimum, (lower, upper) in zip(places, minima, limits)
    )
    return vertical, horizontal


def _threshold(length: Length, stride: Tensor) -> Tensor:
    """`max(n / s, 2) / 2`: half the strided length, at least 1."""
    strided = (length if isinstance(length, int) else ops.cast(length, stride.dtype)) / stride
    # Not `ops.maximum`, whose gradient JAX and PyTorch halve if both are equal.
    return ops.where(strided < 2.0, 2.0, strided) / 2.0


def _soft_windows(
    height: Length, width: Length, thresholds: tuple[Tensor, Tensor], smoothness_factor: float, mask: Mask
) -> tuple[Tensor, Tensor]:
    """The weights of all bins: of the rows with both signs of a frequency, of the columns with one."""
    row_threshold, column_threshold = thresholds
    column_positions = ops.arange(width // 2 + 1)
    if mask == "released":
        row_positions, column_threshold = _released_row_positions(height), column_threshold + 1.0
    else:
        row_positions = ops.minimum(ops.arange(height), height - ops.arange(height))
    return (
        _soft_window(row_positions, row_threshold, smoothness_factor),
        _soft_window(column_positions, column_threshold, smoothness_factor),
    )


def _released_row_positions(length: Length) -> Tensor:
    """[0, 1, …, m - 1, m - 1, …, 1, 0] for `2 m` rows, [1, 2, …, m, m, …, 1, 0] for `2 m + 1`."""
    bins = ops.arange(length)
    return ops.minimum(bins + length % 2, length - 1 - bins)


def _soft_window(positions: Tensor, threshold: Tensor, smoothness_factor: float) -> Tensor:
    """The weight `clip((R + t - p) / R, 0, 1)` of each position; 1 if `p < t`, else 0, for a ramp of length 0."""
    positions = ops.cast(positions[1:], threshold.dtype)
    if smoothness_factor < np.finfo(np.float32).eps:  # Adding so short a ramp to a threshold changes nothing.
        weights = ops.cast(positions < threshold, threshold.dtype)
    else:
        weights = clipped((smoothness_factor + threshold - positions) / smoothness_factor, 0.0, 1.0)
    # Frequency 0 always weighs 1. On an odd number of rows its position is 1, which the least threshold would drop.
    return ops.concatenate([ops.ones([*threshold.shape[:-1], 1], threshold.dtype), weights], axis=-1)


def _kept_counts(
    height: Length, width: Length, row_weights: Tensor, column_weights: Tensor, cropping: bool
) -> tuple[Length, Length]:
    """How many rows and columns of the one-sided spectrum are kept: those of positive weight, or all."""
    if not cropping:
        return height, width // 2 + 1
    return as_length(_positive(row_weights)), as_length(_positive(column_weights))


def _positive(weights: Tensor) -> Tensor:
    """How many weights are positive, or NaN if a stride is."""
    return ops.sum(ops.cast(weights != 0, "int32"), axis=-1)


def _lowest_rows(
    height: Length,
    weights: Tensor,
    kept: Length,
    negatives: Length,
    unequal: tuple[Length, int] | None,
    learned: bool,
) -> Window:
    """The two-sided window of the `kept` lowest frequencies, `negatives` of them negative."""
    bins = ops.concatenate([ops.arange(kept - negatives), ops.arange(height - negatives, height)])
    return Window(height, kept, bins, ops.take(weights, bins), negatives, unequal, learned)


def _lowest_columns(width: Length, weights: Tensor, kept: Length, output_width: Length, learned: bool) -> Window:
    """The one-sided window of the `kept` lowest frequencies."""
    bins = ops.arange(kept)
    return Window(width, output_width, bins, ops.take(weights, bins), None, None, learned)


# --- Fixed poolings --------------------------------------------------------------------------------------------------


def fixed_windows(
    height: Length, width: Length, strides: tuple[float, float], dtype: str = "float32"
) -> tuple[Window, Window]:
    """The hard windows of `fixed_spectral_pooling`: every kept bin weighs 1.

    Rows keep the frequencies `-h / 2 … h / 2 - 1` of the `h` rows of the output, columns `0 … w / 2`. The row `-h / 2`
    becomes the output's Nyquist row without its counterpart, as in the code released with DiffStride. A map of one row
    keeps its frequency 0.

    Args:
        height: rows of the feature map.
        width: columns of the feature map.
        strides: vertical and horizontal, at least 1.
        dtype: float32 or float64, of the weights.

    Returns:
        The window over rows, two-sided, and the window over columns, one-sided.
    """
    output_height, output_width = fixed_output_lengths(height, width, strides)
    low = output_height // 2
    rows = Window(
        length=height,
        output_length=output_height,
        bins=ops.concatenate([ops.arange(output_height - low), ops.arange(height - low, height)]),
        weights=ops.ones([output_height], dtype),
        negatives=low,
        unequal=(low, 1),
        learned=False,
    )
    columns = Window(
        length=width,
        output_length=output_width,
        bins=ops.arange(output_width // 2 + 1),
        weights=ops.ones([output_width // 2 + 1], dtype),
        negatives=None,
        unequal=None,
        learned=False,
    )
    return rows, columns


def resampling_window(length: Length, output_length: Length, dtype: str = "float32") -> Window:
    """The hard window that makes the result equal to `scipy.signal.resample`, times the factor of the norm.

    It keeps the frequencies `0 … k / 2` of an axis, each with weight 1; `k` is the smaller of both lengths. An even
    `k` has a Nyquist frequency. To fewer samples the bins `k / 2` and `-k / 2` fold into one, which therefore weighs
    2 (Rippel et al., NeurIPS 2015, arXiv 1506.03767). To more samples the one bin is shared out over two, which
    therefore weigh 1/2.

    Args:
        length: samples along the axis.
        output_length: samples afterwards, fewer or more.
        dtype: float32 or float64, of the weights.

    Returns:
        A one-sided window.

    Example:
        >>> from diffstride_hybrid import spectral
        >>> [spectral.resampling_window(*lengths).weights.numpy().tolist() for lengths in ((8, 4), (4, 8))]
        [[1.0, 1.0, 2.0], [1.0, 1.0, 0.5]]
    """
    at_most = min if isinstance(length, int) and isinstance(output_length, int) else ops.minimum
    shorter = at_most(length, output_length)
    bins = ops.arange(shorter // 2 + 1)
    is_nyquist = 2 * bins == shorter
    folded, shared = (ops.logical_and(is_nyquist, each) for each in (output_length < length, length < output_length))
    weights = ops.cast(ops.where(folded, 2.0, ops.where(shared, 0.5, 1.0)), dtype)
    return Window(length, output_length, bins, weights, None, None, learned=False)
