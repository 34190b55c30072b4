"""Finds the layers of a Keras model that downsample, and among them those that a user wants to replace."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from diffstride_hybrid.model_tools.inspection import leaf_layers

Selection = str | Sequence[str] | Callable[[keras.layers.Layer], bool]
"""Layers given by a name, by several names, or by a function that returns whether a layer is meant."""

POOLINGS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
"""Layers that a pooling can replace as they are."""

CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
"""Layers that a pooling can replace when the same convolution at stride 1 runs before it."""


class Chooser:
    """Tells which layers are to be replaced.

    Args:
        include: the layers to replace, of those that downsample. All of them if None.
        exclude: the layers to keep. No layer if None.

    Raises:
        TypeError: a selection is not a name, names or a function of a layer.
    """

    def __init__(self, include: Selection | None, exclude: Selection | None):
        self._selections = {"include": include, "exclude": exclude}
        self._include = _predicate("include", include, default=True)
        self._exclude = _predicate("exclude", exclude, default=False)

    def replaces(self, layer: Any) -> bool:
        """Whether a layer downsamples and is chosen. A layer of a class derived from those of Keras never is.

        Args:
            layer: a layer, or an operation that is not a layer.

        Returns:
            Whether to replace it.
        """
        if type(layer) not in (*POOLINGS, *CONVOLUTIONS) or max(layer.strides) == 1:
            return False
        return self._include(layer) and not self._exclude(layer)

    def excludes(self, layer: Any) -> bool:
        """Whether a layer stays as it is, whatever it does.

        Args:
            layer: a layer, or an operation that is not a layer.

        Returns:
            Whether `exclude` selects it. An operation that is not a layer cannot be selected.
        """
        return isinstance(layer, keras.layers.Layer) and self._exclude(layer)

    def check(self, model: keras.Model) -> None:
        """Checks that a model has the layers that are chosen by name, and a layer to replace.

        Args:
            model: a built functional or Sequential model.

        Raises:
            ValueError: the model has no layer of a given name, or nothing in it is to be replaced.
        """
        known = {layer.name for layer in leaf_layers(model)}
        for argument, selection in self._selections.items():
            names = [selection] if isinstance(selection, str) else selection
            unknown = [] if names is None or callable(names) else [name for name in names if name not in known]
            if unknown:
                raise ValueError(f"{model.name} has no layer {unknown[0]}, which {argument} selects.")
        if not any(map(self.replaces, _graph_layers(model))):
            kept = keeping_strides(model)
            raise ValueError(
                f"{model.name} has no layer to replace: no pooling or convolution with strides is selected."
                + (f" These keep theirs: {', '.join(kept)}." if kept else "")
            )


def keeping_strides(model: keras.Model, poolings: Sequence[keras.layers.Layer] = ()) -> list[str]:
    """Lists the Keras layers of a model, at any depth, that downsample.

    Args:
        model: a built model.
        poolings: layers to leave out.

    Returns:
        The paths of the layers.
    """
    layers = [layer for layer in leaf_layers(model) if isinstance(layer, (*POOLINGS, *CONVOLUTIONS))]
    return [
        layer.path or layer.name
        for layer in layers
        if max(layer.strides) > 1 and not any(layer is each for each in poolings)
    ]


def is_padding(operation: Any) -> bool:
    """Whether a layer or operation of a model's graph pads maps: `ZeroPadding2D` or `keras.ops.pad`.

    Args:
        operation: a layer, or an operation that is not a layer.
    """
    return isinstance(operation, keras.layers.ZeroPadding2D) or _is_function(operation, "Pad")


def is_resizing(operation: Any) -> bool:
    """Whether a layer or operation gives maps of a size of its own: `Resizing` or `keras.ops.image.resize`.

    Args:
        operation: a layer, or an operation that is not a layer.
    """
    return isinstance(operation, keras.layers.Resizing) or _is_function(operation, "Resize")


def resizes(operation: Any) -> bool:
    """Whether a layer or operation enlarges maps by a fixed factor, or gives maps of a size of its own.

    Args:
        operation: a layer, or an operation that is not a layer.

    Returns:
        Whether it does. A layer of a class derived from those of Keras never does.
    """
    if type(operation) is keras.layers.UpSampling2D:
        return max(operation.size) > 1
    if type(operation) is keras.layers.Conv2DTranspose:
        return max(operation.strides) > 1
    return type(operation) is keras.layers.Resizing or _is_function(operation, "Resize")


def flattens(operation: Any) -> bool:
    """Whether a layer or operation lines up the positions of a map: what follows needs maps of one size.

    Args:
        operation: a layer, or an operation that is not a layer.
    """
    return isinstance(operation, (keras.layers.Flatten, keras.layers.Reshape)) or _is_function(operation, "Reshape")


def loses_size(operation: Any) -> bool:
    """Whether the size of a layer's or operation's result says nothing about the size of its input.

    Args:
        operation: a layer, or an operation that is not a layer.
    """
    pools = isinstance(operation, (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D))
    return pools or flattens(operation)


def _is_function(operation: Any, name: str) -> bool:
    """Whether an operation is what a function of `keras.ops` leaves in a graph.

    Keras exports the function, such as `keras.ops.pad`, and not the class of the operation, such as `Pad`.
    """
    kind = type(operation)
    return kind.__name__ == name and kind.__module__.startswith("keras.")


def _graph_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers in the graphs of a model and of models nested in it, without layers that other layers call."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from _graph_layers(layer)


def _predicate(name: str, selection: Selection | None, default: bool) -> Callable[[keras.layers.Layer], bool]:
    if selection is None:
        return lambda layer: default
    if callable(selection):
        return selection
    names = [selection] if isinstance(selection, str) else list(selection)
    if not all(isinstance(entry, str) for entry in names):
        raise TypeError(f"{name} must be a name, names or a function of a layer, got {selection!r}.")
    return lambda layer: layer.name in names
