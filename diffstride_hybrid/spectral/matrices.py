"""A pooling as small matrices: DFT, window and inverse DFT along one axis in one product."""

from __future__ import annotations

import functools
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
    signs = ops.convert_to_tensor([1, -1][:parts], columns.dtype)[:, None]  # Re(ab) = Re a Re b - Im a Im b.
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


def pooling_matrix(window: Window, norm: Norm, parts: int, factor: Tensor | float = 1.0) -> Tensor:
    """The matrix of DFT, window and inverse DFT along one axis.

    `B[p, n] = c · sum_j m_j · w_j · exp(2πi (p · j / n_out - k_j · n / n_in))`: `m_j` is the weight of kept bin number
    j, `k_j` its frequency, `w_j` is 2 for the one-sided bins that stand for two frequencies and 1 otherwise, and `c` is
    the factor of `norm` divided by `n_out`.

    Args:
        window: over the axis.
        norm: as in `numpy.fft`.
        parts: 1 for the real part, 2 for the real and the imaginary part.
        factor: of all entries, a scalar.

    Returns:
        `[output_length, parts, length]`, in the dtype of the weights.
    """
    dtype, kept = window.dtype, window.kept
    places = ops.arange(kept)
    scale = scale_after_inverse(window.length, window.output_length, norm, dtype) * factor
    weights = window.weights * (scale / ops.cast(window.output_length, dtype))
    if window.negatives is None:
        alone = ops.logical_or(places == 0, 2 * places == window.output_length)
        weights = weights * ops.where(alone, ops.cast(1.0, dtype), ops.cast(2.0, dtype))

    # A pooling of bounded maps never enlarges, and neither does a learned one.
    shrinks = window.learned or window.longest is not None
    longest = window.most if shrinks else window.output_length
    # Cosine and sine for the real part, and both a quarter turn later for the imaginary part.
    quarters = np.array([[0, 1], [1, 2]])[:parts, None]
    samples = ops.reshape(ops.arange(window.output_length), [-1, 1, 1, 1])
    left = waves(samples, places[:, None], window.output_length, quarters, dtype, most=longest)
    left = ops.reshape(left * weights[:, None], [parts * window.output_length, 2 * kept])
    if window.negatives is None:
        right = lowest_dft_matrix(kept, window.length, dtype, most=window.most)
    else:
        right = dft_matrix(window.bins, window.length, dtype, most=window.most)
    return ops.reshape(product(left, right), [window.output_length, parts, window.length])


def dft_matrix(frequencies: Tensor, length: Length, dtype: Any, most: Length) -> Tensor:
    """The matrix of a real DFT: for each frequency a row of cosines and a row of sines.

    Args:
        frequencies: int32 `[k]`, below `length`.
        length: samples of the axis.
        dtype: float32 or float64, of the result.
        most: `length`, or a known bound of it.

    Returns:
        `[2 k, length]`.
    """
    rows = waves(ops.reshape(frequencies, [-1, 1, 1]), ops.arange(length), length, np.array([[0], [1]]), dtype, most)
    return ops.reshape(rows, [-1, length])


def lowest_dft_matrix(count: Length, length: Length, dtype: Any, most: Length) -> Tensor:
    """The matrix of `dft_matrix` for the frequencies 0, 1, …; a part of a constant if the length is known and short.

    Args:
        count: of the frequencies, at most `length // 2 + 2`: the released mask goes one beyond the highest of an odd
            length.
        length: samples of the axis.
        dtype: float32 or float64, of the result.
        most: `length`, or a known bound of it.

    Returns:
        `[2 count, length]`.
    """
    if not isinstance(length, int) or length > _LONGEST_CONSTANT:
        return dft_matrix(ops.arange(count), length, dtype, most)
    return ops.reshape(ops.convert_to_tensor(_all_waves(length), dtype)[:count], [-1, length])


@functools.lru_cache
def _all_waves(length: int) -> np.ndarray:
    """`[length // 2 + 2, 2, length]`: a cosine and a sine of each frequency."""
    angles = 2 * np.pi / length * (np.outer(np.arange(length // 2 + 2), np.arange(length)) % length)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


_LONGEST_CONSTANT = 128
"""The longest axis whose waves are held as a constant, of 66 kB in float32."""


def waves(
    frequencies: Tensor, samples: Tensor, length: Length, quarters: np.ndarray, dtype: Any, most: Length
) -> Tensor:
    """`cos(2π (frequency · sample / length - quarters / 4))`: a cosine for no quarter of a turn, a sine for one.

    The products are whole numbers and are reduced to one turn first, so that large ones lose no precision.

    Args:
        frequencies: int32, from 0 to below `length`.
        samples: int32, the same.
        length: of a full turn, in samples.
        quarters: whole numbers. The three arrays broadcast together.
        dtype: float32 or float64, of the result.
        most: no frequency and no sample is greater.

    Returns:
        Of the shape to which the arrays broadcast.
    """
    is_short = isinstance(most, int) and most <= _LARGEST_ROOT
    # JAX has no int64 unless it is asked for; if a length is not known, this is TensorFlow, which has.
    exact = "int32" if is_short or isinstance(length, int) else "int64"
    frequencies, samples = (ops.cast(numbers, exact) for numbers in (frequencies, samples))
    length = length if isinstance(length, int) else ops.cast(length, exact)
    turn = 4 * length  # In quarters of a sample.
    late = quarters * length if isinstance(length, int) else ops.convert_to_tensor(quarters, exact) * length
    if is_short or exact == "int64":
        places = frequencies * (4 * samples) % turn
    else:
        places = 4 * _remainders(frequencies, samples, length)
    places = places - ops.convert_to_tensor(late, exact)
    if isinstance(turn, int):
        radians = ops.convert_to_tensor(2 * math.pi / turn, dtype)
    else:
        radians = ops.cast(2 * math.pi / ops.cast(turn, "float64"), dtype)
    return ops.cos(ops.cast(places, dtype) * radians)


def _remainders(frequencies: Tensor, samples: Tensor, length: int) -> Tensor:
    """`frequency * sample % length` in int32, though the products are greater: a few binary digits at a time."""
    digits = 31 - length.bit_length()
    if digits < 2:
        raise ValueError(f"An axis must have fewer than {2**29} samples, got {length}: take method='fft'.")
    found = 0
    for place in reversed(range(0, length.bit_length(), digits)):
        part = samples // 2**place % 2**digits
        found = (found * 2**digits % length + frequencies * part % length) % length
    return found


_LARGEST_ROOT = math.isqrt(np.iinfo(np.int32).max // 4)
"""23,170: four times the product of two numbers up to this one is an int32."""


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
