"""The engine for JAX and PyTorch: products with the matrices of a pooling, in operations that every backend has."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from diffstride_hybrid.backends import current
from diffstride_hybrid.spectral.matrices import apply_matrices, pooling_matrices
from diffstride_hybrid.spectral.options import Bound, DataFormat, Kind, Method, Norm, Tensor
from diffstride_hybrid.spectral.windows import Window

Pool = TypeVar("Pool", bound=Callable[..., Tensor])


def shares_graph(kind: Kind, signals: bool = False) -> Callable[[Pool], Pool]:
    """Leaves a pooling as it is: sizes are known, so that there is no graph to share."""
    return lambda pool: pool


def pool_maps(
    inputs: Tensor,
    rows: Window,
    columns: Window,
    norm: Norm,
    data_format: DataFormat,
    method: Method,
    kind: Kind,
    at_most: Bound = None,
) -> Tensor:
    """Pools feature maps by two windows.

    Args:
        inputs: floating-point `[batch, height, width, channels]`, or `[batch, channels, height, width]`.
        rows: the window over rows.
        columns: the one-sided window over columns.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.
        method: 'matmul' or 'auto', which is the same.
        kind: of the pooling, which makes no difference.
        at_most: of the maps, which makes no difference either.

    Returns:
        The pooled maps, in the dtype of `inputs`.

    Raises:
        ValueError: the method is 'fft'.
    """
    _check_method(method)
    return apply_matrices(inputs, *pooling_matrices(rows, columns, norm), data_format)


def pool_signals(
    inputs: Tensor, window: Window, norm: Norm, data_format: DataFormat, method: Method, kind: Kind
) -> Tensor:
    """Pools signals by a one-sided window.

    Args:
        inputs: floating-point `[batch, time, channels]`, or `[batch, channels, time]`.
        window: one-sided.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.
        method: 'matmul' or 'auto', which is the same.
        kind: of the pooling, which makes no difference.

    Returns:
        The pooled signals, in the dtype of `inputs`.

    Raises:
        ValueError: the method is 'fft'.
    """
    _check_method(method)
    return apply_matrices(inputs, *pooling_matrices(None, window, norm), data_format)


def matmul_macs(
    height: int, width: int, output_height: int, output_width: int, *, unequal: int | None, data_format: DataFormat
) -> int:
    """Multiply-accumulate operations for one channel of one image.

    Args:
        height: rows of the feature map.
        width: columns of the feature map.
        output_height: rows after pooling.
        output_width: columns after pooling.
        unequal: None if the rows weigh both signs of a frequency alike. Else the matrices have an imaginary part, too.
        data_format: which axis holds the channels, which makes no difference.

    Returns:
        The number of operations.
    """
    parts = 1 if unequal is None else 2
    return parts * output_height * width * (height + output_width)


def _check_method(method: Method) -> None:
    if method == "fft":
        raise ValueError(
            f"method='fft' needs Keras with TensorFlow, and it runs on {current.NAME}: leave it at 'auto'."
        )
