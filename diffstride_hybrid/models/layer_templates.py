"""How a config holds layers of a user's own kind: a template of the layer in place of the factory that made it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from diffstride_hybrid.common.arguments import validated_strides

LayerFactory = Callable[..., keras.layers.Layer]
"""Makes a layer from keyword arguments: a layer class, or a function."""


def layer_template(layer: keras.layers.Layer | None, **given: Any) -> dict[str, Any] | None:
    """Describes how to make layers like a given one, in a form that a config can hold.

    Args:
        layer: the layer. None if there is none.
        **given: the arguments that its factory was given, beside 'name'. `layer_factory` gets them again when it makes
            a layer, so they are left out, except those to which the factory gave values of its own.

    Returns:
        The argument of `layer_factory`, or None if there is no layer.
    """
    if layer is None:
        return None
    saved = keras.saving.serialize_keras_object(layer)
    config = {
        name: value
        for name, value in saved["config"].items()
        if name != "name" and not (name in given and _is_as_given(layer, name, value, given[name]))
    }
    return {**{k: saved[k] for k in ("module", "class_name", "registered_name")}, "config": config}


def _is_as_given(layer: keras.layers.Layer, name: str, value: Any, given: Any) -> bool:
    """Whether a layer's config holds the value that its factory was given."""
    if name == "dtype":
        return layer.dtype_policy == given
    if name == "strides":
        return value is not None and validated_strides(value) == validated_strides(given)
    return value == given


def layer_factory(source: LayerFactory | dict[str, Any]) -> LayerFactory:
    """Turns an argument such as `pooling_cls` into a function that makes layers.

    Args:
        source: a layer class, a function that makes a layer, or what `layer_template` has returned.

    Returns:
        A function that takes keyword arguments and returns a new layer.

    Raises:
        TypeError: the argument is something else.
    """
    if callable(source):
        return source
    if not isinstance(source, dict) or not isinstance(source.get("config"), dict) or "class_name" not in source:
        raise TypeError(
            "pooling_cls, head_pooling_cls and normalization_cls must be layer classes or functions that make a layer; "
            f"got {source!r}."
        )

    def create(**arguments: Any) -> keras.layers.Layer:
        return keras.saving.deserialize_keras_object({**source, "config": {**arguments, **source["config"]}})

    return create
