"""The poolings as functions of tensors.

The poolings differ only in their windows:

- `diffstride`: a soft window whose width depends on a trainable stride (Riad et al., ICLR 2022, arXiv 2202.01653);
- `fixed_spectral_pooling`: a hard window, as in the code released with that paper;
- `spectral_pooling`: a hard window that keeps the result real (Rippel et al., NeurIPS 2015, arXiv 1506.03767).
"""

from __future__ import annotations

from typing import Any

from diffstride_hybrid.spectral.engine import pool_maps, pool_signals, shares_graph
from diffstride_hybrid.spectral.hard_windows import fixed_windows, resampling_window
from diffstride_hybrid.spectral.layout import signal_length, spatial_lengths, working_dtype
from diffstride_hybrid.spectral.options import Bound, DataFormat, Length, Limits, Mask, Method, Norm, Tensor
from diffstride_hybrid.spectral.windows import (
    Window,
    diffstride_window_1d,
    diffstride_windows,
)


@shares_graph("learned")
def diffstride(
    inputs: Tensor,
    strides: Tensor,
    *,
    smoothness_factor: float = 4.0,
    cropping: bool = True,
    lower_limit_stride: Limits = None,
    upper_limit_stride: Limits = None,
    mask: Mask = "released",
    norm: Norm = "backward",
    data_format: DataFormat = "channels_last",
    method: Method = "auto",
    kept: tuple[int, int] | None = None,
    trainable: bool = True,
    at_most: Bound = None,
) -> Tensor:
    """Pools by a soft window over the spectrum, differentiable in the strides (ICLR 2022, arXiv 2202.01653).

    The spectrum of each channel is multiplied by the windows of `diffstride_windows` over rows and columns, cropped to
    the bins that they keep, and transformed back at its new size.

    Args:
        inputs: floating-point `[batch, height, width, channels]`, or `[batch, channels, height, width]`.
        strides: floating-point `[2]`, vertical and horizontal, or `[1]` for one stride that serves both axes.
        smoothness_factor: `R`, over how many bins the window falls from 1 to 0. At 0 the window is a hard crop, without
            a gradient to the strides.
        cropping: whether bins of weight 0 are dropped. If not, the output has the size of the input, except that
            mask='released' rounds an odd width down to an even one.
        lower_limit_stride: least effective stride, or one for each axis. 1 if None.
        upper_limit_stride: greatest effective stride, or one for each axis. Unlimited if None.
        mask: 'released' computes the window of the released code, 'symmetric' the window of the paper, which weighs
            positive and negative frequencies alike.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.
        method: the engine, 'matmul', or 'fft' on TensorFlow; 'auto' picks one by the size.
        kept: how many bins to keep, (rows, columns), as `kept_bins` gives them. None lets the strides say, which makes
            the output's size dynamic.
        trainable: whether the strides are trained. If not, the gradient to the inputs alone costs less.
        at_most: no map is larger than this, (height, width). It lets a graph for maps of unknown size hold fewer
            operations.

    Returns:
        The pooled maps, in the dtype of `inputs`.

    Example:
        >>> from diffstride_hybrid import spectral
        >>> maps = keras.random.normal([1, 16, 16, 3], seed=0)
        >>> spectral.diffstride(maps, keras.ops.array([2.0, 4.0])).shape
        TensorShape([1, 16, 12, 3])
    """
    rows, columns = diffstride_windows(
        *spatial_lengths(inputs, data_format),
        strides,
        smoothness_factor=smoothness_factor,
        cropping=cropping,
        lower_limit_stride=lower_limit_stride,
        upper_limit_stride=upper_limit_stride,
        mask=mask,
        kept=kept,
        trainable=trainable,
        dtype=working_dtype(inputs),
    )
    return pool_maps(inputs, rows, columns, norm, data_format, method, "learned", at_most)


@shares_graph("fixed")
def fixed_spectral_pooling(
    inputs: Tensor,
    strides: tuple[float, float],
    *,
    norm: Norm = "backward",
    data_format: DataFormat = "channels_last",
    method: Method = "auto",
    at_most: Bound = None,
) -> Tensor:
    """Pools by the hard windows of `fixed_windows`, as the code released with DiffStride does.

    Args:
        inputs: floating-point `[batch, height, width, channels]`, or `[batch, channels, height, width]`.
        strides: vertical and horizontal, at least 1.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.
        method: the engine, 'matmul', or 'fft' on TensorFlow; 'auto' picks one by the size.
        at_most: no map is larger than this, (height, width). It lets a graph for maps of unknown size hold fewer
            operations.

    Returns:
        The pooled maps, in the dtype of `inputs`: `max(2, floor(n / stride))` samples along an axis of `n`, rows
        rounded down to an even number.

    Example:
        >>> from diffstride_hybrid import spectral
        >>> spectral.fixed_spectral_pooling(keras.ops.ones([1, 10, 10, 3]), (2.0, 2.0)).shape
        TensorShape([1, 4, 5, 3])
    """
    rows, columns = fixed_windows(*spatial_lengths(inputs, data_format), strides, dtype=working_dtype(inputs))
    return pool_maps(inputs, rows, columns, norm, data_format, method, "fixed", at_most)


@shares_graph("resampled")
def spectral_pooling(
    inputs: Tensor,
    output_lengths: tuple[Length, Length],
    *,
    norm: Norm = "backward",
    data_format: DataFormat = "channels_last",
    method: Method = "auto",
    at_most: Bound = None,
) -> Tensor:
    """Pools by cropping the two-dimensional spectrum to a given size (Rippel et al., NeurIPS 2015, arXiv 1506.03767).

    If the output's length is even and below the input's, its Nyquist bin is the sum of the input's bins at plus and
    minus that frequency. So the result is real, and along each axis equals `scipy.signal.resample` times a constant:
    1 for `norm='forward'`, the ratio of the lengths for 'backward', the square root of that ratio for 'ortho'.

    Args:
        inputs: floating-point `[batch, height, width, channels]`, or `[batch, channels, height, width]`.
        output_lengths: height and width of the result, at most those of `inputs`.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.
        method: the engine, 'matmul', or 'fft' on TensorFlow; 'auto' picks one by the size.
        at_most: no map is larger than this, (height, width). It lets a graph for maps of unknown size hold fewer
            operations.

    Returns:
        The pooled maps, in the dtype of `inputs`.

    Example:
        >>> from diffstride_hybrid import spectral
        >>> spectral.spectral_pooling(keras.ops.ones([1, 16, 16, 3]), (7, 8), norm="forward").shape
        TensorShape([1, 7, 8, 3])
    """
    rows, columns = _resampling_windows(inputs, output_lengths, data_format)
    return pool_maps(inputs, rows, columns, norm, data_format, method, "resampled", at_most)


@shares_graph("learned", signals=True)
def diffstride_1d(
    inputs: Tensor,
    stride: Tensor,
    *,
    smoothness_factor: float = 4.0,
    cropping: bool = True,
    lower_limit_stride: Limits = None,
    upper_limit_stride: Limits = None,
    mask: Mask = "released",
    norm: Norm = "backward",
    data_format: DataFormat = "channels_last",
    method: Method = "auto",
    **options: Any,
) -> Tensor:
    """Pools signals by a soft window over the spectrum: `diffstride` along the columns of maps of one row.

    Args:
        inputs: floating-point `[batch, time, channels]`, or `[batch, channels, time]`.
        stride: floating-point `[1]`.
        smoothness_factor: as for `diffstride`, and so are the next four.
        cropping: whether bins of weight 0 are dropped.
        lower_limit_stride: least effective stride, or one for each axis, of which the second counts.
        upper_limit_stride: greatest effective stride, likewise.
        mask: 'released' or 'symmetric'.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.
        method: the engine, 'matmul', or 'fft' on TensorFlow; 'auto' picks one by the size.
        **options: `kept` (a number of bins) and `trainable`, for `diffstride_window_1d`.

    Returns:
        The pooled signals, in the dtype of `inputs`.

    Example:
        >>> from diffstride_hybrid import spectral
        >>> spectral.diffstride_1d(keras.ops.ones([1, 16, 3]), keras.ops.array([4.0])).shape
        TensorShape([1, 12, 3])
    """
    length = signal_length(inputs, data_format)
    options |= {"smoothness_factor": smoothness_factor, "cropping": cropping, "mask": mask}
    options |= {"lower_limit_stride": lower_limit_stride, "upper_limit_stride": upper_limit_stride}
    window = diffstride_window_1d(length, stride, dtype=working_dtype(inputs), **options)
    return pool_signals(inputs, window, norm, data_format, method, "learned")


@shares_graph("resized")
def spectral_resizing(
    inputs: Tensor,
    output_lengths: tuple[Length, Length],
    *,
    norm: Norm = "forward",
    data_format: DataFormat = "channels_last",
    method: Method = "auto",
) -> Tensor:
    """Resizes maps by cropping their spectrum or padding it with zeros: `scipy.signal.resample` along each axis.

    Args:
        inputs: floating-point `[batch, height, width, channels]`, or `[batch, channels, height, width]`.
        output_lengths: height and width of the result, each smaller or larger than that of `inputs`.
        norm: as in `numpy.fft`. 'forward' keeps the values of a smooth map.
        data_format: which axis holds the channels.
        method: the engine, 'matmul', or 'fft' on TensorFlow; 'auto' picks one by the size.

    Returns:
        The resized maps, in the dtype of `inputs`.

    Example:
        >>> from diffstride_hybrid import spectral
        >>> spectral.spectral_resizing(keras.ops.ones([1, 16, 16, 3]), (7, 40)).shape
        TensorShape([1, 7, 40, 3])
    """
    rows, columns = _resampling_windows(inputs, output_lengths, data_format)
    return pool_maps(inputs, rows, columns, norm, data_format, method, "resized")


@shares_graph("resized", signals=True)
def spectral_resizing_1d(
    inputs: Tensor,
    output_length: Length,
    *,
    norm: Norm = "forward",
    data_format: DataFormat = "channels_last",
    method: Method = "auto",
) -> Tensor:
    """Resizes signals by cropping their spectrum or padding it with zeros: `scipy.signal.resample` at `norm='forward'`.

    Args:
        inputs: floating-point `[batch, time, channels]`, or `[batch, channels, time]`.
        output_length: samples of the result, fewer or more than those of `inputs`.
        norm: as in `numpy.fft`. 'forward' keeps the values of a smooth signal.
        data_format: which axis holds the channels.
        method: the engine, 'matmul', or 'fft' on TensorFlow; 'auto' picks one by the size.

    Returns:
        The resized signals, in the dtype of `inputs`.

    Example:
        >>> from diffstride_hybrid import spectral
        >>> spectral.spectral_resizing_1d(keras.ops.ones([1, 16, 3]), 40).shape
        TensorShape([1, 40, 3])
    """
    length = signal_length(inputs, data_format)
    window = resampling_window(length, output_length, working_dtype(inputs))
    return pool_signals(inputs, window, norm, data_format, method, "resized")


def _resampling_windows(
    inputs: Tensor, output_lengths: tuple[Length, Length], data_format: DataFormat
) -> tuple[Window, Window]:
    lengths, dtype = spatial_lengths(inputs, data_format), working_dtype(inputs)
    rows, columns = (resampling_window(*before_and_after, dtype) for before_and_after in zip(lengths, output_lengths))
    return rows, columns
