"""The engine by matrix products (`method='matmul'`): the whole pooling is linear in its input."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from diffstride_hybrid.backends.xla import compiled_by_xla, xla_einsum
from diffstride_hybrid.spectral.matrices import dft_matrix, pooling_matrix, scale_after_inverse
from diffstride_hybrid.spectral.options import DataFormat, Length, Norm
from diffstride_hybrid.spectral.tensorflow.shapes import length_of, to_channels_first, with_static_shape
from diffstride_hybrid.spectral.windows import Window

SPLIT_FROM = 48
"""From this number of rows on, 'matmul' treats frequencies with equal weights for both signs separately.

That was the faster way from this size on, as measured on a CPU.
"""


def matmul_macs(
    height: int, width: int, output_height: int, output_width: int, *, unequal: int | None, data_format: DataFormat
) -> int:
    """Multiply-accumulate operations of the 'matmul' engine for one channel of one image.

    Args:
        height: rows of the feature map.
        width: columns of the feature map.
        output_height: rows after pooling.
        output_width: columns after pooling.
        unequal: the greatest number of row frequencies that weigh differently by sign. None for a real operator, which
            weighs both signs alike.
        data_format: which axis holds the channels. A real operator begins with the rows in channels_last, with the
            columns in channels_first.

    Returns:
        The number of operations.

    Example:
        >>> from diffstride_hybrid import spectral
        >>> spectral.matmul_macs(16, 16, 8, 8, unequal=None, data_format="channels_last")  # 8 * 16 * (16 + 8)
        3072
    """
    if unequal is not None:
        pairs = output_height - output_height // 2 + 1
        doubled = pairs if height < SPLIT_FROM else min(unequal, pairs)
        spectra = height * width + output_height * output_width
        return 2 * pairs * spectra + 2 * (pairs + doubled) * width * output_width
    if data_format == "channels_last":
        return output_height * width * (height + output_width)
    return height * output_width * (width + output_height)


def pool_by_matmul(inputs: tf.Tensor, rows: Window, columns: Window, norm: Norm, data_format: DataFormat) -> tf.Tensor:
    """Pools feature maps by matrix products: `Re(B_rows · X · B_columnsᵀ)` for every channel `X`.

    Args:
        inputs: floating-point `[batch, height, width, channels]`, or `[batch, channels, height, width]`.
        rows: the window over rows.
        columns: the one-sided window over columns.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.

    Returns:
        The pooled maps, in the dtype of `inputs`, which is the dtype of the products, too.
    """
    if compiled_by_xla():
        outputs = _compiled_products(inputs, rows, columns, norm, data_format)
    elif rows.unequal is None:
        outputs = _real_products(inputs, rows, columns, norm, data_format)
    elif data_format == "channels_last":
        outputs = _products_by_row_frequency(inputs, rows, columns, norm)
    else:
        outputs = _products_by_row_frequency(tf.transpose(inputs, [0, 2, 3, 1]), rows, columns, norm)
        outputs = to_channels_first(outputs, "channels_last")
    return with_static_shape(outputs, inputs, (rows.output_length, columns.output_length), data_format)


def pool_signal_by_matmul(inputs: tf.Tensor, window: Window, norm: Norm, data_format: DataFormat) -> tf.Tensor:
    """Pools signals by one matrix product: the matrix of a one-sided window is real.

    Args:
        inputs: floating-point `[batch, time, channels]`, or `[batch, channels, time]`.
        window: one-sided.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.

    Returns:
        The pooled signals, in the dtype of `inputs`.
    """
    matrix = pooling_matrix(window, norm, 1)[:, 0]
    last = data_format == "channels_last"
    if compiled_by_xla():
        outputs = xla_einsum("bnc,pn->bpc" if last else "bcn,pn->bcp", inputs, tf.cast(matrix, inputs.dtype))
    elif last:
        outputs = (_learned_product if window.learned else _matrix_product)(matrix, inputs)
    else:
        outputs = tf.matmul(inputs, tf.cast(matrix, inputs.dtype), transpose_b=True)
    return with_static_shape(outputs, inputs, (window.output_length,), data_format)


def _real_products(inputs: tf.Tensor, rows: Window, columns: Window, norm: Norm, data_format: DataFormat) -> tf.Tensor:
    """Two products, without a transposition in either data format, for windows whose pooling matrices are real."""
    row_matrix, column_matrix = (pooling_matrix(window, norm, 1)[:, 0] for window in (rows, columns))
    product = _learned_product if rows.learned else _matrix_product
    if data_format == "channels_last":
        channels = length_of(inputs, 3)
        half = product(row_matrix, tf.reshape(inputs, [-1, rows.length, columns.length * channels]))
        outputs = product(column_matrix, tf.reshape(half, [-1, columns.length, channels]))
        return tf.reshape(outputs, [-1, rows.output_length, columns.output_length, channels])
    column_matrix = tf.cast(column_matrix, inputs.dtype)
    half = tf.matmul(tf.reshape(inputs, [-1, columns.length]), column_matrix, transpose_b=True)
    outputs = product(row_matrix, tf.reshape(half, [-1, rows.length, columns.output_length]))
    batch, channels = length_of(inputs, 0), length_of(inputs, 1)
    return tf.reshape(outputs, [batch, channels, rows.output_length, columns.output_length])


def _products_by_row_frequency(inputs: tf.Tensor, rows: Window, columns: Window, norm: Norm) -> tf.Tensor:
    """Three products in channels_last, for windows that weigh positive and negative frequencies differently.

    The first product is the real DFT of the columns of a map: `C_k = Σ_n cos(2πkn/H) x_n`, and `S_k` with the sine, one
    pair of rows for each frequency k that is kept with either sign. Let p and q be the weights of k and -k, and E and O
    the real and the imaginary part of B_columns. The second product computes for each k

        P_k =  (p + q) E C_k + (p - q) O S_k
        Q_k = -(p - q) O C_k + (p + q) E S_k

    and the third `y_i = Σ_k cos(2πki/h) P_k + sin(2πki/h) Q_k`, the real part of the inverse DFT.

    Only the second product depends on the strides. So the gradient to the strides takes one more product, and the
    backward pass needs neither the inputs nor the operands of the third product. On large maps the frequencies with
    p = q go through a second product of their own, as E C_k and E S_k, and both sums are added up. C and S are divided
    by a power of two, and p and q are multiplied by it, because plain sums over a column soon exceed the range of
    float16.
    """
    height, width, output_height, output_width = rows.length, columns.length, rows.output_length, columns.output_length
    channels, dtype = length_of(inputs, 3), rows.weights.dtype
    images = tf.reshape(inputs, [-1, height, width * channels])
    product = _learned_product if rows.learned else _matrix_product
    positive, negative = _weights_by_sign(rows, norm)
    column_matrix = pooling_matrix(columns, norm, 2)
    frequencies, equal_frequencies = _split_frequencies(rows, length_of(positive, 0))

    def contribution(
        frequencies: tf.Tensor, matrix: tf.Tensor, operand_shape: list[Length], inverse_weights: tf.Tensor | float = 1.0
    ) -> tf.Tensor:
        spectrum = _matrix_product(dft_matrix(frequencies, height, dtype, rows.most) / _spectrum_scale(rows), images)
        spectrum = product(matrix, tf.reshape(spectrum, operand_shape))
        spectrum = tf.reshape(spectrum, [-1, 2 * tf.size(frequencies), output_width * channels])
        return _matrix_product(
            tf.transpose(inverse_weights * dft_matrix(frequencies, output_height, dtype, rows.most)), spectrum
        )

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

    The TPU compiler copies the least between its layouts if the operands are not reshaped, and if every operand has the
    batch first and the new axis last.
    """
    image, result = ("bhwc", "bijc") if data_format == "channels_last" else ("bchw", "bcij")
    if rows.unequal is None:
        row_matrix, column_matrix = (pooling_matrix(window, norm, 1)[:, 0] for window in (rows, columns))
        outputs = xla_einsum("bwci,jw->bcij", xla_einsum(f"{image},ih->bwci", inputs, row_matrix), column_matrix)
    else:
        positive, negative = _weights_by_sign(rows, norm)
        frequencies = tf.range(length_of(positive, 0))
        forward, inverse = (
            tf.reshape(dft_matrix(frequencies, length, rows.weights.dtype, rows.most), [-1, 2, length])
            for length in (rows.length, rows.output_length)
        )
        forward /= _spectrum_scale(rows)
        weighting = _weighting(positive, negative, pooling_matrix(columns, norm, 2))
        spectrum = xla_einsum(f"{image},keh->bwcke", inputs, forward)
        spectrum = xla_einsum("bwcke,kajew->kbcaj", spectrum, weighting)
        outputs = xla_einsum("kbcaj,kai->bcji", spectrum, inverse)
        outputs = tf.transpose(outputs, [0, 1, 3, 2])
    return tf.transpose(outputs, ["bcij".index(axis) for axis in result])


def _weighting(positive: tf.Tensor, negative: tf.Tensor, column_matrix: tf.Tensor) -> tf.Tensor:
    """`[frequencies, 2, output_width, 2, width]`: the matrix that takes `C_k, S_k` to `P_k, Q_k`."""
    even, odd = positive + negative, positive - negative
    rotations = tf.reshape(tf.stack([even, odd, -odd, even], 1), [-1, 2, 1, 2, 1])
    return rotations * tf.stack([column_matrix, tf.reverse(column_matrix, [1])])


def _split_frequencies(rows: Window, count: Length) -> tuple[tf.Tensor, tf.Tensor | None]:
    """Splits the first `count` frequencies of a window over rows by their weights.

    Returns:
        The frequencies with weights that may differ by sign, and the others. On small maps all frequencies, and None,
        or an empty tensor if the size is not known.
    """
    if isinstance(rows.most, int) and rows.most < SPLIT_FROM:
        return tf.range(count), None
    first, unequal = rows.unequal
    unequal = min(unequal, count) if isinstance(count, int) else tf.minimum(unequal, count)
    if not isinstance(rows.length, int):
        unequal = tf.where(rows.length < SPLIT_FROM, count, unequal)
    first = tf.clip_by_value(first, 0, count - unequal)  # If the strides are NaN, `first` may be any number.
    others = tf.range(count - unequal)
    return first + tf.range(unequal), tf.where(others < first, others, others + unequal)


def _spectrum_scale(window: Window) -> float | tf.Tensor:
    """A power of two that no axis of the window is longer than. Dividing a sum by it makes no rounding error."""
    if isinstance(window.most, int):
        return 2.0 ** (window.most - 1).bit_length()
    return 2.0 ** tf.math.ceil(tf.math.log(tf.cast(window.length, window.weights.dtype)) / math.log(2.0))


def _matrix_product(matrix: tf.Tensor, operand: tf.Tensor) -> tf.Tensor:
    """`matrix @ operand` in the dtype of the operand, for one matrix, or a stack of them, and an operand per image."""
    return tf.matmul(tf.cast(matrix, operand.dtype)[None], operand)


def _learned_product(matrix: tf.Tensor, operand: tf.Tensor) -> tf.Tensor:
    """The product of `_matrix_product`, for a small matrix that is learned and a large operand.

    The gradient to the matrix is added up in the matrix's own precision, over a share of the images at a time. It ends
    before the gradient to the operand begins, so that the memory of the operand is free by then. TensorFlow's own
    gradient computes both at once, and holds one matrix per image.
    """
    # In a branch of a tf.cond the gradient may use tensors of the branch alone, not the branch's captured operand.
    operand = tf.identity(operand)

    @tf.custom_gradient
    def product(matrix: tf.Tensor, operand: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            total = tf.zeros_like(matrix)
            for upstream_share, operand_share in _shares(upstream, operand):
                with tf.control_dependencies([total]):
                    matrices = tf.matmul(upstream_share, operand_share, transpose_b=True)
                total += tf.reduce_sum(tf.cast(matrices, matrix.dtype), 0)
            with tf.control_dependencies([total]):
                return total, tf.matmul(tf.cast(matrix, operand.dtype)[None], upstream, transpose_a=True)

        return _matrix_product(matrix, operand), gradient

    return product(matrix, operand)


def _shares(*tensors: tf.Tensor, count: int = 4) -> Iterator[tuple[tf.Tensor, ...]]:
    """Tensors cut along their first axis, of one length, into parts of nearly equal length, without a copy."""
    lengths = (length_of(tensors[0], 0) + tf.range(count)) // count
    return zip(*(tf.split(tensor, lengths, num=count) for tensor in tensors))


def _weights_by_sign(window: Window, norm: Norm) -> tuple[tf.Tensor, tf.Tensor]:
    """The factors of a two-sided window for the frequencies 0, 1, 2, … and 0, -1, -2, … of a scaled spectrum.

    Frequency 0 counts among the positive ones. A frequency that is kept with one sign only has weight 0 for the other.
    """
    dtype = window.weights.dtype
    scale = scale_after_inverse(window.length, window.output_length, norm, dtype) * _spectrum_scale(window)
    weights = window.weights * (scale / tf.cast(window.output_length, dtype))
    positives = window.kept - window.negatives
    positive, negative = tf.split(weights, [positives, window.negatives])
    # No window here keeps more positive frequencies than negative ones, 0 counted among the positive.
    positive = tf.pad(positive, [[0, window.negatives + 1 - positives]])
    return positive, tf.pad(tf.reverse(negative, [0]), [[1, 0]])
