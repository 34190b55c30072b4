"""Looks into a Keras model: its layers at any depth, their strides, their calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

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
    # Keras lists the layers of a layer, as opposed to those of a model, only by this private method.
    return list(dict.fromkeys(model._flatten_layers(include_self=False, recursive=True)))


def diffstride_layers(model: keras.Model) -> list[DiffStride]:
    """Lists the `DiffStride` and `DiffStride1D` layers of a model, at any depth.

    Args:
        model: the model to search.

    Returns:
        Each layer once, in the order of the model.
    """
    return [layer for layer in leaf_layers(model) if isinstance(layer, DiffStride)]


def strides_by_path(model: keras.Model) -> dict[str, list[float]]:
    """Reads the current strides of every `DiffStride` layer of a model.

    Args:
        model: a built model.

    Returns:
        (vertical, horizontal) strides, or one stride where a layer has one, by the path of the layer.
    """
    return {layer.path: layer.strides.numpy().tolist() for layer in diffstride_layers(model)}


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


def run_blank(model: keras.Model, input_shape: Sequence[int]) -> None:
    """Runs one image of zeros through a model, and drops the result.

    Args:
        model: a model with one input.
        input_shape: (height, width, channels) of the image, or (time, channels) of a signal.
    """
    images = tf.zeros([1, *input_shape], model.compute_dtype)
    if getattr(model, "inputs", None) and not isinstance(model, keras.Sequential):
        # A functional model may have its input in a list or a dict.
        images = keras.tree.pack_sequence_as(model.input, [images])
    model(images, training=False)


@contextlib.contextmanager
def watched_calls(
    layers: Sequence[keras.layers.Layer], report: Callable[[keras.layers.Layer, Any, Any], None]
) -> Iterator[None]:
    """Reports every call of some layers for as long as the context lasts.

    Args:
        layers: the layers to watch.
        report: called after each call of a layer with the layer, its first argument and its output.

    Yields:
        Nothing.
    """

    def watched(layer: keras.layers.Layer) -> Callable[..., Any]:
        call = layer.call

        def reporting(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            report(layer, first_argument(args, kwargs), outputs)
            return outputs

        return reporting

    with replaced_calls(layers, watched):
        yield


@contextlib.contextmanager
def replaced_calls(
    layers: Sequence[keras.layers.Layer], replacement: Callable[[keras.layers.Layer], Callable[..., Any]]
) -> Iterator[None]:
    """Replaces the method `call` of some layers for as long as the context lasts.

    Args:
        layers: the layers to change.
        replacement: called once with each layer; returns the function that replaces the layer's `call`.

    Yields:
        Nothing.
    """
    for layer in layers:
        object.__setattr__(layer, "call", replacement(layer))
    try:
        yield
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")


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
