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

from typing import Any

import tensorflow as tf

from diffstride_hybrid.spectral.fft import pool_by_fft, selected_bins, spectral_pooling_fft
from diffstride_hybrid.spectral.layout import as_complex, length_of, signal_length, spatial_lengths, working_dtype
from diffstride_hybrid.spectral.matmul import learned_product, matrix_product, pool_by_matmul
from diffstride_hybrid.spectral.matrices import pooling_matrix, scale_after_inverse
from diffstride_hybrid.spectral.options import DataFormat, Length, Mask, Method, Norm
from diffstride_hybrid.spectral.windows import (
    Window,
    diffstride_window_1d,
    diffstride_windows,
    fixed_windows,
    resampling_window,
)
from diffstride_hybrid.spectral.xla import compiled_by_xla, on_tpu, xla_einsum

FFT_BEYOND = 512
"""Samples of the longer axis beyond which 'auto' takes the transforms, as measured on a CPU at stride 2: at 512
'matmul' took 0.4 to 0.8 of their time, at 640 0.7 with 64 channels and 1.3 with 16, at 1024 with 16 channels 1.9."""


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
        dtype=working_dtype(inputs),
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
    rows, columns = fixed_windows(*spatial_lengths(inputs, data_format), strides, dtype=working_dtype(inputs))
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
        return spectral_pooling_fft(inputs, output_lengths, norm, data_format)
    dtype = working_dtype(inputs)
    rows, columns = (
        resampling_window(length, output_length, dtype) for length, output_length in zip(lengths, output_lengths)
    )
    return pool_by_matmul(inputs, rows, columns, norm, data_format)


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
    window = diffstride_window_1d(length, stride, dtype=working_dtype(inputs), **options)
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
    window = resampling_window(length, output_length, working_dtype(inputs))
    return _pool_one_axis(inputs, window, norm, data_format, method)


# --- Engines ---------------------------------------------------------------------------------------------------------
def resolve_method(method: Method, height: Length, width: Length) -> Method:
    """The engine that `method` stands for at a given size.

    'auto' is 'matmul', but 'fft' where an axis is known to be longer than `FFT_BEYOND`, save on a TPU, whose compiler
    makes dense products of a transform.
    """
    if method != "auto":
        return method
    longest = max(length if isinstance(length, int) else 0 for length in (height, width))
    return "fft" if longest > FFT_BEYOND and not on_tpu() else "matmul"


def _apply_windows(
    inputs: tf.Tensor, rows: Window, columns: Window, norm: Norm, data_format: DataFormat, method: Method
) -> tf.Tensor:
    if resolve_method(method, rows.length, columns.length) == "fft":
        return pool_by_fft(inputs, rows, columns, norm, data_format)
    return pool_by_matmul(inputs, rows, columns, norm, data_format)


def _pool_one_axis(inputs: tf.Tensor, window: Window, norm: Norm, data_format: DataFormat, method: Method) -> tf.Tensor:
    """Pools a signal by a one-sided window, whose matrix is real: one product, or `rfft` and `irfft`."""
    last = data_format == "channels_last"
    if resolve_method(method, 1, window.length) == "fft":
        signal = tf.transpose(inputs, [0, 2, 1]) if last else inputs
        spectrum = selected_bins(
            tf.signal.rfft(tf.cast(signal, window.weights.dtype)), 2, (0, length_of(window.bins, 0))
        )
        outputs = tf.signal.irfft(spectrum * as_complex(window.weights), [window.output_length])
        outputs *= scale_after_inverse(window.length, window.output_length, norm, outputs.dtype)
        outputs = tf.cast(tf.transpose(outputs, [0, 2, 1]) if last else outputs, inputs.dtype)
    else:
        matrix = pooling_matrix(window, norm, 1)[:, 0]
        if compiled_by_xla():
            outputs = xla_einsum("bnc,pn->bpc" if last else "bcn,pn->bcp", inputs, tf.cast(matrix, inputs.dtype))
        elif last:
            outputs = (learned_product if window.learned else matrix_product)(matrix, inputs)
        else:
            outputs = tf.matmul(inputs, tf.cast(matrix, inputs.dtype), transpose_b=True)
    length = window.output_length if isinstance(window.output_length, int) else None
    batch, channels = inputs.shape[0], inputs.shape[2 if last else 1]
    return tf.ensure_shape(outputs, [batch, length, channels] if last else [batch, channels, length])
