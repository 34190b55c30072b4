"""The engine by matrix products (`method='matmul'`): the whole pooling is linear in its input."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from diffstride_hybrid.backends import current
from diffstride_hybrid.backends.xla import compiled_by_xla, xla_einsum
from diffstride_hybrid.spectral.matrices import dft_matrix, lowest_dft_matrix, pooling_matrix, scale_after_inverse
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
        outputs = _product(window, inputs.shape[0], window.most, window.most)(matrix, inputs)
    else:
        outputs = tf.matmul(inputs, tf.cast(matrix, inputs.dtype), transpose_b=True)
    return with_static_shape(outputs, inputs, (window.output_length,), data_format)


def _real_products(inputs: tf.Tensor, rows: Window, columns: Window, norm: Norm, data_format: DataFormat) -> tf.Tensor:
    """Two products, without a transposition in either data format, for windows whose pooling matrices are real."""
    row_matrix, column_matrix = (pooling_matrix(window, norm, 1)[:, 0] for window in (rows, columns))
    row_product = _product(rows, inputs.shape[0], rows.most, rows.most)
    if data_format == "channels_last":
        channels = length_of(inputs, 3)
        half = row_product(row_matrix, tf.reshape(inputs, [-1, rows.length, columns.length * channels]))
        column_product = _product(columns, inputs.shape[0], rows.most, columns.most, columns.most)
        outputs = column_product(column_matrix, tf.reshape(half, [-1, columns.length, channels]))
        return tf.reshape(outputs, [-1, rows.output_length, columns.output_length, channels])
    column_matrix = tf.cast(column_matrix, inputs.dtype)
    half = tf.matmul(tf.reshape(inputs, [-1, columns.length]), column_matrix, transpose_b=True)
    outputs = row_product(row_matrix, tf.reshape(half, [-1, rows.length, columns.output_length]))
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
    by a power of two, and E and O are multiplied by it, because plain sums over a column soon exceed the range of
    float16.
    """
    height, width, output_height, output_width = rows.length, columns.length, rows.output_length, columns.output_length
    channels, dtype = length_of(inputs, 3), rows.dtype
    images = tf.reshape(inputs, [-1, height, width * channels])
    product = _product(rows, inputs.shape[0], rows.most, 2, columns.most, columns.most)
    column_matrix = pooling_matrix(columns, norm, 2, _row_scale(rows, norm))
    count = rows.negatives + 1

    def contribution(
        frequencies: tf.Tensor | None,
        count: Length,
        matrix: tf.Tensor,
        operand_shape: list[Length],
        inverse_weights: tf.Tensor | float = 1.0,
    ) -> tf.Tensor:
        """The part of some frequencies, of the first `count` if None, in the three products."""
        forward, inverse = (
            lowest_dft_matrix(count, length, dtype, rows.most)
            if frequencies is None
            else dft_matrix(frequencies, length, dtype, rows.most)
            for length in (height, output_height)
        )
        spectrum = _constant_product(forward / _spectrum_scale(rows), images)
        spectrum = product(matrix, tf.reshape(spectrum, operand_shape))
        spectrum = tf.reshape(spectrum, [-1, 2 * count, output_width * channels])
        return _constant_product(inverse_weights * inverse, spectrum, transpose=True)

    frequencies, equal_frequencies = _split_frequencies(rows, count)
    factors = rows.factors
    if frequencies is not None:
        count, factors = tf.size(frequencies), tf.gather(factors, frequencies)
    weighting = tf.reshape(_weighting(factors, column_matrix), [-1, 2 * output_width, 2 * width])
    outputs = contribution(frequencies, count, weighting, [-1, count, 2 * width, channels])
    if equal_frequencies is not None:
        weights = tf.stop_gradient(tf.reduce_sum(tf.gather(rows.factors, equal_frequencies), 1))
        weights = tf.repeat(weights, 2)[:, None]
        operand_shape = [-1, width, channels]
        outputs += contribution(
            equal_frequencies, tf.size(equal_frequencies), column_matrix[:, 0], operand_shape, weights
        )
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
        count = rows.negatives + 1
        forward, inverse = (
            tf.reshape(lowest_dft_matrix(count, length, rows.dtype, rows.most), [-1, 2, length])
            for length in (rows.length, rows.output_length)
        )
        forward /= _spectrum_scale(rows)
        weighting = _weighting(rows.factors, pooling_matrix(columns, norm, 2, _row_scale(rows, norm)))
        spectrum = xla_einsum(f"{image},keh->bwcke", inputs, forward)
        spectrum = xla_einsum("bwcke,kajew->kbcaj", spectrum, weighting)
        outputs = xla_einsum("kbcaj,kai->bcji", spectrum, inverse)
        outputs = tf.transpose(outputs, [0, 1, 3, 2])
    return tf.transpose(outputs, ["bcij".index(axis) for axis in result])


def _weighting(factors: tf.Tensor, column_matrix: tf.Tensor) -> tf.Tensor:
    """`[frequencies, 2, output_width, 2, width]`: the matrix that takes `C_k, S_k` to `P_k, Q_k`."""
    # p and q become p + q, p - q, q - p and p + q.
    rotations = current.product(factors, tf.constant([[1, 1, -1, 1], [1, -1, 1, 1]], factors.dtype))
    rotations = tf.reshape(rotations, [-1, 2, 1, 2, 1])
    return rotations * tf.stack([column_matrix, tf.reverse(column_matrix, [1])])


def _split_frequencies(rows: Window, count: Length) -> tuple[tf.Tensor | None, tf.Tensor | None]:
    """Splits the first `count` frequencies of a window over rows by their weights.

    Returns:
        The frequencies with weights that may differ by sign, and the others. None and None on small maps, which are not
        split. If the size is not known, there may be no others.
    """
    if isinstance(rows.most, int) and rows.most < SPLIT_FROM:
        return None, None
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
    return 2.0 ** tf.math.ceil(tf.math.log(tf.cast(window.length, window.dtype)) / math.log(2.0))


def _product(window: Window, *lengths: Length | None) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """The product for the matrices of a window.

    Args:
        window: says whether they are learned.
        *lengths: bounds whose product is a bound of the entries of one matrix per image, if all are known.
    """
    if not window.learned:
        return _matrix_product
    is_small = all(isinstance(length, int) for length in lengths) and math.prod(lengths) <= _FEW_ENTRIES
    return functools.partial(_learned_product, shares=1 if is_small else 4)


_FEW_ENTRIES = 2**20
"""4 MB in float32."""


def _matrix_product(matrix: tf.Tensor, operand: tf.Tensor) -> tf.Tensor:
    """`matrix @ operand` in the dtype of the operand, for one matrix, or a stack of them, and an operand per image."""
    return tf.matmul(tf.cast(matrix, operand.dtype)[None], operand)


def _constant_product(matrix: tf.Tensor, operand: tf.Tensor, transpose: bool = False) -> tf.Tensor:
    """The product of `_matrix_product`, for a matrix that depends on no stride.

    Args:
        matrix: `[n, k]`.
        operand: `[batch, k, m]`.
        transpose: whether to multiply by the transpose of the matrix.
    """
    matrix = tf.cast(tf.stop_gradient(matrix), operand.dtype)[None]

    def multiply(operand: tf.Tensor, transpose: bool) -> tf.Tensor:
        @tf.custom_gradient  # TensorFlow's own compares shapes when it runs, and adds up what has one shape.
        def product(operand: tf.Tensor) -> tuple[tf.Tensor, Any]:
            return tf.matmul(matrix, operand, transpose_a=transpose), lambda upstream: multiply(upstream, not transpose)

        return product(operand)

    return multiply(operand, transpose)


def _learned_product(matrix: tf.Tensor, operand: tf.Tensor, shares: int) -> tf.Tensor:
    """The product of `_matrix_product`, for a small matrix that is learned and a large operand.

    The gradient to the matrix is added up in the matrix's own precision, over a share of the images at a time. It ends
    before the gradient to the operand begins, so that the memory of the operand is free by then. TensorFlow's own
    gradient computes both at once, and holds one matrix per image.

    Args:
        matrix: `[n, k]` or `[…, n, k]`.
        operand: `[batch, …, k, m]`.
        shares: of the images.
    """
    # In a branch of a tf.cond the gradient may use tensors of the branch alone, not the branch's captured operand.
    operand = tf.identity(operand)

    @tf.custom_gradient
    def product(matrix: tf.Tensor, operand: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            total = None
            for upstream_share, operand_share in _shares(shares, upstream, operand):
                with tf.control_dependencies([] if total is None else [total]):
                    matrices = tf.matmul(upstream_share, operand_share, transpose_b=True)
                share = tf.reduce_sum(tf.cast(matrices, matrix.dtype), 0)
                total = share if total is None else total + share
            with tf.control_dependencies([total]):
                return total, tf.matmul(tf.cast(matrix, operand.dtype)[None], upstream, transpose_a=True)

        return _matrix_product(matrix, operand), gradient

    return product(matrix, operand)


def _shares(count: int, *tensors: tf.Tensor) -> Iterator[tuple[tf.Tensor, ...]]:
    """Tensors cut along their first axis, of one length, into parts of nearly equal length, without a copy."""
    if count == 1:
        return iter([tensors])
    lengths = (length_of(tensors[0], 0) + tf.range(count)) // count
    return zip(*(tf.split(tensor, lengths, num=count) for tensor in tensors))


def _row_scale(rows: Window, norm: Norm) -> tf.Tensor:
    """The factor that rows ask for after an inverse sum over a scaled spectrum."""
    scale = scale_after_inverse(rows.length, rows.output_length, norm, rows.dtype) * _spectrum_scale(rows)
    return scale / tf.cast(rows.output_length, rows.dtype)
