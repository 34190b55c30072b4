"""Reads checkpoints of the code that was released with DiffStride."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.common.errors import first_line
from diffstride_hybrid.common.files import without_wildcards
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.models.residual import ResidualLayer, ResnetBlock
from diffstride_hybrid.models.resnet import Resnet


def restore(model: Resnet, path: str | os.PathLike[str]) -> None:
    """Loads the weights, strides and moving statistics of a network of the release into a network of this package.

    Args:
        model: a built network of the same architecture. Its variables are overwritten.
        path: the folder of a SavedModel, or the path of a TensorFlow checkpoint without '.index', such as
            `variables/variables` in a SavedModel, or a file that `save_weights` of Keras 2 has written.

    Raises:
        FileNotFoundError: there is no checkpoint at `path`.
        ValueError: the checkpoint holds a network of another architecture, or is damaged.
    """
    try:
        with _prefix(path) as prefix:
            saved = _saved_variables(prefix)
            if saved != len(model.variables):
                raise ValueError(f"it has {saved} variables, and that of the config {len(model.variables)}")
            _as_saved(model).read(prefix).expect_partial().assert_existing_objects_matched()
    except (tf.errors.OpError, IndexError) as error:
        raise ValueError(f"{path} is damaged: {first_line(error)}.") from error
    except (AssertionError, ValueError) as error:
        raise ValueError(f"{path} holds a network of another architecture: {first_line(error)}.") from error
    # The release raises strides to the least that a map allows when it calls a layer, but saves the strides unraised.
    for layer in diffstride_layers(model):
        layer.strides.assign(layer.strides.constraint(layer.strides))


def channels_and_classes(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Reads how many channels the images of a saved network have, and how many classes it tells apart.

    Args:
        path: as for `restore`.

    Returns:
        The input channels of the first convolution, and the outputs of the last dense layer.

    Raises:
        FileNotFoundError: there is no checkpoint at `path`.
        ValueError: the checkpoint is damaged, or holds no network that begins and ends in this way.
    """
    try:
        with _prefix(path) as prefix:
            shapes = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    except (tf.errors.OpError, IndexError) as error:
        raise ValueError(f"{path} is damaged: {first_line(error)}.") from error
    kernels = {
        int(match[1]): shape
        for name, shape in shapes.items()
        if (match := re.fullmatch(_OUTER_KERNEL, name)) is not None
    }
    first, last = (kernels.get(place, ()) for place in (min(kernels, default=0), max(kernels, default=0)))
    if len(first) != 4 or len(last) != 2:
        raise ValueError(f"{path} holds a network of another architecture: it is no ResNet of the release.")
    return first[2], last[1]


_OUTER_KERNEL = r"layer_with_weights-(\d+)/kernel/\.ATTRIBUTES/VARIABLE_VALUE"


def _saved_variables(prefix: str) -> int:
    """The number of variables of the network in a checkpoint, without the variables of the optimizer and of metrics."""
    others = ("optimizer/", "keras_api/", "save_counter/", "_CHECKPOINTABLE_OBJECT_GRAPH")
    names = tf.train.load_checkpoint(prefix).get_variable_to_shape_map()
    return sum(not name.startswith(others) and ".OPTIMIZER_SLOT" not in name for name in names)


@contextlib.contextmanager
def _prefix(path: str | os.PathLike[str]) -> Iterator[str]:
    for prefix in (pathlib.Path(path), pathlib.Path(path) / "variables" / "variables"):
        if prefix.with_name(f"{prefix.name}.index").is_file():
            with without_wildcards(prefix.parent) as folder:
                yield str(folder / prefix.name)
            return
    raise FileNotFoundError(
        f"No TensorFlow checkpoint {path}: give the folder of a SavedModel, or a checkpoint's path without '.index'."
    )


_NAMES_IN_RELEASE = {
    "conv_1": "_strided_conv",
    "pooling": "_pooling",
    "conv_2": "_unstrided_conv",
    "shortcut": "_shortcut_conv",
}
"""Attributes of the residual layer in the released code, by the names in `ResidualLayer.parts`."""


def _as_saved(model: Resnet) -> tf.train.Checkpoint:
    """The variables of a network, under the names of the objects that hold them in the released code."""
    with_weights = [layer for layer in model.layers if layer.weights]
    return _node({f"layer_with_weights-{i}": _layer(layer) for i, layer in enumerate(with_weights)})


def _layer(layer: keras.layers.Layer) -> tf.train.Checkpoint:
    if isinstance(layer, ResnetBlock):
        return _node({f"layer_with_weights-{i}": _layer(inner) for i, inner in enumerate(layer.layers)})
    if not isinstance(layer, ResidualLayer):
        return _node({variable.name: variable.value for variable in layer.weights})
    parts = layer.parts()
    nodes: dict[str, Any] = {
        theirs: _layer(parts[ours])
        for ours, theirs in _NAMES_IN_RELEASE.items()
        if ours in parts and parts[ours].weights
    }
    nodes["_bns"] = [_layer(parts["norm_1"]), _layer(parts["norm_2"])]
    return _node(nodes)


def _node(children: dict[str, Any]) -> tf.train.Checkpoint:
    return tf.train.Checkpoint(**children)
