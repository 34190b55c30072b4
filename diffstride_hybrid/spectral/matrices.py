"""A pooling as small matrices: DFT, window and inverse DFT along one axis in one product."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from keras import ops

from diffstride_hybrid.backends.current import product
from diffstride_hybrid.spectral.options import DataFormat, Length, Norm, Tensor
from diffstride_hybrid.spectral.windows import Window


def pooling_matrices(rows: Window | None, columns: Window, norm: Norm) -> tuple[Tensor | None, Tensor]:
    """The two matrices of a pooling, which is linear: `y = column_matrix · (row_matrix · x)`, for `apply_matrices`.

    Args:
        rows: the window over rows, or None for a signal, which has one axis.
        columns: the window over columns.
        norm: as in `numpy.fft`.

    Returns:
        `[parts · output height, height]`, or None, and `[output width, parts · width]`, in the dtype of the weights.
        There are two parts, real and imaginary, if the rows weigh positive and negative frequencies differently; else
        one.

    Example:
        >>> from diffstride_hybrid import spectral
        >>> rows, columns = spectral.fixed_windows(16, 12, strides=(2.0, 2.0))
        >>> [matrix.shape for matrix in spectral.pooling_matrices(rows, columns, norm="forward")]
        [TensorShape([16, 16]), TensorShape([6, 24])]
    """
    if rows is None:
        return None, pooling_matrix(columns, norm, 1)[:, 0]
    parts = 1 if rows.unequal is None else 2
    row_matrix = ops.reshape(pooling_matrix(rows, norm, parts), [-1, rows.length])
    signs = ops.convert_to_tensor([1, -1][:parts], columns.weights.dtype)[:, None]  # Re(ab) = Re a Re b - Im a Im b.
    column_matrix = ops.reshape(pooling_matrix(columns, norm, parts) * signs, [-1, parts * columns.length])
    return row_matrix, column_matrix


def apply_matrices(inputs: Tensor, row_matrix: Tensor | None, column_matrix: Tensor, data_format: DataFormat) -> Tensor:
    """Pools by the matrices of `pooling_matrices`: one or two products with constants of known shapes.

    Args:
        inputs: floating-point `[batch, height, width, channels]` or `[batch, time, channels]`, or with the channels
            before the pooled axes. Only the batch may be unknown.
        row_matrix: `[parts · output height, height]`, or None for signals.
        column_matrix: `[output width, parts · width]`.
        data_format: which axis holds the channels.

    Returns:
        The pooled maps or signals, in the dtype of `inputs`.
    """
    column_matrix = ops.cast(column_matrix, inputs.dtype)
    if row_matrix is None:
        if data_format == "channels_last":
            return product(column_matrix[None], inputs)
        return product(inputs, ops.transpose(column_matrix)[None])
    maps = inputs if data_format == "channels_last" else ops.transpose(inputs, [0, 2, 3, 1])
    height, width, channels = maps.shape[1:]
    output_width, columns = column_matrix.shape
    half = product(ops.cast(row_matrix, inputs.dtype)[None], ops.reshape(maps, [-1, height, width * channels]))
    outputs = product(column_matrix[None], ops.reshape(half, [-1, columns, channels]))
    output_height = row_matrix.shape[0] * width // columns
    outputs = ops.reshape(outputs, [-1, output_height, output_width, channels])
    return outputs if data_format == "channels_last" else ops.transpose(outputs, [0, 3, 1, 2])


def pooling_matrix(window: Window, norm: Norm, parts: int) -> Tensor:
    """The matrix of DFT, window and inverse DFT along one axis.

    `B[p, n] = c · sum_j m_j · w_j · exp(2πi (p · j / n_out - k_j · n / n_in))`: `m_j` is the weight of kept bin number
    j, `k_j` its frequency, `w_j` is 2 for the one-sided bins that stand for two frequencies and 1 otherwise, and `c` is
    the factor of `norm` divided by `n_out`.

    Args:
        window: over the axis.
        norm: as in `numpy.fft`.
        parts: 1 for the real part, 2 for the real and the imaginary part.

    Returns:
        `[output_length, parts, length]`, in the dtype of the weights.
    """
    dtype = window.weights.dtype
    places = ops.arange(ops.shape(window.bins)[0])
    weights = window.weights
    if window.negatives is None:
        alone = ops.logical_or(places == 0, 2 * places == window.output_length)
        weights = weights * ops.cast(ops.where(alone, 1.0, 2.0), dtype)
    weights = weights * scale_after_inverse(window.length, window.output_length, norm, dtype)
    weights = weights / ops.cast(window.output_length, dtype)

    # A learned window never enlarges, so that a length that is known bounds an output that is not.
    longest = window.length if window.learned else window.output_length
    cos, sin = cos_and_sin(ops.arange(window.output_length), places, window.output_length, dtype, most=longest)
    left = [ops.concatenate([cos, sin], 1)] + [ops.concatenate([sin, -cos], 1)] * (parts - 1)
    cos, sin = cos_and_sin(window.bins, ops.arange(window.length), window.length, dtype, most=window.length)
    right = ops.concatenate([weights[:, None] * cos, weights[:, None] * sin])
    left = ops.reshape(ops.stack(left, 1), [parts * window.output_length, 2 * ops.shape(places)[0]])
    return ops.reshape(product(left, right), [window.output_length, parts, window.length])


def cos_and_sin(
    frequencies: Tensor, samples: Tensor, length: Length, dtype: Any, most: Length
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of `2π · frequency · sample / length`.

    The products are whole numbers and are reduced to one turn first, so that large ones lose no precision.

    Args:
        frequencies: int32 `[k]`.
        samples: int32 `[n]`.
        length: of a full turn, in samples.
        dtype: float32 or float64, of the results.
        most: no frequency and no sample is greater.

    Returns:
        Cosines and sines, `[k, n]`.
    """
    if not isinstance(most, int) or most > _LARGEST_ROOT:
        frequencies, samples = (ops.cast(numbers, "int64") for numbers in (frequencies, samples))
        turns = frequencies[:, None] * samples % ops.cast(length, "int64")
    else:
        turns = frequencies[:, None] * samples % length
    if isinstance(length, int):
        turn = ops.convert_to_tensor(2 * math.pi / length, dtype)
    else:
        turn = ops.cast(2 * math.pi / ops.cast(length, "float64"), dtype)
    angles = ops.cast(turns, dtype) * turn
    return ops.cos(angles), ops.sin(angles)


_LARGEST_ROOT = math.isqrt(np.iinfo(np.int32).max)
"""46,340: the product of two numbers up to this one is an int32."""


def scale_after_inverse(length: Length, output_length: Length, norm: Norm, dtype: Any) -> Tensor:
    """The factor that `norm` asks for along one axis, after an inverse DFT that divides by the output's length.

    Args:
        length: `n`, samples before pooling.
        output_length: `m`, samples after pooling.
        norm: as in `numpy.fft`.
        dtype: of the result.

    Returns:
        A scalar: 1 for 'backward', `m / n` for 'forward', `sqrt(m / n)` for 'ortho'.
    """
    if norm == "backward":
        return ops.ones([], dtype)
    ratio = ops.cast(output_length, dtype) / ops.cast(length, dtype)
    return ratio if norm == "forward" else ops.sqrt(ratio)
