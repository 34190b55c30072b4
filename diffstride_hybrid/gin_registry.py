"""Every name that a gin file can bind, registered in one place so that no other module needs gin.

The names are those of the code released with DiffStride. Importing this module registers them.
"""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from typing import Any

import gin
import keras
from absl import logging

from diffstride_hybrid import command_line, data, pooling, pooling_1d, resnet, training

# What ties the parts together, so that a config of the release, which binds less, runs as it is.
_DEFAULT_BINDINGS = """
train.train.load_data_fn = @data.load_datasets
train.train.loss_cls = @tf.keras.losses.CategoricalCrossentropy
resnet.resnet18.resnet_cls = @resnet.Resnet
resnet.resnet34.resnet_cls = @resnet.Resnet
resnet.resnet56.resnet_cls = @resnet.Resnet
resnet.Resnet.normalization_cls = @resnet.batch_norm
"""


_PARAMETERS: dict[str, list[str]] = {}


def _register(target: Callable[..., Any], module: str, also: tuple[str, ...] = ()) -> Callable[..., Any]:
    """Makes a function or class configurable by the parameters that its signature names, and by no others."""
    parameters = inspect.signature(target).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = list(dict.fromkeys([*named, *also]))
    _PARAMETERS[f"{module}.{target.__name__}"] = known
    return gin.external_configurable(target, module=module, allowlist=known)


def _register_all(namespace: Any, base: type, module: str) -> None:
    for name, member in vars(namespace).items():
        if inspect.isclass(member) and issubclass(member, base) and member is not base and not name.startswith("_"):
            _register(member, module)


train = _register(training.train, "train")
load_datasets = _register(data.load_datasets, "data")
_register(data.augment, "data")

_OF_LAYERS = ("dtype",)
for _layer in (
    pooling.DiffStride,
    pooling.FixedSpectralPooling,
    pooling.SpectralPooling,
    pooling.SpatialPooling,
    pooling_1d.DiffStride1D,
    pooling_1d.SpectralPooling1D,
):
    _register(_layer, "pooling", also=_OF_LAYERS)

_register(resnet.Resnet, "resnet")
_register(resnet.batch_norm, "resnet")
_OF_RESNET = tuple(inspect.signature(resnet.Resnet).parameters)
for _model in (resnet.resnet18, resnet.resnet34, resnet.resnet56):
    _register(_model, "resnet", also=_OF_RESNET)

_register_all(keras.optimizers, keras.optimizers.Optimizer, "tf.keras.optimizers")
_register_all(
    keras.optimizers.schedules, keras.optimizers.schedules.LearningRateSchedule, "tf.keras.optimizers.schedules"
)
_register_all(keras.losses, keras.losses.Loss, "tf.keras.losses")


def parse(files: list[str], bindings: list[str]) -> None:
    """Reads gin files, then single bindings; the later of two wins.

    A file may include files of its own folder, shipped files by their names, and files by paths from the current
    folder, which is how they are looked for one after the other.

    Args:
        files: paths of gin files.
        bindings: such as `train.train.num_epochs = 3`.

    Raises:
        ValueError: a name or parameter does not exist, or a file is not UTF-8 text.
        SyntaxError: a file or binding is not gin.
        OSError: a file cannot be read.
    """
    gin.clear_config()
    gin.parse_config(_DEFAULT_BINDINGS)
    search_paths = gin.config._LOCATION_PREFIXES
    search_paths_before = list(search_paths)
    files = [os.path.abspath(file) for file in files]
    search_paths[:] = [*map(os.path.dirname, files), str(command_line.shipped_configs()), os.curdir]
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)  # Gin logs an error for every folder where an included file is not.
    try:
        gin.parse_config_files_and_bindings(files, bindings)
    except UnicodeDecodeError as error:
        raise ValueError(f"{' or '.join(files)}, or what it includes, is not UTF-8 text: {error}.") from error
    except ValueError as error:
        unknown = re.search(r"Configurable '(\S+)' doesn't include kwarg '(\w+)' in its allowlist", str(error))
        if unknown is None:
            raise
        name, parameter = unknown.groups()
        known = next(known for full, known in _PARAMETERS.items() if f".{full}".endswith(f".{name}"))
        raise ValueError(f"{name} has no parameter {parameter!r}; it has {', '.join(known)}.") from error
    finally:
        logging.set_verbosity(verbosity)
        search_paths[:] = search_paths_before


def bound_model() -> tuple[keras.Model, tuple[int, int, int]]:
    """The network that is bound, built for the data set that is bound, which need not be here.

    Returns:
        The network, and (height, width, channels) of an image.
    """
    image_shape, num_classes = data.shapes(**gin.get_bindings("data.load_datasets"))
    model = gin.get_bindings("train.train")["model_cls"](num_output_classes=num_classes)
    model.build((None, *image_shape))
    return model, image_shape


def unread_bindings() -> list[str]:
    """Bindings that nothing has asked for so far, such as those of a layer that is not in the model."""
    defaults = {line.split(" = ")[0] for line in _DEFAULT_BINDINGS.strip().splitlines()}
    unread = []
    for (scope, selector), parameters in gin.config._CONFIG.items():
        read = gin.config._OPERATIVE_CONFIG.get((scope, selector), {})
        name = f"{scope}/{selector}" if scope else selector
        unread += [f"{name}.{parameter}" for parameter in parameters if parameter not in read]
    return [binding for binding in unread if binding not in defaults]
