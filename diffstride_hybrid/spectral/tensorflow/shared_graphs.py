"""One graph for all poolings of maps or signals whose size is known only when the graph runs.

A network whose strides are learned pools many maps of unknown size, with the same options every time. Traced anew in
each layer, their operations were most of a training step's graph, and of the time until the first step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import tensorflow as tf

from diffstride_hybrid.backends.xla import needs_static_shapes
from diffstride_hybrid.spectral.layout import resized, spatial_axes
from diffstride_hybrid.spectral.tensorflow.engines import Crossover, engine_in_trace

Pool = TypeVar("Pool", bound=Callable[..., tf.Tensor])

_LARGEST_CACHE = 256
"""Graphs that are kept for further calls. A network needs one for each dtype, rank and set of options."""


def share_graph_if_undecided(crossover: Crossover) -> Callable[[Pool], Pool]:
    """Decorates a pooling so that it shares its graph among calls.

    Args:
        crossover: of the pooling's engines.

    Returns:
        A decorator, see `_sharing`.
    """
    return functools.partial(_sharing, crossover)


def _sharing(crossover: Crossover, pool: Pool) -> Pool:
    """Lets a pooling share one graph among all calls that differ only in their tensors.

    It does so if the size of the maps is not known, if the choice of the engine waits for the size of the batch, or if
    the maps have a bound. Else the pooling is called as it is: its graph holds constants that other sizes cannot share.

    Args:
        crossover: of the pooling's engines.
        pool: called with a batch of maps or signals first. Has the keyword arguments `data_format` and `method`.
            Tensors among the other arguments, also within tuples, may differ from call to call.

    Returns:
        The same function, with the same results and gradients.
    """

    @functools.wraps(pool)
    def sharing(inputs: tf.Tensor, *arguments: Any, **options: Any) -> tf.Tensor:
        data_format, method = options.get("data_format", "channels_last"), options.get("method", "auto")
        axes = spatial_axes(data_format, inputs.shape.rank)
        lengths = {axis: inputs.shape[axis] for axis in axes}
        if tf.executing_eagerly() or needs_static_shapes():
            return pool(inputs, *arguments, **options)
        engine = engine_in_trace(inputs, method, crossover, data_format, options.get("at_most"))
        if engine is not None:
            # A network that bounds its maps has maps of unknown size too. Their graph serves these as well.
            shares = options.get("at_most") is not None and options.get("kept") is None
            if None not in lengths.values() and not shares:
                return pool(inputs, *arguments, **options)
            # The shared graph does not know the channels, by which the engine was chosen.
            options["method"] = engine
            if shares:
                lengths = {}
        tensors = [leaf for leaf in tf.nest.flatten((arguments, options)) if tf.is_tensor(leaf)]
        maps = tf.TensorSpec([lengths.get(axis) for axis in range(inputs.shape.rank)], inputs.dtype)
        specifications = (maps, *(tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in tensors))
        others = tf.nest.map_structure(lambda leaf: _TENSOR if tf.is_tensor(leaf) else leaf, (arguments, options))
        outputs = _shared_graph(pool, specifications, _Options(others))(inputs, *tensors)
        return tf.ensure_shape(outputs, resized(inputs.shape, [outputs.shape[axis] for axis in axes], data_format))

    return sharing


class _Tensor:
    """Stands for a tensor among the arguments of a call."""

    def __repr__(self) -> str:
        return "tensor"


_TENSOR = _Tensor()


class _Options:
    """The arguments of a call without their tensors. Equal if they read the same: lists and tuples cannot be hashed."""

    def __init__(self, arguments: tuple[tuple[Any, ...], dict[str, Any]]):
        self.arguments = arguments
        self.text = repr((arguments[0], sorted(arguments[1].items())))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Options) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


@functools.lru_cache(_LARGEST_CACHE)
def _shared_graph(
    pool: Callable[..., tf.Tensor], specifications: tuple[tf.TensorSpec, ...], options: _Options
) -> Callable[..., tf.Tensor]:
    def pool_tensors(inputs: tf.Tensor, *tensors: tf.Tensor) -> tf.Tensor:
        remaining = iter(tensors)
        leaves = [next(remaining) if leaf is _TENSOR else leaf for leaf in tf.nest.flatten(options.arguments)]
        arguments, keywords = tf.nest.pack_sequence_as(options.arguments, leaves)
        return pool(inputs, *arguments, **keywords)

    # If it were inlined, each call would be optimized by itself before the first step, which takes as long as without.
    return tf.function(
        pool_tensors,
        input_signature=specifications,
        autograph=False,
        experimental_attributes={"_noinline": True},
    )
