"""What a saved residual network says of its layers beyond its arguments: which are frozen, and which are others."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import keras


def with_frozen_layers(config: dict[str, Any], layer: keras.layers.Layer) -> dict[str, Any]:
    """Adds to the config of a network, or of a part of one, which of its layers are not trainable.

    Args:
        config: the arguments of the layer.
        layer: a `Resnet`, a `ResnetBlock` or a `ResidualLayer`.

    Returns:
        The config, with the names of these layers in 'frozen' if there are any.
    """
    frozen = [path for path, each in _with_paths(layer) if not each.trainable]
    return {**config, "frozen": frozen} if frozen else config


def freeze_layers(layer: keras.layers.Layer, frozen: Sequence[str]) -> None:
    """Gives the layers of a network the flags that `with_frozen_layers` has noted.

    Args:
        layer: as above.
        frozen: the names. Every other layer is trainable.
    """
    for path, each in _with_paths(layer):
        if each.trainable == (path in frozen):  # To set a flag sets those of all layers inside too.
            each.trainable = path not in frozen


def with_other_layers(config: dict[str, Any], model: keras.Sequential, made: str | None) -> dict[str, Any]:
    """Adds the layers of a network to its config, as `keras.Sequential` saves them, if the arguments do not tell them.

    Args:
        config: the arguments of the network.
        model: the network.
        made: what `description` returned for the layers that the arguments make. None if they would make others now.

    Returns:
        The config, with the layers in 'layers' if they are needed.
    """
    if made == description(model.layers):
        return config
    saved = [keras.saving.serialize_keras_object(layer) for layer in model.layers]
    # The network builds its layers: those that are built before it name their weights without it.
    return {**config, "layers": [{k: v for k, v in layer.items() if k != "build_config"} for layer in saved]}


def model_of(cls: type[keras.Sequential], config: Mapping[str, Any]) -> Any:
    """Makes a network from its config.

    Args:
        cls: the class of the network.
        config: its arguments, and what `with_frozen_layers` and `with_other_layers` have added.

    Returns:
        The network.
    """
    arguments = {name: value for name, value in config.items() if name not in ("frozen", "layers")}
    model = cls(**arguments)
    if "layers" in config:
        model._layers.clear()  # `pop` cannot take the last one.
        for layer in config["layers"]:
            model.add(keras.saving.deserialize_keras_object(layer))
    if "frozen" in config:
        freeze_layers(model, config["frozen"])
    return model


def description(layers: Iterable[keras.layers.Layer]) -> str:
    """Describes layers in a form that tells whether they have become others. Flags of training are left out.

    Args:
        layers: whose configs can be saved.
    """
    return json.dumps([without(_NOT_DESCRIBED, keras.saving.serialize_keras_object(layer)) for layer in layers])


def are_alike(templates: Iterable[Any]) -> bool:
    """Tells whether one template can stand for all.

    Args:
        templates: of `layer_template`. Flags of training do not count.
    """
    first, *others = [without(_NOT_DESCRIBED, template) for template in templates if template is not None] or [None]
    return all(other == first for other in others)


def without(names: Sequence[str], config: Any) -> Any:
    """Takes entries out of a config, at any depth.

    Args:
        names: of the entries.
        config: dictionaries and lists of values.
    """
    if isinstance(config, Mapping):
        return {k: without(names, v) for k, v in config.items() if k not in names}
    return [without(names, each) for each in config] if isinstance(config, (list, tuple)) else config


_NOT_DESCRIBED = ("trainable", "frozen", "build_config", "shared_object_id")
"""What a saved layer may have got since it was made, though it is the same."""


def _with_paths(layer: keras.layers.Layer, path: str = "") -> Iterator[tuple[str, keras.layers.Layer]]:
    """The layer itself by the given path, then the layers inside."""
    yield path, layer
    if hasattr(layer, "parts"):  # A factory may name its layer as it likes.
        inside = layer.parts().items()
    else:
        inside = ((each.name, each) for each in getattr(layer, "layers", ()))
    for name, each in inside:
        yield from _with_paths(each, f"{path}/{name}".lstrip("/"))
