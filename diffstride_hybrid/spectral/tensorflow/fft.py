"""The engine by transforms (`method='fft'`): crops and weighs the spectrum that an FFT gives."""

from __future__ import annotations

import tensorflow as tf

from diffstride_hybrid.backends.xla import compiled_by_xla
from diffstride_hybrid.spectral.matrices import scale_after_inverse
from diffstride_hybrid.spectral.options import DataFormat, Length, Norm
from diffstride_hybrid.spectral.tensorflow.shapes import as_complex, from_channels_first, to_channels_first
from diffstride_hybrid.spectral.windows import Window


def pool_by_fft(inputs: tf.Tensor, rows: Window, columns: Window, norm: Norm, data_format: DataFormat) -> tf.Tensor:
    """Pools feature maps by `rfft2d`, a weighted crop and `irfft2d`.

    Args:
        inputs: floating-point `[batch, height, width, channels]`, or `[batch, channels, height, width]`.
        rows: the two-sided window over rows.
        columns: the one-sided window over columns.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.

    Returns:
        The pooled maps, in the dtype of `inputs`. Half precision is computed in float32.
    """
    spectrum = tf.signal.rfft2d(tf.cast(to_channels_first(inputs, data_format), rows.dtype))
    first_negative = rows.length - rows.negatives
    spectrum = _selected_bins(spectrum, 2, (0, rows.output_length - rows.negatives), (first_negative, rows.length))
    spectrum = _selected_bins(spectrum, 3, (0, columns.kept))
    spectrum *= as_complex(rows.weights[:, None] * columns.weights)
    outputs = tf.signal.irfft2d(spectrum, [rows.output_length, columns.output_length])
    outputs *= scale_after_inverse(rows.length, rows.output_length, norm, outputs.dtype)
    outputs *= scale_after_inverse(columns.length, columns.output_length, norm, outputs.dtype)
    return from_channels_first(outputs, inputs, (rows.output_length, columns.output_length), data_format)


def pool_signal_by_fft(inputs: tf.Tensor, window: Window, norm: Norm, data_format: DataFormat) -> tf.Tensor:
    """Pools signals by `rfft`, a weighted crop and `irfft`.

    Args:
        inputs: floating-point `[batch, time, channels]`, or `[batch, channels, time]`.
        window: one-sided.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.

    Returns:
        The pooled signals, in the dtype of `inputs`. Half precision is computed in float32.
    """
    maps = tf.cast(to_channels_first(inputs, data_format), window.dtype)
    outputs = _pooled_along_last_axis(maps, window, norm)
    return from_channels_first(outputs, inputs, (window.output_length,), data_format)


def resize_by_fft(inputs: tf.Tensor, rows: Window, columns: Window, norm: Norm, data_format: DataFormat) -> tf.Tensor:
    """Resizes feature maps, one axis after the other, by `rfft`, a weighted crop or padding, and `irfft`.

    Args:
        inputs: floating-point `[batch, height, width, channels]`, or `[batch, channels, height, width]`.
        rows: the one-sided window over rows.
        columns: the one-sided window over columns.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.

    Returns:
        The resized maps, in the dtype of `inputs`. Half precision is computed in float32.
    """
    outputs = tf.cast(to_channels_first(inputs, data_format), rows.dtype)
    for window in (columns, rows):
        # Rows take the place of columns; after the second time all is as before.
        outputs = tf.linalg.matrix_transpose(_pooled_along_last_axis(outputs, window, norm))
    return from_channels_first(outputs, inputs, (rows.output_length, columns.output_length), data_format)


def spectral_pooling_fft(
    inputs: tf.Tensor, rows: Window, columns: Window, norm: Norm, data_format: DataFormat
) -> tf.Tensor:
    """Pools feature maps by `fft2d`, a crop that folds the Nyquist bins, and `ifft2d`.

    Args:
        inputs: floating-point `[batch, height, width, channels]`, or `[batch, channels, height, width]`.
        rows: the window over rows, of which the lengths are used.
        columns: the window over columns, of which the lengths are used. No axis becomes longer.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.

    Returns:
        The pooled maps, in the dtype of `inputs`. Half precision is computed in float32.
    """
    working = rows.dtype
    spectrum = tf.signal.fft2d(as_complex(tf.cast(to_channels_first(inputs, data_format), working)))
    scale = tf.ones([], working)
    for axis, window in ((2, rows), (3, columns)):
        spectrum = _crop_and_fold(spectrum, axis, window.length, window.output_length)
        scale *= scale_after_inverse(window.length, window.output_length, norm, working)
    outputs = tf.math.real(tf.signal.ifft2d(spectrum)) * scale
    return from_channels_first(outputs, inputs, (rows.output_length, columns.output_length), data_format)


def _pooled_along_last_axis(maps: tf.Tensor, window: Window, norm: Norm) -> tf.Tensor:
    spectrum = _selected_bins(tf.signal.rfft(maps), maps.shape.rank - 1, (0, window.kept))
    outputs = tf.signal.irfft(spectrum * as_complex(window.weights), [window.output_length])
    return outputs * scale_after_inverse(window.length, window.output_length, norm, outputs.dtype)


def _crop_and_fold(spectrum: tf.Tensor, axis: int, length: Length, output_length: Length) -> tf.Tensor:
    """Keeps the lowest bins of one axis; the output's Nyquist bin also takes the bin of the opposite sign."""
    half = output_length // 2
    cropped = _selected_bins(spectrum, axis, (0, output_length - half), (length - half, length))
    folds = (2 * tf.range(output_length) == output_length) & (output_length < length)
    folds = as_complex(tf.cast(tf.reshape(folds, [-1] + [1] * (3 - axis)), spectrum.dtype.real_dtype))
    return cropped + folds * _selected_bins(spectrum, axis, (half, half + 1))


def _selected_bins(spectrum: tf.Tensor, axis: int, *ranges: tuple[Length, Length]) -> tf.Tensor:
    """The bins of some ranges along one axis, each from its first bin up to the one before its end.

    XLA gets slices, because a TPU refuses the gradient of a gather at some sizes. Without XLA a gather is faster.
    """
    if not compiled_by_xla():
        return tf.gather(spectrum, tf.concat([tf.range(*bounds) for bounds in ranges], 0), axis=axis)
    every = (slice(None),) * axis
    return tf.concat([spectrum[(*every, slice(*bounds))] for bounds in ranges], axis)
