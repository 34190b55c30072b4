"""Where a window lies when a layer with strides runs at stride 1: the zeros before its map, and those behind it.

All of it is for one axis. A window of k samples at stride 1 that has k - 1 zeros in all around its map gives a map of
the same length, and its sample o covers the samples o - before to o - before + k - 1 of the map. What a layer gave at
its position i must be at position i * stride, so that branches that meet again still show the same place.
"""

from __future__ import annotations

Zeros = tuple[int, int]
"""How many zeros go before the samples of one axis, and how many behind."""


def zeros_at_stride_one(window: int, stride: int, length: int, padding: str, padded: int = 0) -> Zeros:
    """The zeros with which a window at stride 1 gives at every position i * stride what it gave there with its stride.

    The window with its stride began at sample i * stride, less the zeros that were before the map.

    Args:
        window: how many samples the window covers.
        stride: of the layer.
        length: of the axis as the layer takes it, with the padding that is left out.
        padding: of the layer, 'valid' or 'same'. With 'same' half of the zeros that the last window needs are before
            the map, rounded down.
        padded: how many samples before the map a padding had added that is left out.

    Returns:
        The zeros, window - 1 in all. A padding that was wider than the window cannot be made up for.

    Example:
        With stride 2 and padding='same' the windows of three samples begin on an even map, and end on an odd one,
        where those of a convolution at stride 1 have their center.

        >>> zeros_at_stride_one(3, 2, length=32, padding="same"), zeros_at_stride_one(3, 2, length=33, padding="same")
        ((0, 2), (1, 1))
        >>> zeros_at_stride_one(3, 2, length=34, padding="valid", padded=1)
        (1, 1)
    """
    before = padded
    if padding == "same":
        before += max((-(-length // stride) - 1) * stride + window - length, 0) // 2
    return _around(window, before)


def zeros_behind_resizing(window: int, stride: int, lengths: tuple[int, int], padding: str, trimmed: int = 0) -> Zeros:
    """The zeros with which a turned window at stride 1 gives what a transposed convolution gives at the same place.

    A transposed convolution puts stride - 1 zeros between the samples u of its map, so that sample i gets to position
    i * stride, and gives y[o] = sum over j of kernel[window - 1 - j] * u[o + cut - (window - 1) + j], where cut counts
    the positions that it cuts off before its result.

    Args:
        window: how many samples the kernel covers.
        stride: of the transposed convolution.
        lengths: of the axis as it takes it, and as it gives it.
        padding: of the transposed convolution, 'valid' or 'same'. With 'same' half of what is too much is cut off
            before the result, rounded down.
        trimmed: how many samples a cropping behind it cuts off before the result. Below 0 for a padding.

    Returns:
        The zeros, window - 1 in all.

    Example:
        >>> [zeros_behind_resizing(window, 2, (8, 16), "same") for window in (2, 3, 4, 5)]
        [(1, 0), (2, 0), (2, 1), (3, 1)]
    """
    length, result = lengths
    cut = trimmed + (max((length - 1) * stride + window - result, 0) // 2 if padding == "same" else 0)
    return _around(window, window - 1 - cut)


def centered_zeros(window: int) -> Zeros:
    """The zeros that padding='same' puts around a map at stride 1.

    Args:
        window: how many samples the window covers.

    Returns:
        The zeros. Of an even window one more sample lies behind a position than before it.

    Example:
        >>> centered_zeros(3), centered_zeros(4)
        ((1, 1), (1, 2))
    """
    return _around(window, (window - 1) // 2)


def _around(window: int, before: int) -> Zeros:
    before = min(max(before, 0), window - 1)
    return before, window - 1 - before
