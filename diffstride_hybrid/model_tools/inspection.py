"""Looks into a Keras model: its layers at any depth, their strides, their calls."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.layers.diffstride import DiffStride


def run_blank(model: keras.Model, input_shape: Sequence[int]) -> None:
    """Runs one image of zeros through a model with one input."""
    images = tf.zeros([1, *input_shape], model.compute_dtype)
    if getattr(model, "inputs", None) and not isinstance(model, keras.Sequential):
        # A functional model's input may be in a list or a dict.
        images = keras.tree.pack_sequence_as(model.input, [images])
    model(images, training=False)


def diffstride_layers(model: keras.Model) -> list[DiffStride]:
    """The `DiffStride` layers of a model, at any depth, each once, in the order of the model."""
    return [layer for layer in leaf_layers(model) if isinstance(layer, DiffStride)]


def strides_by_path(model: keras.Model) -> dict[str, list[float]]:
    """The strides of each `DiffStride` layer as they stand, by its path."""
    return {layer.path: layer.strides.numpy().tolist() for layer in diffstride_layers(model)}


def leaf_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers of a model, at any depth, each once, in the order of the model."""
    return list(dict.fromkeys(model._flatten_layers(include_self=False, recursive=True)))


@contextlib.contextmanager
def watched_calls(
    layers: Sequence[keras.layers.Layer], report: Callable[[keras.layers.Layer, tf.Tensor, tf.Tensor], None]
) -> Iterator[None]:
    """Has layers report their calls while the context lasts.

    Args:
        layers: whose calls to watch.
        report: called after each call with the layer, its inputs and its outputs.
    """

    def watched(layer: keras.layers.Layer) -> Callable[..., tf.Tensor]:
        call = layer.call

        def reporting(inputs: tf.Tensor, *args: Any, **kwargs: Any) -> tf.Tensor:
            outputs = call(inputs, *args, **kwargs)
            report(layer, inputs, outputs)
            return outputs

        return reporting

    with replaced_calls(layers, watched):
        yield


@contextlib.contextmanager
def replaced_calls(
    layers: Sequence[keras.layers.Layer], replacement: Callable[[keras.layers.Layer], Callable[..., tf.Tensor]]
) -> Iterator[None]:
    """Has layers compute something else while the context lasts.

    Args:
        layers: whose `call` to replace.
        replacement: called with each layer, gives what stands in for its `call`.
    """
    for layer in layers:
        object.__setattr__(layer, "call", replacement(layer))
    try:
        yield
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")
