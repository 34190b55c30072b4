"""Pools by the engine that is faster at a size, on TensorFlow."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from diffstride_hybrid.spectral.options import Bound, DataFormat, Kind, Method, Norm
from diffstride_hybrid.spectral.tensorflow.engines import (
    FIXED_MAPS,
    LEARNED_MAPS,
    LEARNED_SIGNALS,
    RESAMPLED_MAPS,
    RESAMPLED_SIGNALS,
    Crossover,
    by_faster_engine,
)
from diffstride_hybrid.spectral.tensorflow.fft import (
    pool_by_fft,
    pool_signal_by_fft,
    resize_by_fft,
    spectral_pooling_fft,
)
from diffstride_hybrid.spectral.tensorflow.matmul import pool_by_matmul, pool_signal_by_matmul
from diffstride_hybrid.spectral.tensorflow.shared_graphs import Pool, share_graph_if_undecided
from diffstride_hybrid.spectral.windows import Window

_OF_MAPS: dict[Kind, Crossover] = {
    "learned": LEARNED_MAPS,
    "fixed": FIXED_MAPS,
    "resampled": RESAMPLED_MAPS,
    "resized": RESAMPLED_MAPS,
}

_OF_SIGNALS: dict[Kind, Crossover] = {"learned": LEARNED_SIGNALS, "resized": RESAMPLED_SIGNALS}

_BY_FFT = {
    "learned": pool_by_fft,
    "fixed": pool_by_fft,
    "resampled": spectral_pooling_fft,
    "resized": resize_by_fft,
}


def shares_graph(kind: Kind, signals: bool = False) -> Callable[[Pool], Pool]:
    """Decorates a pooling so that calls share one graph if their size is known only when it runs.

    Args:
        kind: of the pooling.
        signals: whether it pools signals.
    """
    return share_graph_if_undecided((_OF_SIGNALS if signals else _OF_MAPS)[kind])


def pool_maps(
    inputs: tf.Tensor,
    rows: Window,
    columns: Window,
    norm: Norm,
    data_format: DataFormat,
    method: Method,
    kind: Kind,
    at_most: Bound = None,
) -> tf.Tensor:
    """Pools feature maps by two windows.

    Args:
        inputs: floating-point `[batch, height, width, channels]`, or `[batch, channels, height, width]`.
        rows: the window over rows.
        columns: the one-sided window over columns.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.
        method: 'fft' or 'matmul'; 'auto' picks one by the size.
        kind: of the pooling.
        at_most: no map is larger than this.

    Returns:
        The pooled maps, in the dtype of `inputs`.
    """
    rows, columns = (window._replace(longest=most) for window, most in zip((rows, columns), at_most or (None, None)))
    return by_faster_engine(
        inputs,
        method,
        _OF_MAPS[kind],
        data_format,
        lambda: _BY_FFT[kind](inputs, rows, columns, norm, data_format),
        lambda: pool_by_matmul(inputs, rows, columns, norm, data_format),
    )


def pool_signals(
    inputs: tf.Tensor, window: Window, norm: Norm, data_format: DataFormat, method: Method, kind: Kind
) -> tf.Tensor:
    """Pools signals by a one-sided window.

    Args:
        inputs: floating-point `[batch, time, channels]`, or `[batch, channels, time]`.
        window: one-sided.
        norm: as in `numpy.fft`.
        data_format: which axis holds the channels.
        method: 'fft' or 'matmul'; 'auto' picks one by the size.
        kind: of the pooling.

    Returns:
        The pooled signals, in the dtype of `inputs`.
    """
    return by_faster_engine(
        inputs,
        method,
        _OF_SIGNALS[kind],
        data_format,
        lambda: pool_signal_by_fft(inputs, window, norm, data_format),
        lambda: pool_signal_by_matmul(inputs, window, norm, data_format),
    )
