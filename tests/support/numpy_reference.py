"""The poolings as the design states them, as plain sums in float64: no FFT, no TensorFlow, nothing from the package.

Feature maps are `[batch, height, width, channels]`. Along an axis of `n` samples a frequency is a signed integer `k`,
and a window is a list of `(frequency, weight)` in FFT order, the order in which the kept bins fill the output's
spectrum.
"""

import numpy as np

Bins = list[tuple[int, float]]


def diffstride(
    x: np.ndarray,
    strides: tuple[float, ...],
    smoothness_factor: float = 4.0,
    cropping: bool = True,
    lower_limit_stride: float | None = None,
    upper_limit_stride: float | None = None,
    mask: str = "released",
    norm: str = "backward",
    kept: tuple[int, int] | None = None,
) -> np.ndarray:
    """`kept` counts (rows, one-sided columns) to keep whatever their weight, as between two refreshes of a crop."""
    lengths = x.shape[1:3]
    minima = [minimum_stride(n, smoothness_factor) for n in lengths]
    if len(strides) == 1:
        strides, minima = (*strides, *strides), [max(minima)] * 2
    upper = np.inf if upper_limit_stride is None else upper_limit_stride
    rows_stride, columns_stride = (
        min(max(stride, minimum, lower_limit_stride or 1.0), upper) for stride, minimum in zip(strides, minima)
    )
    window = released_windows if mask == "released" else symmetric_windows
    rows, columns = window(lengths, (rows_stride, columns_stride), smoothness_factor)
    if kept is not None:
        rows = lowest_rows(rows, kept[0], mask)
        columns = columns[: kept[1]]
    elif cropping:
        rows = [(k, weight) for k, weight in rows if weight > 0]
        columns = [(k, weight) for k, weight in columns if weight > 0]
    highest = columns[-1][0]
    width = 2 * highest
    if mask == "symmetric":
        width = lengths[1] if highest == lengths[1] // 2 else 2 * highest + 1
    return one_sided_pooling(x, rows, columns, len(rows), width, norm)


def fixed_spectral_pooling(x: np.ndarray, strides: tuple[float, float], norm: str = "backward") -> np.ndarray:
    height, width = x.shape[1] // strides[0], x.shape[2] // strides[1]
    height, width = int(max(2, height - height % 2)), int(max(2, width))
    rows = [(k, 1.0) for k in [*range(height // 2), *range(-(height // 2), 0)]]
    columns = [(k, 1.0) for k in range(width // 2 + 1)]
    return one_sided_pooling(x, rows, columns, height, width, norm)


def spectral_pooling(x: np.ndarray, output_size: tuple[int, int], norm: str = "backward") -> np.ndarray:
    """Crops the two-sided spectrum; an even axis ends on the Nyquist bin, the sum of the bins at both its signs."""
    lengths = x.shape[1:3]
    kept = [range(-((n - 1) // 2), n // 2 + 1) for n in output_size]
    spectrum = np.zeros((x.shape[0], *output_size, x.shape[3]), complex)
    for k in kept[0]:
        for q in kept[1]:
            for row in both_signs(k, output_size[0], lengths[0]):
                for column in both_signs(q, output_size[1], lengths[1]):
                    wave = np.outer(waves([row], lengths[0], -1)[0], waves([column], lengths[1], -1)[0])
                    spectrum[:, k, q] += np.einsum("hw,bhwc->bc", wave, x)
    places = [np.arange(n) for n in output_size]
    outward = [waves(place, n, 1) for place, n in zip(places, output_size)]
    y = np.einsum("jp,kq,bjkc->bpqc", *outward, spectrum) / np.prod(output_size)
    np.testing.assert_allclose(y.imag, 0, atol=1e-9 * max(1.0, np.abs(y).max()))
    return y.real * norm_factor(lengths, output_size, norm)


def minimum_stride(length: int, smoothness_factor: float) -> float:
    return length / (length - smoothness_factor) if length > smoothness_factor else 1.0


def released_windows(
    lengths: tuple[int, int], strides: tuple[float, float], smoothness_factor: float
) -> tuple[Bins, Bins]:
    height, width = lengths
    m = height // 2
    if height % 2:
        positions = np.roll([*range(m, 0, -1), *range(m + 1)], m)
        frequencies = [*range(m + 1), *range(-m, 0)]
    else:
        frequencies = [*range(m), *range(-m, 0)]
        positions = [k if k >= 0 else -k - 1 for k in frequencies]
    row_threshold = max(height / strides[0], 2) / 2
    column_threshold = max(width / strides[1], 2) / 2 + 1
    return (
        [(k, weight_at(p, row_threshold, smoothness_factor)) for k, p in zip(frequencies, positions)],
        [(k, weight_at(k, column_threshold, smoothness_factor)) for k in range(width // 2 + 1)],
    )


def symmetric_windows(
    lengths: tuple[int, int], strides: tuple[float, float], smoothness_factor: float
) -> tuple[Bins, Bins]:
    thresholds = [max(n / stride, 2) / 2 for n, stride in zip(lengths, strides)]
    rows = [*range((lengths[0] + 1) // 2), *range(-(lengths[0] // 2), 0)]
    columns = range(lengths[1] // 2 + 1)
    return (
        [(k, weight_at(abs(k), thresholds[0], smoothness_factor)) for k in rows],
        [(k, weight_at(k, thresholds[1], smoothness_factor)) for k in columns],
    )


def weight_at(position: int, threshold: float, smoothness_factor: float) -> float:
    if smoothness_factor == 0:
        return 1.0 if position < threshold else 0.0
    return float(np.clip((smoothness_factor + threshold - position) / smoothness_factor, 0, 1))


def lowest_rows(rows: Bins, kept: int, mask: str) -> Bins:
    """The odd one out of an odd number of rows has a negative frequency in the release, and is 0 when symmetric."""
    non_negative = kept // 2 if mask == "released" else (kept + 1) // 2
    negative = kept - non_negative
    return rows[:non_negative] + rows[len(rows) - negative :]


def one_sided_pooling(x: np.ndarray, rows: Bins, columns: Bins, height: int, width: int, norm: str) -> np.ndarray:
    """As rfft2d, a weighted crop, and irfft2d: the columns' missing half is the conjugate of the half that is there."""
    lengths = x.shape[1:3]
    spectrum = np.einsum(
        "jh,kw,bhwc->bjkc",
        waves([k for k, _ in rows], lengths[0], -1),
        waves([k for k, _ in columns], lengths[1], -1),
        x,
    )
    spectrum *= np.outer([weight for _, weight in rows], [weight for _, weight in columns])[None, :, :, None]
    by_row = np.einsum("jp,bjkc->bpkc", waves(np.arange(height), height, 1), spectrum) / height
    y = np.zeros((x.shape[0], height, width, x.shape[3]))
    for j in range(len(columns)):
        wave = waves([j], width, 1)[0]
        term = (by_row[:, :, None, j] * wave[None, None, :, None]).real / width
        y += term if j == 0 or 2 * j == width else 2 * term
    return y * norm_factor(lengths, (height, width), norm)


def both_signs(frequency: int, output_length: int, length: int) -> list[int]:
    folds = 2 * frequency == output_length and output_length < length
    return [frequency, -frequency] if folds else [frequency]


def waves(frequencies: list[int] | np.ndarray, length: int, sign: int) -> np.ndarray:
    """`exp(sign · 2πi · k · n / length)`, a row for each frequency."""
    return np.exp(sign * 2j * np.pi * np.outer(frequencies, np.arange(length)) / length)


def norm_factor(lengths: tuple[int, int], output_lengths: tuple[int, int], norm: str) -> float:
    """After an inverse that divides by its own length: `numpy.fft` with the same `norm` in both directions."""
    ratio = np.prod(output_lengths) / np.prod(lengths)
    return {"backward": 1.0, "forward": ratio, "ortho": np.sqrt(ratio)}[norm]
