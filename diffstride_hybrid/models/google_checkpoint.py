"""Reading what the code released with DiffStride has saved."""

from __future__ import annotations

import os
import pathlib
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.models.residual import ResidualLayer, ResnetBlock
from diffstride_hybrid.models.resnet import Resnet


def restore(model: Resnet, path: str | os.PathLike[str]) -> None:
    """Gives a network the weights, strides and statistics of a network of the release.

    Args:
        model: a built network of the same architecture.
        path: a SavedModel's folder, or the path of a TensorFlow checkpoint, such as a SavedModel's
            `variables/variables` or what Keras 2 writes in `save_weights`.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: it is of a network of another architecture, or damaged.
    """
    prefix = _prefix(path)
    try:
        saved = _saved_variables(prefix)
        if saved != len(model.variables):
            raise ValueError(f"it has {saved} variables, and that of the config {len(model.variables)}")
        _as_saved(model).read(prefix).expect_partial().assert_existing_objects_matched()
    except (tf.errors.OpError, IndexError) as error:
        raise ValueError(f"{path} is damaged: {_first_line(error)}.") from error
    except (AssertionError, ValueError) as error:
        raise ValueError(f"{path} holds a network of another architecture: {_first_line(error)}.") from error
    # The release raises strides to the least that a map allows when it calls a layer, and saves them from before that.
    for layer in diffstride_layers(model):
        layer.strides.assign(layer.strides.constraint(layer.strides))


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]


def _saved_variables(prefix: str) -> int:
    """How many variables of the network a checkpoint has, without those of the optimiser and of metrics."""
    others = ("optimizer/", "keras_api/", "save_counter/", "_CHECKPOINTABLE_OBJECT_GRAPH")
    names = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    return sum(not name.startswith(others) and ".OPTIMIZER_SLOT" not in name for name in names)


def _prefix(path: str | os.PathLike[str]) -> str:
    for prefix in (pathlib.Path(path), pathlib.Path(path) / "variables" / "variables"):
        if prefix.with_name(f"{prefix.name}.index").is_file():
            return str(prefix)
    raise FileNotFoundError(
        f"No TensorFlow checkpoint {path}: give the folder of a SavedModel, or a checkpoint's path without '.index'."
    )


def _as_saved(model: Resnet) -> tf.train.Checkpoint:
    """The variables of a network under the names that they have in the release's objects."""
    with_weights = [layer for layer in model.layers if layer.weights]
    return _node({f"layer_with_weights-{i}": _layer(layer) for i, layer in enumerate(with_weights)})


def _layer(layer: keras.layers.Layer) -> tf.train.Checkpoint:
    if isinstance(layer, ResnetBlock):
        return _node({f"layer_with_weights-{i}": _layer(inner) for i, inner in enumerate(layer.layers)})
    if not isinstance(layer, ResidualLayer):
        return _node({variable.name: variable.value for variable in layer.weights})
    parts = {
        "_strided_conv": layer._strided_conv,
        "_pooling": layer._pooling,
        "_unstrided_conv": layer._unstrided_conv,
        "_shortcut_conv": layer._shortcut_conv,
    }
    nodes: dict[str, Any] = {name: _layer(part) for name, part in parts.items() if part is not None and part.weights}
    nodes["_bns"] = [_layer(norm) for norm in layer._norms]
    return _node(nodes)


def _node(children: dict[str, Any]) -> tf.train.Checkpoint:
    return tf.train.Checkpoint(**children)
