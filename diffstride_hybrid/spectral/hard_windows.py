"""Hard windows over a spectrum, which weigh every kept bin alike: those of the poolings whose size is given."""

from __future__ import annotations

from keras import ops

from diffstride_hybrid.spectral.options import Length
from diffstride_hybrid.spectral.sizes import fixed_output_lengths
from diffstride_hybrid.spectral.windows import Window


def fixed_windows(
    height: Length, width: Length, strides: tuple[float, float], dtype: str = "float32"
) -> tuple[Window, Window]:
    """The hard windows of `fixed_spectral_pooling`: every kept bin weighs 1.

    Rows keep the frequencies `-h / 2 … h / 2 - 1` of the `h` rows of the output, columns `0 … w / 2`. The row `-h / 2`
    becomes the output's Nyquist row without its counterpart, as in the code released with DiffStride. A map of one row
    keeps its frequency 0.

    Args:
        height: rows of the feature map.
        width: columns of the feature map.
        strides: vertical and horizontal, at least 1.
        dtype: float32 or float64, of the weights.

    Returns:
        The window over rows, two-sided, and the window over columns, one-sided.
    """
    output_height, output_width = fixed_output_lengths(height, width, strides)
    low = output_height // 2
    frequencies = ops.arange(low + 1)
    rows = Window(
        length=height,
        output_length=output_height,
        kept=output_height,
        factors=ops.cast(ops.stack([frequencies < output_height - low, frequencies > 0], axis=1), dtype),
        negatives=low,
        unequal=(low, 1),
        learned=False,
    )
    columns = Window(
        length=width,
        output_length=output_width,
        kept=output_width // 2 + 1,
        factors=ops.ones([output_width // 2 + 1], dtype),
        negatives=None,
        unequal=None,
        learned=False,
    )
    return rows, columns


def resampling_window(length: Length, output_length: Length, dtype: str = "float32") -> Window:
    """The hard window that makes the result equal to `scipy.signal.resample`, times the factor of the norm.

    It keeps the frequencies `0 … k / 2` of an axis, each with weight 1; `k` is the smaller of both lengths. An even
    `k` has a Nyquist frequency. To fewer samples the bins `k / 2` and `-k / 2` fold into one, which therefore weighs
    2 (Rippel et al., NeurIPS 2015, arXiv 1506.03767). To more samples the one bin is split between the frequencies
    `k / 2` and `-k / 2`, which therefore weigh 1/2 each.

    Args:
        length: samples along the axis.
        output_length: samples afterwards, fewer or more.
        dtype: float32 or float64, of the weights.

    Returns:
        A one-sided window.

    Example:
        >>> from diffstride_hybrid import spectral
        >>> [spectral.resampling_window(*lengths).weights.numpy().tolist() for lengths in ((8, 4), (4, 8))]
        [[1.0, 1.0, 2.0], [1.0, 1.0, 0.5]]
    """
    at_most = min if isinstance(length, int) and isinstance(output_length, int) else ops.minimum
    shorter = at_most(length, output_length)
    bins = ops.arange(shorter // 2 + 1)
    is_nyquist = 2 * bins == shorter
    folded, shared = (ops.logical_and(is_nyquist, each) for each in (output_length < length, length < output_length))
    weights = ops.cast(ops.where(folded, 2.0, ops.where(shared, 0.5, 1.0)), dtype)
    return Window(length, output_length, shorter // 2 + 1, weights, None, None, learned=False)
