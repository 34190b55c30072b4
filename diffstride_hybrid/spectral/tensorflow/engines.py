"""The choice between the two engines, by a model of what each costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import tensorflow as tf

from diffstride_hybrid.backends.xla import needs_static_shapes, on_tpu
from diffstride_hybrid.spectral.options import Bound, DataFormat, Method

Number = TypeVar("Number")

_TYPICAL_BATCH = 64
"""Where a graph must not decide when it runs, as under XLA, and does not know its batch."""


class Crossover(NamedTuple):
    """When transforms are faster than products: `n (1 + channels / c + matrices / (b c)) > limit · log2(n + 1)`.

    There are `b` maps of `c` channels and, in the mean of both axes, `n` samples along an axis. Products take time in
    proportion to that length, transforms in proportion to its logarithm. Few channels fill a product badly. Matrices
    that depend on strides are built once for a batch.

    Attributes:
        limit: how much faster one operation of a product is than one of a transform.
        channels: the number of channels at which a product takes twice its share.
        matrices: how many maps of one channel cost as much as building the matrices; for signals how many for each
            sample. 0 if the matrices are constants.
    """

    limit: float
    channels: float
    matrices: float


# Fitted to the times of forward and backward pass at stride 2 in float32, on two cores with AVX512, at 8 to 1024 rows
# or 64 to 4096 samples, 1 to 256 channels and batches of 1 to 64. In 98 % of DiffStride's 368 cases the choice was the
# faster engine or within 10 % of it. The poolings without strides to learn have 48 such cases.
# `python -m experiments.benchmark --parts=engines` compares both engines again.
LEARNED_MAPS, LEARNED_SIGNALS = Crossover(125.0, 20.0, 25.0), Crossover(60.0, 12.0, 0.045)
FIXED_MAPS, RESAMPLED_MAPS, RESAMPLED_SIGNALS = (
    Crossover(110.0, 8.0, 0.0),
    Crossover(180.0, 7.0, 0.0),
    Crossover(125.0, 5.5, 0.0),
)


def resolve_method(
    method: Method,
    crossover: Crossover,
    height: int | None,
    width: int | None,
    channels: int | None,
    batch: int | None = None,
) -> Method | None:
    """The engine that `method` stands for at a given size.

    'auto' stands for the engine that takes less time on a CPU: 'matmul' for short axes, many channels and large
    batches. On a TPU 'auto' always stands for 'matmul', because the TPU's compiler turns a transform into dense
    products.

    Args:
        method: 'auto', 'fft' or 'matmul'.
        crossover: of the pooling.
        height: rows of the feature map, 1 for signals. None here and below for a number that is not known.
        width: columns of the feature map, or samples of the signal.
        channels: of the map or signal.
        batch: how many maps or signals are pooled at once.

    Returns:
        'fft' or 'matmul'. None if it depends on a number that is not known.

    Example:
        >>> from diffstride_hybrid.spectral.tensorflow.engines import LEARNED_MAPS, resolve_method
        >>> [resolve_method("auto", LEARNED_MAPS, size, size, channels=64) for size in (32, 1024)]
        ['matmul', 'fft']
    """
    if method != "auto":
        return method
    if on_tpu():
        return "matmul"
    if None in (height, width, channels):
        return None
    # The share of the matrices in the cost falls with the batch.
    answers = {
        _fft_is_faster(crossover, n, height, width, channels) for n in ((1, math.inf) if batch is None else (batch,))
    }
    if len(answers) > 1:
        return None
    return "fft" if answers.pop() else "matmul"


def engine_in_trace(
    inputs: tf.Tensor, method: Method, crossover: Crossover, data_format: DataFormat, at_most: Bound = None
) -> Method | None:
    """The engine for a batch, as far as its shape is known.

    Args:
        inputs: a batch of maps or signals.
        method: 'auto', 'fft' or 'matmul'.
        crossover: of the pooling.
        data_format: which axis holds the channels.
        at_most: no map is larger than this. If products are faster for the largest map, they are so for all.

    Returns:
        'fft' or 'matmul'. None if the graph that is being traced must decide when it runs.
    """
    batch, height, width, channels = _numbers(inputs.shape.as_list(), data_format)
    if batch is None and needs_static_shapes():
        batch = _TYPICAL_BATCH
    if at_most is not None and None in (height, width):
        engine = resolve_method(method, crossover, *at_most, channels, batch)
        return None if method == "auto" and engine == "fft" else engine
    return resolve_method(method, crossover, height, width, channels, batch)


def by_faster_engine(
    inputs: tf.Tensor,
    method: Method,
    crossover: Crossover,
    data_format: DataFormat,
    by_fft: Callable[[], tf.Tensor],
    by_matmul: Callable[[], tf.Tensor],
) -> tf.Tensor:
    """Pools by the engine that `method` stands for. The graph decides when it runs if that is not known before.

    Args:
        inputs: a batch of maps or signals.
        method: 'auto', 'fft' or 'matmul'.
        crossover: of the pooling.
        data_format: which axis holds the channels.
        by_fft: pools by transforms.
        by_matmul: pools by products.

    Returns:
        The pooled maps or signals.
    """
    engine = engine_in_trace(inputs, method, crossover, data_format)
    if engine is not None:
        return by_fft() if engine == "fft" else by_matmul()
    shape = tf.cast(tf.shape(inputs), tf.float32)
    return tf.cond(_fft_is_faster(crossover, *_numbers(tf.unstack(shape), data_format)), by_fft, by_matmul)


def _numbers(shape: Sequence[Number], data_format: DataFormat) -> tuple[Number, Number | int, Number, Number]:
    """Batch, height, width and channels in the shape of a batch. Signals have the height 1."""
    batch, *rest = shape
    channels = rest.pop(-1 if data_format == "channels_last" else 0)
    height, width = (1, *rest)[-2:]
    return batch, height, width, channels


def _fft_is_faster(crossover: Crossover, batch: Any, height: Any, width: Any, channels: Any) -> bool | tf.Tensor:
    """Whether transforms take less time: of Python's numbers, or in the graph of float32 scalars."""
    log2, at_least = (_log2_in_graph, tf.maximum) if tf.is_tensor(width) else (math.log2, max)
    batch, channels = at_least(batch, 1), at_least(channels, 1)
    overhead = crossover.channels / channels
    if isinstance(height, int) and height == 1:
        overhead += crossover.matrices * width / (batch * channels)
        return width * (1.0 + overhead) > crossover.limit * log2(width + 1)
    overhead += crossover.matrices / (batch * channels)
    return (height + width) * (1.0 + overhead) > crossover.limit * (log2(height + 1) + log2(width + 1))


def _log2_in_graph(number: tf.Tensor) -> tf.Tensor:
    return tf.math.log(number) / math.log(2.0)
