"""A pooling as small matrices: DFT, window and inverse DFT along one axis in one product."""

from __future__ import annotations

import math

import tensorflow as tf

from diffstride_hybrid.spectral.options import DataFormat, Length, Norm
from diffstride_hybrid.spectral.windows import Window
from diffstride_hybrid.spectral.xla import compiled_by_xla, xla_einsum


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
        return None, pooling_matrix(columns, norm, 1)[:, 0]
    parts = 1 if rows.unequal is None else 2
    row_matrix = tf.reshape(pooling_matrix(rows, norm, parts), [-1, rows.length])
    signs = tf.constant([1, -1][:parts], columns.weights.dtype)[:, None]  # Of the real part of a product.
    column_matrix = tf.reshape(pooling_matrix(columns, norm, parts) * signs, [-1, parts * columns.length])
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


def pooling_matrix(window: Window, norm: Norm, parts: int) -> tf.Tensor:
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
    weights *= scale_after_inverse(window.length, window.output_length, norm, dtype)
    weights /= tf.cast(window.output_length, dtype)

    cos, sin = cos_and_sin(tf.range(window.output_length)[:, None] * places, window.output_length, dtype)
    left = [tf.concat([cos, sin], 1)] + [tf.concat([sin, -cos], 1)] * (parts - 1)
    cos, sin = cos_and_sin(window.bins[:, None] * tf.range(window.length), window.length, dtype)
    right = tf.concat([weights[:, None] * cos, weights[:, None] * sin], 0)
    left = tf.reshape(tf.stack(left, 1), [parts * window.output_length, 2 * tf.size(places)])
    matrix = xla_einsum("pj,jn->pn", left, right) if compiled_by_xla() else left @ right
    return tf.reshape(matrix, [window.output_length, parts, window.length])


def cos_and_sin(turns: tf.Tensor, length: Length, dtype: tf.DType) -> tuple[tf.Tensor, tf.Tensor]:
    """Of `2π · turns / length`, reduced to one turn in integers first so that large products lose no precision."""
    angles = tf.cast(turns % length, dtype) * tf.cast(2 * math.pi / tf.cast(length, tf.float64), dtype)
    return tf.cos(angles), tf.sin(angles)


def scale_after_inverse(length: Length, output_length: Length, norm: Norm, dtype: tf.DType) -> tf.Tensor:
    """What one axis's result must be multiplied by when the inverse DFT divided it by its output length."""
    if norm == "backward":
        return tf.ones([], dtype)
    ratio = tf.cast(output_length, dtype) / tf.cast(length, dtype)
    return ratio if norm == "forward" else tf.sqrt(ratio)
