"""Pooling in the Fourier domain: windows over a spectrum and two engines that apply them.

A feature map is transformed by the unnormalised forward DFT, the low frequencies that a `Window` keeps along each axis
are weighted, and the cropped spectrum is transformed back at its own, smaller size. Three poolings differ only in
their windows:

- `diffstride`: a soft window whose width depends on a trainable stride (Riad et al., ICLR 2022, arXiv 2202.01653);
- `fixed_spectral_pooling`: a hard window, as in the code released with that paper;
- `spectral_pooling`: a hard window that keeps the result real (Rippel et al., NeurIPS 2015, arXiv 1506.03767).

Two engines compute the same result. `method='fft'` runs the transforms. `method='matmul'` multiplies by the few small
matrices that the whole linear map amounts to. This module knows tensors only: no Keras, no variables, no gin.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla
from tensorflow.python.ops import control_flow_util

FFT_BEYOND = 512
"""Samples of the longer axis beyond which 'auto' takes the transforms, as measured on a CPU at stride 2: at 512
'matmul' took 0.4 to 0.8 of their time, at 640 0.7 with 64 channels and 1.3 with 16, at 1024 with 16 channels 1.9."""

SPLIT_FROM = 48
"""Rows of a map from which on 'matmul' takes the frequencies of equal weights by themselves, as measured on a CPU."""

Length = int | tf.Tensor
"""Samples along an axis: a Python integer where it is known when the graph is traced, else an int32 scalar."""

MASKS = ("released", "symmetric")
NORMS = ("backward", "forward", "ortho")
METHODS = ("auto", "fft", "matmul")
DATA_FORMATS = ("channels_last", "channels_first")

Mask = Literal["released", "symmetric"]
Norm = Literal["backward", "forward", "ortho"]
Method = Literal["auto", "fft", "matmul"]
DataFormat = Literal["channels_last", "channels_first"]


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


def diffstride(
    inputs: tf.Tensor,
    strides: tf.Tensor,
    *,
    smoothness_factor: float = 4.0,
    cropping: bool = True,
    lower_limit_stride: float | None = None,
    upper_limit_stride: float | None = None,
    mask: Mask = "released",
    norm: Norm = "backward",
    data_format: DataFormat = "channels_last",
    method: Method = "auto",
    kept: tuple[int, int] | None = None,
    trainable: bool = True,
) -> tf.Tensor:
    """Pools by a soft window over the spectrum, differentiable in the strides (ICLR 2022, section 3).

    Args:
        inputs: floating-point `[batch, height, width, channels]`, or `[batch, channels, height, width]`.
        strides: `[2]`, vertical and horizontal, or `[1]` for one stride that serves both axes.
        smoothness_factor: `R`, how many bins the window takes to fall from 1 to 0. At 0 the window is a hard crop.
        cropping: whether bins of weight 0 are dropped. If not, the output has the size of the input.
        lower_limit_stride: least effective stride, 1 where None.
        upper_limit_stride: greatest effective stride, unlimited where None.
        mask: the positions that the window is taken over, see `diffstride_windows`.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.
        method: the engine.
        kept: how many bins to keep, (rows, columns) as `kept_bins` gives them. None asks the strides, which makes the
            output's size dynamic.
        trainable: whether the strides are trained. If not, the gradient to the inputs alone costs less.

    Returns:
        The pooled map, in the dtype of `inputs`.
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
        dtype=_working_dtype(inputs),
    )
    return _apply_windows(inputs, rows, columns, norm, data_format, method)


def fixed_spectral_pooling(
    inputs: tf.Tensor,
    strides: tuple[float, float],
    *,
    norm: Norm = "backward",
    data_format: DataFormat = "channels_last",
    method: Method = "auto",
) -> tf.Tensor:
    """Pools by a hard window, as `FixedSpectralPooling` of the code released with DiffStride.

    Args:
        inputs: floating-point `[batch, height, width, channels]`, or `[batch, channels, height, width]`.
        strides: vertical and horizontal, at least 1.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.
        method: the engine.

    Returns:
        The pooled map, in the dtype of `inputs`, of the size that `fixed_output_lengths` gives.
    """
    rows, columns = fixed_windows(*spatial_lengths(inputs, data_format), strides, dtype=_working_dtype(inputs))
    return _apply_windows(inputs, rows, columns, norm, data_format, method)


def spectral_pooling(
    inputs: tf.Tensor,
    output_lengths: tuple[Length, Length],
    *,
    norm: Norm = "backward",
    data_format: DataFormat = "channels_last",
    method: Method = "auto",
) -> tf.Tensor:
    """Pools by cropping the two-dimensional spectrum to a given size (Rippel et al., NeurIPS 2015, section 3).

    Where the output's length is even and below the input's, its Nyquist bin is the sum of the input's bins at plus and
    minus that frequency. So the result is real, and along each axis equals `scipy.signal.resample` times a constant:
    1 for `norm='forward'`, the ratio of the lengths for `'backward'`, its square root for `'ortho'`.

    Args:
        inputs: floating-point `[batch, height, width, channels]`, or `[batch, channels, height, width]`.
        output_lengths: height and width of the result, at most those of `inputs`.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.
        method: the engine.

    Returns:
        The pooled map, in the dtype of `inputs`.
    """
    lengths = spatial_lengths(inputs, data_format)
    if resolve_method(method, *lengths) == "fft":
        return _spectral_pooling_fft(inputs, output_lengths, norm, data_format)
    dtype = _working_dtype(inputs)
    rows, columns = (
        resampling_window(length, output_length, dtype) for length, output_length in zip(lengths, output_lengths)
    )
    return _pool_by_matmul(inputs, rows, columns, norm, data_format)


def diffstride_1d(
    inputs: tf.Tensor,
    stride: tf.Tensor,
    *,
    norm: Norm = "backward",
    data_format: DataFormat = "channels_last",
    method: Method = "auto",
    **options: Any,
) -> tf.Tensor:
    """What `diffstride` does along the horizontal axis, for signals of one.

    Args:
        inputs: floating-point `[batch, time, channels]`, or `[batch, channels, time]`.
        stride: `[1]`.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.
        method: the engine.
        **options: for `diffstride_window_1d`.

    Returns:
        The pooled signal, in the dtype of `inputs`.
    """
    length = signal_length(inputs, data_format)
    window = diffstride_window_1d(length, stride, dtype=_working_dtype(inputs), **options)
    return _pool_one_axis(inputs, window, norm, data_format, method)


def spectral_pooling_1d(
    inputs: tf.Tensor,
    output_length: Length,
    *,
    norm: Norm = "backward",
    data_format: DataFormat = "channels_last",
    method: Method = "auto",
) -> tf.Tensor:
    """What `spectral_pooling` does along one axis: `scipy.signal.resample` to fewer samples, times a constant.

    Args:
        inputs: floating-point `[batch, time, channels]`, or `[batch, channels, time]`.
        output_length: samples of the result, at most those of `inputs`.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.
        method: the engine.

    Returns:
        The pooled signal, in the dtype of `inputs`.
    """
    length = signal_length(inputs, data_format)
    window = resampling_window(length, output_length, _working_dtype(inputs))
    return _pool_one_axis(inputs, window, norm, data_format, method)


# --- Strides and sizes -----------------------------------------------------------------------------------------------


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


def spatial_lengths(inputs: tf.Tensor, data_format: DataFormat) -> tuple[Length, Length]:
    """Height and width of a feature map, each a Python integer where it is known."""
    first = 1 if data_format == "channels_last" else 2
    dynamic = tf.shape(inputs)
    height, width = (dynamic[axis] if inputs.shape[axis] is None else inputs.shape[axis] for axis in (first, first + 1))
    return height, width


def signal_length(inputs: tf.Tensor, data_format: DataFormat) -> Length:
    """Samples of a signal, a Python integer where it is known."""
    return _length_of(inputs, 1 if data_format == "channels_last" else 2)


# --- Windows ---------------------------------------------------------------------------------------------------------


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


# --- Constants -------------------------------------------------------------------------------------------------------


def pooling_matrices(rows: Window | None, columns: Window, norm: Norm) -> tuple[tf.Tensor | None, tf.Tensor]:
    """The two matrices that a pooling amounts to: `y = column_matrix · (row_matrix · x)`, for `apply_matrices`.

    Args:
        rows: the window over rows, or None for a signal of one axis.
        columns: the window over columns.
        norm: as in `numpy.fft`.

    Returns:
        `[parts · output height, height]`, or None, and `[output width, parts · width]`. The parts are real and
        imaginary ones where the rows weigh positive and negative frequencies differently; else there is one.
    """
    if rows is None:
        return None, _pooling_matrix(columns, norm, 1)[:, 0]
    parts = 1 if rows.unequal is None else 2
    row_matrix = tf.reshape(_pooling_matrix(rows, norm, parts), [-1, rows.length])
    signs = tf.constant([1, -1][:parts], columns.weights.dtype)[:, None]  # Of the real part of a product.
    column_matrix = tf.reshape(_pooling_matrix(columns, norm, parts) * signs, [-1, parts * columns.length])
    return row_matrix, column_matrix


def apply_matrices(
    inputs: tf.Tensor, row_matrix: tf.Tensor | None, column_matrix: tf.Tensor, data_format: DataFormat
) -> tf.Tensor:
    """Pools by what `pooling_matrices` gives: one or two products with constants, of known shapes.

    Args:
        inputs: `[batch, height, width, channels]` or `[batch, time, channels]`, or with the channels first.
        row_matrix: see `pooling_matrices`.
        column_matrix: see `pooling_matrices`.
        data_format: which axis holds the channels.

    Returns:
        The pooled map or signal, in the dtype of `inputs`.
    """
    column_matrix = tf.cast(column_matrix, inputs.dtype)
    if row_matrix is None:
        return tf.einsum("bnc,pn->bpc" if data_format == "channels_last" else "bcn,pn->bcp", inputs, column_matrix)
    maps = inputs if data_format == "channels_last" else tf.transpose(inputs, [0, 2, 3, 1])
    height, width, channels = maps.shape[1:]
    output_width, columns = column_matrix.shape
    half = tf.matmul(tf.cast(row_matrix, inputs.dtype)[None], tf.reshape(maps, [-1, height, width * channels]))
    outputs = tf.matmul(column_matrix[None], tf.reshape(half, [-1, columns, channels]))
    output_height = row_matrix.shape[0] * width // columns
    outputs = tf.reshape(outputs, [-1, output_height, output_width, channels])
    return outputs if data_format == "channels_last" else tf.transpose(outputs, [0, 3, 1, 2])


# --- Engines ---------------------------------------------------------------------------------------------------------


def resolve_method(method: Method, height: Length, width: Length) -> Method:
    """The engine that `method` stands for at a given size.

    'auto' is 'matmul', but 'fft' where an axis is known to be longer than `FFT_BEYOND`, save on a TPU, whose compiler
    makes dense products of a transform.
    """
    if method != "auto":
        return method
    longest = max(length if isinstance(length, int) else 0 for length in (height, width))
    return "fft" if longest > FFT_BEYOND and not _on_tpu() else "matmul"


def matmul_macs(
    height: int, width: int, output_height: int, output_width: int, *, unequal: int | None, data_format: DataFormat
) -> int:
    """Multiply-accumulate operations of the 'matmul' engine for one channel of one image.

    Args:
        height: rows of the feature map.
        width: columns of the feature map.
        output_height: rows after pooling.
        output_width: columns after pooling.
        unequal: how many row frequencies at most weigh differently by sign; None for a real operator.
        data_format: which axis holds the channels: a real operator begins with rows in channels_last, else with
            columns.

    Returns:
        The number of operations.
    """
    if unequal is not None:
        pairs = output_height - output_height // 2 + 1
        doubled = pairs if height < SPLIT_FROM else min(unequal, pairs)
        spectra = height * width + output_height * output_width
        return 2 * pairs * spectra + 2 * (pairs + doubled) * width * output_width
    if data_format == "channels_last":
        return output_height * width * (height + output_width)
    return height * output_width * (width + output_height)


def unequal_frequencies(smoothness_factor: float) -> int:
    """How many row frequencies at most `mask='released'` weighs differently by sign: those on its ramp."""
    return math.ceil(smoothness_factor) + 2


def needs_static_shapes() -> bool:
    """Whether shapes must be known when a graph is traced: it is for XLA, or a TPU's strategy is in scope."""
    return _compiled_by_xla() or _on_tpu()


def _on_tpu() -> bool:
    return isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)


def _compiled_by_xla() -> bool:
    """Whether the current graph, or one around it, is traced for XLA: by `jit_compile=True` or for a TPU's replicas."""
    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def _apply_windows(
    inputs: tf.Tensor, rows: Window, columns: Window, norm: Norm, data_format: DataFormat, method: Method
) -> tf.Tensor:
    if resolve_method(method, rows.length, columns.length) == "fft":
        return _pool_by_fft(inputs, rows, columns, norm, data_format)
    return _pool_by_matmul(inputs, rows, columns, norm, data_format)


def _pool_by_fft(inputs: tf.Tensor, rows: Window, columns: Window, norm: Norm, data_format: DataFormat) -> tf.Tensor:
    spectrum = tf.signal.rfft2d(tf.cast(_to_channels_first(inputs, data_format), rows.weights.dtype))
    first_negative = rows.length - rows.negatives
    spectrum = _bins(spectrum, 2, (0, rows.output_length - rows.negatives), (first_negative, rows.length))
    spectrum = _bins(spectrum, 3, (0, _length_of(columns.bins, 0)))
    spectrum *= _as_complex(rows.weights[:, None] * columns.weights)
    outputs = tf.signal.irfft2d(spectrum, [rows.output_length, columns.output_length])
    outputs *= _scale_after_inverse(rows.length, rows.output_length, norm, outputs.dtype)
    outputs *= _scale_after_inverse(columns.length, columns.output_length, norm, outputs.dtype)
    return _from_channels_first(outputs, inputs, rows.output_length, columns.output_length, data_format)


def _pool_one_axis(inputs: tf.Tensor, window: Window, norm: Norm, data_format: DataFormat, method: Method) -> tf.Tensor:
    """Pools a signal by a one-sided window, whose matrix is real: one product, or `rfft` and `irfft`."""
    last = data_format == "channels_last"
    if resolve_method(method, 1, window.length) == "fft":
        signal = tf.transpose(inputs, [0, 2, 1]) if last else inputs
        spectrum = _bins(tf.signal.rfft(tf.cast(signal, window.weights.dtype)), 2, (0, _length_of(window.bins, 0)))
        outputs = tf.signal.irfft(spectrum * _as_complex(window.weights), [window.output_length])
        outputs *= _scale_after_inverse(window.length, window.output_length, norm, outputs.dtype)
        outputs = tf.cast(tf.transpose(outputs, [0, 2, 1]) if last else outputs, inputs.dtype)
    else:
        matrix = _pooling_matrix(window, norm, 1)[:, 0]
        if _compiled_by_xla():
            outputs = _einsum("bnc,pn->bpc" if last else "bcn,pn->bcp", inputs, tf.cast(matrix, inputs.dtype))
        elif last:
            outputs = (_learned_product if window.learned else _product)(matrix, inputs)
        else:
            outputs = tf.matmul(inputs, tf.cast(matrix, inputs.dtype), transpose_b=True)
    length = window.output_length if isinstance(window.output_length, int) else None
    batch, channels = inputs.shape[0], inputs.shape[2 if last else 1]
    return tf.ensure_shape(outputs, [batch, length, channels] if last else [batch, channels, length])


def _spectral_pooling_fft(
    inputs: tf.Tensor, output_lengths: tuple[Length, Length], norm: Norm, data_format: DataFormat
) -> tf.Tensor:
    working = _working_dtype(inputs)
    spectrum = tf.signal.fft2d(_as_complex(tf.cast(_to_channels_first(inputs, data_format), working)))
    scale = tf.ones([], working)
    for axis, length, output_length in zip((2, 3), spatial_lengths(inputs, data_format), output_lengths):
        spectrum = _crop_and_fold(spectrum, axis, length, output_length)
        scale *= _scale_after_inverse(length, output_length, norm, working)
    outputs = tf.math.real(tf.signal.ifft2d(spectrum)) * scale
    return _from_channels_first(outputs, inputs, *output_lengths, data_format)


def _crop_and_fold(spectrum: tf.Tensor, axis: int, length: Length, output_length: Length) -> tf.Tensor:
    """Keeps the lowest bins of one axis; the output's Nyquist bin also takes the bin of the opposite sign."""
    half = output_length // 2
    cropped = _bins(spectrum, axis, (0, output_length - half), (length - half, length))
    folds = (2 * tf.range(output_length) == output_length) & (output_length < length)
    folds = _as_complex(tf.cast(tf.reshape(folds, [-1] + [1] * (3 - axis)), spectrum.dtype.real_dtype))
    return cropped + folds * _bins(spectrum, axis, (half, half + 1))


def _bins(spectrum: tf.Tensor, axis: int, *ranges: tuple[Length, Length]) -> tf.Tensor:
    """The bins of some ranges along one axis, each from its first up to the one after its last.

    For XLA by slices, as a TPU refuses the gradient of a gather at some sizes. A gather is faster without XLA.
    """
    if not _compiled_by_xla():
        return tf.gather(spectrum, tf.concat([tf.range(*bounds) for bounds in ranges], 0), axis=axis)
    every = (slice(None),) * axis
    return tf.concat([spectrum[(*every, slice(*bounds))] for bounds in ranges], axis)


def _pool_by_matmul(inputs: tf.Tensor, rows: Window, columns: Window, norm: Norm, data_format: DataFormat) -> tf.Tensor:
    """Computes `Re(B_rows · X · B_columnsᵀ)` for every channel by matrix products."""
    if _compiled_by_xla():
        outputs = _compiled_products(inputs, rows, columns, norm, data_format)
    elif rows.unequal is None:
        outputs = _real_products(inputs, rows, columns, norm, data_format)
    elif data_format == "channels_last":
        outputs = _products_by_row_frequency(inputs, rows, columns, norm)
    else:
        outputs = _products_by_row_frequency(tf.transpose(inputs, [0, 2, 3, 1]), rows, columns, norm)
        outputs = _to_channels_first(outputs, "channels_last")
    return _with_static_shape(outputs, inputs, rows.output_length, columns.output_length, data_format)


def _real_products(inputs: tf.Tensor, rows: Window, columns: Window, norm: Norm, data_format: DataFormat) -> tf.Tensor:
    """Two products, without a transposition in either data format, for windows whose pooling matrices are real."""
    row_matrix, column_matrix = (_pooling_matrix(window, norm, 1)[:, 0] for window in (rows, columns))
    product = _learned_product if rows.learned else _product
    if data_format == "channels_last":
        channels = _length_of(inputs, 3)
        half = product(row_matrix, tf.reshape(inputs, [-1, rows.length, columns.length * channels]))
        outputs = product(column_matrix, tf.reshape(half, [-1, columns.length, channels]))
        return tf.reshape(outputs, [-1, rows.output_length, columns.output_length, channels])
    column_matrix = tf.cast(column_matrix, inputs.dtype)
    half = tf.matmul(tf.reshape(inputs, [-1, columns.length]), column_matrix, transpose_b=True)
    outputs = product(row_matrix, tf.reshape(half, [-1, rows.length, columns.output_length]))
    batch, channels = _length_of(inputs, 0), _length_of(inputs, 1)
    return tf.reshape(outputs, [batch, channels, rows.output_length, columns.output_length])


def _products_by_row_frequency(inputs: tf.Tensor, rows: Window, columns: Window, norm: Norm) -> tf.Tensor:
    """Three products in channels_last, for windows that weigh positive and negative frequencies differently.

    The first takes the real DFT of the columns of a map: `C_k = Σ_n cos(2πkn/H) x_n` and `S_k` with the sine, one pair
    of rows for each frequency k that is kept with either sign. With p and q the weights of k and -k, and E and O the
    real and the imaginary part of B_columns, the second computes for each k

        P_k =  (p + q) E C_k + (p - q) O S_k
        Q_k = -(p - q) O C_k + (p + q) E S_k

    and the third `y_i = Σ_k cos(2πki/h) P_k + sin(2πki/h) Q_k`, the real part of what the inverse DFT would give.

    Only the second depends on the strides, so the gradient to them takes one product more, and neither the inputs nor
    the operands of the third need to be kept for the backward pass. On large maps the frequencies for which p = q go
    through the second product by themselves, as E C_k and E S_k, and both sums are added up. C and S are divided by a
    power of two, and p and q multiplied by it, as plain sums over a column soon exceed what float16 holds.
    """
    height, width, output_height, output_width = rows.length, columns.length, rows.output_length, columns.output_length
    channels, dtype = _length_of(inputs, 3), rows.weights.dtype
    images = tf.reshape(inputs, [-1, height, width * channels])
    product = _learned_product if rows.learned else _product
    positive, negative = _weights_by_sign(rows, norm)
    column_matrix = _pooling_matrix(columns, norm, 2)
    frequencies, equal_frequencies = _split_frequencies(rows, _length_of(positive, 0))

    def contribution(
        frequencies: tf.Tensor, matrix: tf.Tensor, operand_shape: list[Length], inverse_weights: tf.Tensor | float = 1.0
    ) -> tf.Tensor:
        spectrum = _product(_real_dft(frequencies, height, dtype) / _spectrum_scale(height, dtype), images)
        spectrum = product(matrix, tf.reshape(spectrum, operand_shape))
        spectrum = tf.reshape(spectrum, [-1, 2 * tf.size(frequencies), output_width * channels])
        return _product(tf.transpose(inverse_weights * _real_dft(frequencies, output_height, dtype)), spectrum)

    weighting = _weighting(*(tf.gather(weights, frequencies) for weights in (positive, negative)), column_matrix)
    weighting = tf.reshape(weighting, [-1, 2 * output_width, 2 * width])
    outputs = contribution(frequencies, weighting, [-1, tf.size(frequencies), 2 * width, channels])
    if equal_frequencies is not None:
        weights = tf.stop_gradient(tf.gather(positive + negative, equal_frequencies))
        weights = tf.repeat(weights, 2)[:, None]
        outputs += contribution(equal_frequencies, column_matrix[:, 0], [-1, width, channels], weights)
    return tf.reshape(outputs, [-1, output_height, output_width, channels])


def _compiled_products(
    inputs: tf.Tensor, rows: Window, columns: Window, norm: Norm, data_format: DataFormat
) -> tf.Tensor:
    """The products of `_real_products` or `_products_by_row_frequency` for XLA.

    Without reshapes of the operands, and with the batch first and the new axis last in every one, the TPU compiler
    copies the least between its layouts.
    """
    image, result = ("bhwc", "bijc") if data_format == "channels_last" else ("bchw", "bcij")
    if rows.unequal is None:
        row_matrix, column_matrix = (_pooling_matrix(window, norm, 1)[:, 0] for window in (rows, columns))
        outputs = _einsum("bwci,jw->bcij", _einsum(f"{image},ih->bwci", inputs, row_matrix), column_matrix)
    else:
        positive, negative = _weights_by_sign(rows, norm)
        frequencies = tf.range(_length_of(positive, 0))
        forward, inverse = (
            tf.reshape(_real_dft(frequencies, length, rows.weights.dtype), [-1, 2, length])
            for length in (rows.length, rows.output_length)
        )
        forward /= _spectrum_scale(rows.length, rows.weights.dtype)
        weighting = _weighting(positive, negative, _pooling_matrix(columns, norm, 2))
        spectrum = _einsum(f"{image},keh->bwcke", inputs, forward)
        spectrum = _einsum("bwcke,kajew->kbcaj", spectrum, weighting)
        outputs = _einsum("kbcaj,kai->bcji", spectrum, inverse)
        outputs = tf.transpose(outputs, [0, 1, 3, 2])
    return tf.transpose(outputs, ["bcij".index(axis) for axis in result])


def _weighting(positive: tf.Tensor, negative: tf.Tensor, column_matrix: tf.Tensor) -> tf.Tensor:
    """`[frequencies, 2, output_width, 2, width]`: the matrix that takes `C_k, S_k` to `P_k, Q_k`."""
    even, odd = positive + negative, positive - negative
    rotations = tf.reshape(tf.stack([even, odd, -odd, even], 1), [-1, 2, 1, 2, 1])
    return rotations * tf.stack([column_matrix, tf.reverse(column_matrix, [1])])


def _split_frequencies(rows: Window, count: Length) -> tuple[tf.Tensor, tf.Tensor | None]:
    """The first `count` frequencies as those with weights that may differ by sign, and, on large maps, the others."""
    if not isinstance(rows.length, int) or rows.length < SPLIT_FROM:
        return tf.range(count), None
    first, unequal = rows.unequal
    unequal = min(unequal, count) if isinstance(count, int) else tf.minimum(unequal, count)
    first = tf.clip_by_value(first, 0, count - unequal)  # It may be anything where the strides are NaN.
    others = tf.range(count - unequal)
    return first + tf.range(unequal), tf.where(others < first, others, others + unequal)


def _real_dft(frequencies: tf.Tensor, length: Length, dtype: tf.DType) -> tf.Tensor:
    """`[2 · frequencies, length]`: for each frequency a row of cosines and a row of sines."""
    waves = _cos_and_sin(frequencies[:, None] * tf.range(length), length, dtype)
    return tf.reshape(tf.stack(waves, 1), [-1, length])


def _spectrum_scale(length: Length, dtype: tf.DType) -> float | tf.Tensor:
    """A power of two not below `length`, by which a sum of as many samples is divided without a rounding error."""
    if isinstance(length, int):
        return 2.0 ** (length - 1).bit_length()
    return 2.0 ** tf.math.ceil(tf.math.log(tf.cast(length, dtype)) / math.log(2.0))


def _product(matrix: tf.Tensor, operand: tf.Tensor) -> tf.Tensor:
    """`matrix @ operand` for one matrix, or a stack of them, and an operand for each image."""
    return tf.matmul(tf.cast(matrix, operand.dtype)[None], operand)


def _einsum(equation: str, left: tf.Tensor, right: tf.Tensor, dtype: tf.DType | None = None) -> tf.Tensor:
    """`tf.einsum` of two tensors for XLA, at the highest precision, with derivatives of every order.

    `tf.einsum` and `tf.matmul` leave float32 at XLA's default, which on a TPU is one pass in bfloat16.

    Args:
        equation: with every index in two of its three terms at least.
        left: the first operand.
        right: the second. The product is taken in the coarser of the two dtypes.
        dtype: of the result, that of `left` where None.

    Returns:
        The sums of products.
    """
    operands, result = equation.split("->")
    first, second = operands.split(",")
    shared = [axis for axis in first if axis in second]
    summed, batch = ([axis for axis in shared if (axis in result) == kept] for kept in (False, True))
    order = batch + [axis for axis in first + second if axis not in shared]
    dimensions = xla.DotDimensionNumbers(
        lhs_contracting_dimensions=[first.index(axis) for axis in summed],
        rhs_contracting_dimensions=[second.index(axis) for axis in summed],
        lhs_batch_dimensions=[first.index(axis) for axis in batch],
        rhs_batch_dimensions=[second.index(axis) for axis in batch],
    )
    precision = xla.PrecisionConfig(operand_precision=[xla.PrecisionConfig.HIGHEST] * 2)
    coarser = min(left.dtype, right.dtype, key=lambda dtype: dtype.size)

    @tf.custom_gradient
    def product(left: tf.Tensor, right: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return (
                _einsum(f"{result},{second}->{first}", upstream, right, left.dtype),
                _einsum(f"{first},{result}->{second}", left, upstream, right.dtype),
            )

        # XLA for CPU has no product of bfloat16 operands with a float32 result.
        outputs = xla.dot_general(tf.cast(left, coarser), tf.cast(right, coarser), dimensions, precision)
        outputs = tf.cast(outputs, dtype or left.dtype)
        return tf.transpose(outputs, [order.index(axis) for axis in result]), gradient

    return product(left, right)


def _learned_product(matrix: tf.Tensor, operand: tf.Tensor) -> tf.Tensor:
    """As `_product`, for a small matrix that is learned and a large operand.

    The gradient to the matrix is added up in the matrix's own precision, over a share of the images at a time, and is
    done before the gradient to the operand begins, so that the operand is let go first. TensorFlow's own gradient does
    both at once, and holds as many matrices as there are images.
    """

    @tf.custom_gradient
    def product(matrix: tf.Tensor, operand: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            total = tf.zeros_like(matrix)
            for upstream_share, operand_share in zip(_shares(upstream), _shares(operand)):
                with tf.control_dependencies([total]):
                    matrices = tf.matmul(upstream_share, operand_share, transpose_b=True)
                total += tf.reduce_sum(tf.cast(matrices, matrix.dtype), 0)
            with tf.control_dependencies([total]):
                return total, tf.matmul(tf.cast(matrix, operand.dtype)[None], upstream, transpose_a=True)

        return _product(matrix, operand), gradient

    return product(matrix, operand)


def _shares(tensor: tf.Tensor, count: int = 4) -> list[tf.Tensor]:
    """A tensor cut along its first axis into parts of nearly equal length, without a copy."""
    length = _length_of(tensor, 0)
    lengths = [(length + i) // count for i in range(count)]
    return tf.split(tensor, lengths, num=count)


def _weights_by_sign(window: Window, norm: Norm) -> tuple[tf.Tensor, tf.Tensor]:
    """What a two-sided window multiplies the frequencies 0, 1, 2, … and 0, -1, -2, … of a scaled spectrum by.

    Frequency 0 counts among the positive ones; a frequency that is kept with one sign only has weight 0 with the other.
    """
    weights = window.weights * _scale_after_inverse(window.length, window.output_length, norm, window.weights.dtype)
    weights /= tf.cast(window.output_length, weights.dtype) / _spectrum_scale(window.length, weights.dtype)
    positives = window.output_length - window.negatives
    # No window here keeps more positive frequencies than negative ones, 0 counted among the positive.
    positive = tf.pad(weights[:positives], [[0, window.negatives + 1 - positives]])
    return positive, tf.concat([[0], weights[positives:][::-1]], 0)


def _pooling_matrix(window: Window, norm: Norm, parts: int) -> tf.Tensor:
    """The matrix of DFT, window and inverse DFT along one axis.

    `B[p, n] = c · sum_j m_j · w_j · exp(2πi (p · j / n_out - k_j · n / n_in))`, where `w_j` is 2 for the one-sided bins
    that stand for two and 1 otherwise, and `c` is the factor of `norm`.

    Returns:
        `[output_length, parts, length]`: the real part and, with `parts=2`, the imaginary part.
    """
    dtype = window.weights.dtype
    places = tf.range(tf.size(window.bins))
    weights = window.weights
    if window.negatives is None:
        alone = (places == 0) | (2 * places == window.output_length)
        weights *= tf.where(alone, tf.cast(1, dtype), 2)
    weights *= _scale_after_inverse(window.length, window.output_length, norm, dtype)
    weights /= tf.cast(window.output_length, dtype)

    cos, sin = _cos_and_sin(tf.range(window.output_length)[:, None] * places, window.output_length, dtype)
    left = [tf.concat([cos, sin], 1)] + [tf.concat([sin, -cos], 1)] * (parts - 1)
    cos, sin = _cos_and_sin(window.bins[:, None] * tf.range(window.length), window.length, dtype)
    right = tf.concat([weights[:, None] * cos, weights[:, None] * sin], 0)
    left = tf.reshape(tf.stack(left, 1), [parts * window.output_length, 2 * tf.size(places)])
    matrix = _einsum("pj,jn->pn", left, right) if _compiled_by_xla() else left @ right
    return tf.reshape(matrix, [window.output_length, parts, window.length])


def _cos_and_sin(turns: tf.Tensor, length: Length, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
    """Of `2π · turns / length`, reduced to one turn in integers first so that large products lose no precision."""
    angles = tf.cast(turns % length, dtype) * tf.cast(2 * math.pi / tf.cast(length, tf.float64), dtype)
    return tf.cos(angles), tf.sin(angles)


def _scale_after_inverse(length: Length, output_length: Length, norm: Norm, dtype: tf.DType) -> tf.Tensor:
    """What one axis's result must be multiplied by when the inverse DFT divided it by its output length."""
    if norm == "backward":
        return tf.ones([], dtype)
    ratio = tf.cast(output_length, dtype) / tf.cast(length, dtype)
    return ratio if norm == "forward" else tf.sqrt(ratio)


def _working_dtype(inputs: tf.Tensor) -> tf.DType:
    return tf.float64 if inputs.dtype == tf.float64 else tf.float32


def _as_complex(real: tf.Tensor) -> tf.Tensor:
    return tf.complex(real, tf.zeros_like(real))


def _length_of(tensor: tf.Tensor, axis: int) -> Length:
    return tf.shape(tensor)[axis] if tensor.shape[axis] is None else tensor.shape[axis]


def _to_channels_first(inputs: tf.Tensor, data_format: DataFormat) -> tf.Tensor:
    return tf.transpose(inputs, [0, 3, 1, 2]) if data_format == "channels_last" else inputs


def _from_channels_first(
    outputs: tf.Tensor, inputs: tf.Tensor, height: Length, width: Length, data_format: DataFormat
) -> tf.Tensor:
    if data_format == "channels_last":
        outputs = tf.transpose(outputs, [0, 2, 3, 1])
    return _with_static_shape(tf.cast(outputs, inputs.dtype), inputs, height, width, data_format)


def _with_static_shape(
    outputs: tf.Tensor, inputs: tf.Tensor, height: Length, width: Length, data_format: DataFormat
) -> tf.Tensor:
    spatial = [length if isinstance(length, int) else None for length in (height, width)]
    batch = inputs.shape[0]
    if data_format == "channels_last":
        return tf.ensure_shape(outputs, [batch, *spatial, inputs.shape[3]])
    return tf.ensure_shape(outputs, [batch, inputs.shape[1], *spatial])
