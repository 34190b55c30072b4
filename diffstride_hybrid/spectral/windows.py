"""Windows over a spectrum: which bins a pooling keeps along an axis, and with what weight."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from diffstride_hybrid.backends import current
from diffstride_hybrid.backends.current import as_length
from diffstride_hybrid.spectral.options import Length, Limits, Mask, Tensor
from diffstride_hybrid.spectral.sizes import effective_strides, minimum_stride, of_axes


class Window(NamedTuple):
    """The part of one axis's spectrum that a pooling keeps: its lowest frequencies.

    Attributes:
        length: samples along the axis before pooling.
        output_length: samples along the axis after pooling.
        kept: the number of kept bins of the input's DFT. The kept bins become the bins of the output's spectrum.
        factors: float32 or float64, carries the gradient to the stride. `[kept]`, the weight of each kept bin; if
            `unequal` is given, `[negatives + 1, 2]`, the weights of the frequencies k and -k for k = 0, 1, …, where 0
            counts among the positive ones, and a frequency that is kept with one sign only weighs 0 with the other.
        negatives: how many of the bins, the last ones, are of negative frequency. None for a one-sided window, which
            lists only the non-negative frequencies, as `rfft` does.
        unequal: for a two-sided window, the first of the frequencies k for which k and -k may have unequal weights, and
            the greatest number of such frequencies. At all others both signs weigh 1, or both weigh 0. None if the
            weights of both signs are equal everywhere.
        learned: whether the weights depend on a stride that is trained.
        longest: an axis has no more samples than this. None if no bound is known; not used if `length` is known.
    """

    length: Length
    output_length: Length
    kept: Length
    factors: Tensor
    negatives: Length | None
    unequal: tuple[Length, int] | None
    learned: bool
    longest: int | None = None

    @property
    def most(self) -> Length:
        """As many samples as the axis has, or more: a Python integer if a bound is known."""
        return self.length if isinstance(self.length, int) or self.longest is None else self.longest

    @property
    def dtype(self) -> Any:
        """float32 or float64."""
        return self.factors.dtype

    @property
    def weights(self) -> Tensor:
        """`[kept]`, the weight of each kept bin, those of negative frequency last."""
        if self.unequal is None:
            return self.factors
        negative = ops.flip(self.factors[1:, 1], axis=0)
        return ops.concatenate([self.factors[: self.kept - self.negatives, 0], negative])

    @property
    def bins(self) -> Tensor:
        """int32 `[kept]`, the kept bins of the input's DFT, those of negative frequency last."""
        if self.negatives is None:
            return ops.arange(self.kept)
        negative = ops.arange(self.length - self.negatives, self.length)
        return ops.concatenate([ops.arange(self.kept - self.negatives), negative])


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
    thresholds = _thresholds(
        height, width, strides, smoothness_factor, lower_limit_stride, upper_limit_stride, mask, dtype
    )
    if kept is None and cropping:
        counts = _positive_counts(height, width, thresholds, smoothness_factor, mask)
        kept = tuple(as_length(count) for count in ops.unstack(counts, 2))
        kept = _kept_rows(height, kept[0], mask), kept[1]
    rows, columns = kept or (height, width // 2 + 1)
    row_threshold, column_threshold = ops.unstack(thresholds, 2)
    negatives = rows - rows // 2 if mask == "released" else rows // 2
    positions = _released_positions if mask == "released" else _symmetric_positions
    row_factors = _soft_window(positions(height, rows - negatives, negatives), row_threshold, smoothness_factor)
    column_factors = _soft_window(ops.arange(columns), column_threshold, smoothness_factor)
    if mask == "released":
        # On an odd number of rows the released mask counts the highest positive frequency among the negative ones.
        first_unequal = ops.cast(ops.ceil(row_threshold), "int32") - height % 2
        unequal = first_unequal, unequal_frequencies(smoothness_factor)
        output_width = _greatest(2 * (columns - 1), 1)  # A map of one column has the bin of frequency 0 alone.
    else:
        unequal, output_width = None, _least(2 * columns - 1, width)
    return (
        Window(height, rows, rows, row_factors, negatives, unequal, trainable),
        Window(width, output_width, columns, column_factors, None, None, trainable),
    )


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
    strides = ops.concatenate([ops.ones([1], dtype), ops.cast(stride, dtype)])
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
        strides: as for `diffstride_windows`, and so all below; or `[2, m]` or `[1, m]` for `m` of them at once.
        smoothness_factor: `R`, in bins.
        lower_limit_stride: least effective stride, or one for each axis.
        upper_limit_stride: greatest effective stride, or one for each axis.
        mask: 'released' or 'symmetric'.
        dtype: float32 or float64, of the weights.

    Returns:
        Kept rows and kept columns, int32 scalars, or of shape `[m]`.
    """
    thresholds = _thresholds(
        height, width, strides, smoothness_factor, lower_limit_stride, upper_limit_stride, mask, dtype
    )
    rows, columns = ops.unstack(_positive_counts(height, width, thresholds, smoothness_factor, mask), 2)
    return _kept_rows(height, rows, mask), columns


def kept_bins(rows: Window | None, columns: Window) -> tuple[int, int]:
    """How many bins two windows keep, as Python integers.

    Args:
        rows: the window over rows, made eagerly. None for signals, which are maps of one row.
        columns: the window over columns, made eagerly.

    Returns:
        Kept rows and kept columns.
    """
    return 1 if rows is None else int(rows.kept), int(columns.kept)


def unequal_frequencies(smoothness_factor: float) -> int:
    """The greatest number of row frequencies that `mask='released'` weighs differently by sign: those on its ramp."""
    return math.ceil(smoothness_factor) + 2


def _thresholds(
    height: Length,
    width: Length,
    strides: Tensor,
    smoothness_factor: float,
    lower_limit: Limits,
    upper_limit: Limits,
    mask: Mask,
    dtype: str,
) -> Tensor:
    """The thresholds of rows and of columns, `[2]`, or `[2, m]` for `m` pairs of strides."""
    rank = len(strides.shape)
    lengths = of_axes(height, width, dtype=dtype, rank=rank)
    if isinstance(height, int) and isinstance(width, int):
        minima = of_axes(*(minimum_stride(n, smoothness_factor) for n in (height, width)), dtype=dtype, rank=rank)
    else:
        minima = minimum_stride(lengths, smoothness_factor, dtype)
    if strides.shape[0] == 1:
        minima = ops.max(minima, axis=0, keepdims=True)
    effective = effective_strides(ops.cast(strides, dtype), minima, lower_limit, upper_limit)
    halved = current.clipped(lengths / effective, 2.0, None) * 0.5
    return halved + of_axes(0.0, 1.0, dtype=dtype, rank=rank) if mask == "released" else halved


def _positive_counts(height: Length, width: Length, thresholds: Tensor, smoothness_factor: float, mask: Mask) -> Tensor:
    """How many positions of rows and of columns have a positive weight, int32 of the shape of `thresholds`.

    The positions are 0, 1, 2, …; rows have most of them twice. All count if a stride is NaN.
    """
    rows = height // 2 + (height % 2 if mask == "released" else 1)
    most = of_axes(rows, width // 2 + 1, dtype=thresholds.dtype, rank=len(thresholds.shape))
    ends = ops.stop_gradient(thresholds)
    if smoothness_factor >= _LEAST_RAMP:
        ends = ends + smoothness_factor
    return ops.cast(ops.where(ends < most, ops.ceil(ends), most), "int32")


def _kept_rows(height: Length, positions: Length, mask: Mask) -> Length:
    """How many rows are kept if so many of their positions have a positive weight."""
    if mask == "released":
        # Frequency 0 is kept, though its position is 1 on an odd number of rows.
        return _greatest(2 * positions - height % 2, _least(2, height))
    return _least(2 * positions - 1, height)


def _released_positions(height: Length, positives: Length, negatives: Length) -> Tensor:
    """`[negatives + 1, 2]`: the positions of the frequencies k and -k. Those that are not kept are far away."""
    frequencies = ops.arange(negatives + 1)
    positive = frequencies
    if not isinstance(height, int) or height % 2:
        # Frequency 0 always weighs 1, and so stays at position 0.
        positive = frequencies + ops.minimum(frequencies, height % 2)
    positive = ops.where(frequencies < positives, positive, _FAR)
    return ops.stack([positive, ops.where(frequencies > 0, frequencies - 1, _FAR)], axis=1)


_FAR = 2**30
"""A position at which every window weighs 0."""


def _symmetric_positions(height: Length, positives: Length, negatives: Length) -> Tensor:
    """`[positives + negatives]`: the positions of the frequencies 0, 1, …, then of …, -2, -1."""
    return ops.concatenate([ops.arange(positives), ops.arange(negatives, 0, -1)])


def _soft_window(positions: Tensor, threshold: Tensor, smoothness_factor: float) -> Tensor:
    """The weight `clip((R + t - p) / R, 0, 1)` of each position; 1 if `p < t`, else 0, for a ramp of length 0."""
    positions = ops.cast(positions, threshold.dtype)
    if smoothness_factor < _LEAST_RAMP:
        return ops.cast(positions < threshold, threshold.dtype)
    return current.clipped((threshold + smoothness_factor - positions) * (1.0 / smoothness_factor), 0.0, 1.0)


_LEAST_RAMP = float(np.finfo(np.float32).eps)
"""A shorter ramp counts as one of length 0: adding it to a threshold in float32 changes nothing."""


def _greatest(first: Length, second: Length) -> Length:
    return max(first, second) if isinstance(first, int) and isinstance(second, int) else ops.maximum(first, second)


def _least(first: Length, second: Length) -> Length:
    return min(first, second) if isinstance(first, int) and isinstance(second, int) else ops.minimum(first, second)
