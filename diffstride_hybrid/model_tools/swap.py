"""Plans which layers of a model are replaced, and has the model rebuilt. `surgery.py` is the public entry.

`swap` reads the graph of a model (`graph.py`), pairs the layers that enlarge maps with the maps whose size they must
give (`pairing.py`), and builds the model once more (`rebuild.py`) with the layers that `replacements.py` makes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from diffstride_hybrid.layers.diffstride import DiffStride
from diffstride_hybrid.model_tools.graph import Graph, is_functional, read_graph
from diffstride_hybrid.model_tools.inspection import leaf_layers
from diffstride_hybrid.model_tools.pairing import Pair, data_format_of, pair_resizings
from diffstride_hybrid.model_tools.rebuild import Plan, Rebuild, check_graph
from diffstride_hybrid.model_tools.replacements import Replacement, Replacements
from diffstride_hybrid.model_tools.selection import Chooser, Selection, resizes


def swap(
    model: keras.Model,
    pooling_cls: Callable[..., keras.layers.Layer],
    include: Selection | None,
    exclude: Selection | None,
    image_shape: Sequence[int],
    options: dict[str, Any],
    keep_max: bool,
    keep_macs: bool,
) -> tuple[keras.Model, list[Replacement]]:
    """Rebuilds a model, and the models nested in it, with poolings in place of downsampling layers.

    If a layer that enlarges maps must follow the new sizes, the nested models are taken apart, so that it reaches the
    map whose size it takes.

    Args:
        model: a built functional or Sequential model with one input.
        pooling_cls: makes a pooling from the arguments `strides`, `data_format`, `dtype`, `name` and `options`.
        include: the layers to replace, of those that downsample. All of them if None.
        exclude: the layers to keep. No layer if None.
        image_shape: (height, width, channels) of an image.
        options: further arguments of `pooling_cls`.
        keep_max: whether a max pooling takes its maximum at stride 1 before the new pooling.
        keep_macs: whether the pooling comes before a strided convolution instead of after it.

    Returns:
        The new model, and the layers that were replaced, in the order of the original model.

    Raises:
        ValueError: the model cannot be taken apart or rebuilt, or a selection does not fit it.
        TypeError: a selection is not a name, names or a function of a layer.
    """
    chooser = Chooser(include, exclude)
    chooser.check(model)
    (entry,) = model.inputs
    inputs = [keras.KerasTensor((None, *image_shape), entry.dtype)]
    graph = read_graph(model, inputs, inline=True)
    _check_sizes(graph, chooser)
    pairs = pair_resizings(graph, chooser)
    _check_shared(graph, pairs)
    names = {layer.name for layer in leaf_layers(model)}
    replacements = Replacements(pooling_cls, options, names, data_format_of(graph))
    plan = Plan(chooser, replacements, keep_max, keep_macs)
    if not pairs and any(map(is_functional, model.layers)):
        graph = read_graph(model, inputs)  # Nested models stay models.
    # A model that takes images of any size still does.
    shape = [None if own is None else given for own, given in zip(entry.shape[1:], image_shape)]
    return Rebuild(plan, model, graph, pairs).result([shape]), replacements.made


def checked_image_shape(model: keras.Model, input_shape: Sequence[int] | None) -> tuple[int, int, int]:
    """(height, width, channels) of an image that a model takes.

    Args:
        model: any model.
        input_shape: as the user gave it. The model's own if None.

    Raises:
        ValueError: the model cannot be taken apart, has several inputs or takes no images, or it takes images of any
            size and none is given.
    """
    check_graph(model)
    if len(model.inputs) != 1:
        raise ValueError(f"{model.name} must have one input, got {len(model.inputs)}.")
    if len(own := model.inputs[0].shape[1:]) != 3:
        raise ValueError(
            f"{model.name} takes {own} and no images of (height, width, channels), which alone can be swapped"
            + (": for signals, put DiffStride1D into it by hand." if len(own) == 2 else ".")
        )
    shape = tuple(own if input_shape is None else input_shape)
    if len(shape) != 3 or None in shape:
        raise ValueError(f"{model.name} needs input_shape=(height, width, channels) of an image, got {shape}.")
    return shape


def _check_sizes(graph: Graph, chooser: Chooser) -> None:
    """Refuses to replace layers behind a `DiffStride` that leaves sizes open: poolings are told apart by sizes."""
    learned = None
    for call in graph.calls:
        operation = call.operation
        changes = chooser.replaces(operation) or (resizes(operation) and not chooser.excludes(operation))
        if learned and changes and None in call.inputs[0].shape[1:]:
            raise ValueError(
                f"{operation.name} cannot be replaced: the size of its map follows the strides of {learned}. "
                f"Exclude it, replace both in one call, or make {learned} with static_crop=True."
            )
        if isinstance(operation, DiffStride):
            learned = operation.name


def _check_shared(graph: Graph, pairs: Sequence[Pair]) -> None:
    """Raises ValueError if a layer is called twice, and must take its size from another map only once."""
    paired = {
        id(pair.call): pair.call.operation
        for pair in pairs
        if isinstance(pair.call.operation, keras.layers.Conv2DTranspose)
    }
    for call in graph.calls:
        if id(call) not in paired and any(call.operation is operation for operation in paired.values()):
            raise ValueError(
                f"Layer {call.operation.name} is called several times, and only once on a map that changes its size. "
                "Exclude it, or use two layers."
            )
