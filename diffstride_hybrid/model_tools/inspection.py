"""Looks into a Keras model: its layers at any depth, their strides, their calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from diffstride_hybrid.backends import current
from diffstride_hybrid.layers.diffstride import DiffStride


def leaf_layers(model: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Lists the layers inside a model or layer, at any depth.

    Args:
        model: a model, or a layer that holds other layers.

    Returns:
        Each layer once, in the order of the model; a layer that holds others comes before them. The model itself is
        not among them.

    Example:
        >>> inner = keras.Sequential([keras.layers.ReLU(name="relu")], name="inner")
        >>> model = keras.Sequential([keras.layers.Dense(2, name="dense"), inner])
        >>> [layer.name for layer in leaf_layers(model)]
        ['dense', 'inner', 'relu']
    """
    found: dict[keras.layers.Layer, None] = {}

    def add(layer: keras.layers.Layer) -> None:
        # Keras lists the layers of a layer, as opposed to those of a model, only by this private method. If asked for
        # all depths it turns the order within a nested model round.
        for inner in layer._flatten_layers(include_self=False, recursive=False):
            if inner not in found:
                found[inner] = None
                add(inner)

    add(model)
    return list(found)


def diffstride_layers(model: keras.Model) -> list[DiffStride]:
    """Lists the `DiffStride` and `DiffStride1D` layers of a model, at any depth.

    Args:
        model: the model to search.

    Returns:
        Each layer once, in the order of the model.
    """
    return [layer for layer in leaf_layers(model) if isinstance(layer, DiffStride)]


def check_built(layers: Sequence[DiffStride], model: keras.Model) -> None:
    """Makes sure that layers have their strides.

    Args:
        layers: of the model.
        model: for the message.

    Raises:
        ValueError: one is not built.
    """
    if not all(layer.built for layer in layers):
        raise ValueError(f"{model.name} must be built, so that its layers have strides: call it on an image.")


def strides_by_path(model: keras.Model) -> dict[str, list[float]]:
    """Reads the current strides of every `DiffStride` layer of a model.

    Args:
        model: a built model.

    Returns:
        (vertical, horizontal) strides, or one stride if a layer has one, by the path of the layer.

    Raises:
        ValueError: the model is not built.
    """
    layers = diffstride_layers(model)
    check_built(layers, model)
    current.bring_weights_back(model)
    return {layer.path: current.value_of(layer.strides).tolist() for layer in layers}


def short_path(model: keras.Model, path: str) -> str:
    """Takes the model's own name off the path of a layer or variable.

    Args:
        model: the model that owns the layer or variable.
        path: the `path` of the layer or variable, such as 'resnet/block_2/layer_1/pooling'.

    Returns:
        The path within the model, such as 'block_2/layer_1/pooling'. A path that does not begin with the model's name
        comes back unchanged.

    Example:
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="dense")], name="net")
        >>> short_path(model, model.layers[0].kernel.path)
        'dense/kernel'
    """
    return path.removeprefix(f"{model.name}/")


def blank_inputs(model: keras.Model, input_shape: Any = None) -> Any:
    """Makes one example of zeros for each input of a model.

    Args:
        model: a built model.
        input_shape: the shape of the example, without the batch axis; for several inputs a list of shapes, or a
            dictionary by their names. The model's own if None.

    Returns:
        Tensors in the structure in which the model takes them, with a batch of one; of the batch that the model was
        made for if a recurrent layer in it keeps its state. None if some size is not known.

    Raises:
        ValueError: `input_shape` has another number of inputs, or other names, than the model.

    Example:
        >>> inputs = [keras.Input((8, 8, 3)), keras.Input((5,))]
        >>> model = keras.Model(inputs, keras.layers.Dense(1)(inputs[1]))
        >>> [tensor.shape for tensor in blank_inputs(model)]
        [TensorShape([1, 8, 8, 3]), TensorShape([1, 5])]
    """
    specs = list(getattr(model, "inputs", None) or [])
    if input_shape is not None:
        shapes, structure = _shapes_of(input_shape)
    else:
        own = getattr(model, "input_shape", None)
        shapes = [spec.shape[1:] for spec in specs] or ([] if own is None else [own[1:]])
        structure = None
    if not shapes or any(length is None for shape in shapes for length in shape):
        return None
    if specs and len(specs) != len(shapes):
        raise ValueError(f"input_shape must have a shape for each of the {len(specs)} inputs, got {input_shape}.")
    dtypes = [spec.dtype for spec in specs] or [model.compute_dtype] * len(shapes)
    dtypes = [model.compute_dtype if "float" in dtype else dtype for dtype in dtypes]
    if isinstance(structure, dict) and specs:
        if set(structure) != {spec.name for spec in specs}:
            names = ", ".join(spec.name for spec in specs)
            raise ValueError(f"input_shape must have a shape for each of {names}, got {', '.join(structure)}.")
        shapes = [structure[spec.name] for spec in specs]
    keeps_state = specs and any(getattr(layer, "stateful", False) for layer in leaf_layers(model))
    batch = (specs[0].shape[0] or 1) if keeps_state else 1
    blank = [keras.ops.zeros([batch, *shape], dtype) for shape, dtype in zip(shapes, dtypes)]
    if specs and not isinstance(model, keras.Sequential):
        # A functional model may have its inputs in a list or a dictionary.
        return keras.tree.pack_sequence_as(model.input, blank)
    if isinstance(structure, dict):
        return dict(zip(structure, blank))
    return blank if isinstance(structure, list) else blank[0]


def _shapes_of(input_shape: Any) -> tuple[list[Sequence[int]], Any]:
    """The shapes that a user gave, in a list, and as they were given: None if it is a single one."""
    if isinstance(input_shape, Mapping):
        return list(input_shape.values()), dict(input_shape)
    shapes = list(input_shape)
    if shapes and all(isinstance(shape, Iterable) for shape in shapes):
        return shapes, shapes
    return [tuple(shapes)], None


def run_on_blank(model: keras.Model, inputs: Any) -> None:
    """Runs a model for inference, and leaves the states of recurrent layers as they were. Nothing else changes then.

    Args:
        model: a built model.
        inputs: from `blank_inputs`.
    """
    states = keras.tree.flatten([layer.states for layer in leaf_layers(model) if getattr(layer, "stateful", False)])
    before = [(state, np.array(keras.ops.convert_to_numpy(state))) for state in states if state is not None]
    try:
        model(inputs, training=False)
    finally:
        for state, value in before:
            state.assign(value)


@contextlib.contextmanager
def watched_calls(
    layers: Sequence[keras.layers.Layer], report: Callable[[keras.layers.Layer, Any, Any], None]
) -> Iterator[None]:
    """Reports every call of some layers for as long as the context lasts. Compiled functions run as Python meanwhile.

    Args:
        layers: the layers to watch.
        report: called after each call of a layer with the layer, its first argument and its output.

    Yields:
        Nothing.
    """

    def watched(layer: keras.layers.Layer) -> Callable[..., Any]:
        call = running_call(layer)

        def reporting(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            report(layer, first_argument(args, kwargs), outputs)
            return outputs

        return reporting

    with current.uncompiled(), replaced_calls(layers, watched):
        yield


@contextlib.contextmanager
def replaced_calls(
    layers: Sequence[keras.layers.Layer], replacement: Callable[[keras.layers.Layer], Callable[..., Any]]
) -> Iterator[None]:
    """Replaces the method that runs some layers, from `running_call`, for as long as the context lasts.

    Args:
        layers: the layers to change.
        replacement: called once with each layer; returns the function that replaces the layer's method.

    Yields:
        Nothing.
    """
    own: list[tuple[keras.layers.Layer, str, Callable[..., Any] | None]] = []  # An outer context's, not the class's.
    try:
        for layer in layers:
            replaced, method = replacement(layer), _running_method(layer)
            own.append((layer, method, vars(layer).get(method)))
            object.__setattr__(layer, method, replaced)
        yield
    finally:
        for layer, method, call in reversed(own):
            if call is None:
                object.__delattr__(layer, method)
            else:
                object.__setattr__(layer, method, call)


def running_call(layer: keras.layers.Layer) -> Callable[..., Any]:
    """The method that runs if a layer is called: `call`, or `quantized_call` if the layer is quantized.

    Args:
        layer: any layer.
    """
    return getattr(layer, _running_method(layer))


def _running_method(layer: keras.layers.Layer) -> str:
    return "call" if getattr(layer, "quantization_mode", None) is None else "quantized_call"


def first_argument(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Picks the inputs from the arguments of a layer's call, whether they are given by position or by name.

    Args:
        args: the positional arguments of the call.
        kwargs: the named arguments of the call.

    Returns:
        The first positional argument, or else the argument `inputs`, or else the first named one.
    """
    if args:
        return args[0]
    return kwargs["inputs"] if "inputs" in kwargs else next(iter(kwargs.values()))
