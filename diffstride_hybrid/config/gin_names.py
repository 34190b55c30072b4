"""Every name that a gin file can bind, registered here so that no other room needs gin.

The names are those of the code released with DiffStride. Importing this module registers them.
"""

from __future__ import annotations

import copy
import inspect
import os
import re
from collections.abc import Callable
from typing import Any

import gin
import keras

from diffstride_hybrid.data import loading
from diffstride_hybrid.data.augmentation import augment
from diffstride_hybrid.layers.diffstride import DiffStride
from diffstride_hybrid.layers.pooling_1d import DiffStride1D, SpectralPooling1D
from diffstride_hybrid.layers.spatial_pooling import SpatialPooling
from diffstride_hybrid.layers.spectral_pooling import FixedSpectralPooling, SpectralPooling
from diffstride_hybrid.layers.spectral_resizing import SpectralResizing, SpectralResizing1D
from diffstride_hybrid.models.residual import batch_norm
from diffstride_hybrid.models.resnet import Resnet, resnet18, resnet34, resnet56
from diffstride_hybrid.training import run

PARAMETERS: dict[str, list[str]] = {}
"""The parameters that can be bound, by the full name of a function or class, such as 'train.train'."""


def _register(module: str, target: Callable[..., Any], also: tuple[str, ...] = ()) -> Callable[..., Any]:
    """Makes the parameters of a function or class bindable.

    Args:
        module: first part of the name in gin files.
        target: the function or class. Its own name is the last part.
        also: parameters that it takes as `**kwargs`.

    Returns:
        The function or class whose unbound parameters gin fills in.
    """
    signature = inspect.signature(target).parameters.values()
    own = [p.name for p in signature if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    parameters = list(dict.fromkeys([*own, *also]))
    PARAMETERS[f"{module}.{target.__name__}"] = parameters
    try:
        return gin.external_configurable(target, module=module, allowlist=parameters)
    except ValueError:
        # A notebook loads modules anew after their files have changed. Only then is the name known already.
        known = gin.get_configurable(f"{module}.{target.__name__}")
        if (known.__module__, known.__qualname__) != (target.__module__, target.__qualname__):
            raise
        with gin.config.interactive_mode():
            return gin.external_configurable(target, module=module, allowlist=parameters)


def _register_subclasses(module: str, namespace: Any, base: type) -> None:
    for name, member in vars(namespace).items():
        if inspect.isclass(member) and issubclass(member, base) and member is not base and not name.startswith("_"):
            _register(module, member)


configured_train = _register("train", run.train)
"""`training.run.train` with the arguments that are bound to 'train.train'."""

configured_load_datasets = _register("data", loading.load_datasets)
"""`data.loading.load_datasets` with the arguments that are bound to 'data.load_datasets'."""

_register("data", augment)

for _layer in (
    *(DiffStride, FixedSpectralPooling, SpectralPooling, SpatialPooling, SpectralResizing),
    *(DiffStride1D, SpectralPooling1D, SpectralResizing1D),
):
    _register("pooling", _layer, also=("dtype",))

_register("resnet", Resnet)
_register("resnet", batch_norm)
for _network in (resnet18, resnet34, resnet56):
    _register("resnet", _network, also=tuple(inspect.signature(Resnet).parameters))

_register_subclasses("tf.keras.optimizers", keras.optimizers, keras.optimizers.Optimizer)
_register_subclasses(
    "tf.keras.optimizers.schedules",
    keras.optimizers.schedules,
    keras.optimizers.schedules.LearningRateSchedule,
)
_register_subclasses("tf.keras.losses", keras.losses, keras.losses.Loss)
_register_subclasses("tf.keras.callbacks", keras.callbacks, keras.callbacks.Callback)


def bound(configurable: str, parameter: str) -> Any:
    """The value that is bound to one parameter of a function or class.

    Of all references that are bound, gin resolves only those in this value: to resolve one may make a callback or read
    a file, which nobody has asked for.

    Args:
        configurable: the name of the function or class, such as 'train.train'.
        parameter: its name.

    Returns:
        The value. None if none is bound.
    """
    # Gin resolves references when they are copied.
    return copy.deepcopy(gin.get_bindings(configurable, resolve_references=False).get(parameter))


def bound_workdir() -> str | None:
    """The folder of a run that is bound to 'train.train.workdir', None if none is bound."""
    workdir = bound("train.train", "workdir")
    return None if workdir is None else os.path.expanduser(workdir)


def bound_shapes() -> tuple[tuple[int, int, int], int]:
    """Tells the shapes of the data set that is bound. The set need not be prepared.

    Returns:
        (height, width, channels) of an image, and the number of classes.

    Raises:
        ValueError: no set has the name that is bound, or the set does not pair images with one label each.
    """
    of_data = gin.get_bindings("data.load_datasets", resolve_references=False)
    needed = [name for name in inspect.signature(loading.shapes).parameters if name in of_data]
    return loading.shapes(**{name: bound("data.load_datasets", name) for name in needed})


def bound_model() -> tuple[keras.Model, tuple[int, int, int]]:
    """Builds the network that is bound, for the data set that is bound. The set need not be prepared.

    Returns:
        The network, and (height, width, channels) of an image.

    Raises:
        ValueError: a parameter of the network or of the data set is out of range.
    """
    image_shape, num_classes = bound_shapes()
    return bound_network(image_shape, num_classes), image_shape


def bound_network(image_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """Builds the network that is bound, for images and classes that need not be those of a data set.

    Args:
        image_shape: (height, width, channels).
        num_classes: how many classes it tells apart.

    Raises:
        ValueError: a parameter of the network is out of range, or no network is bound.
    """
    make = bound("train.train", "model_cls")
    if make is None:
        raise ValueError("train.train.model_cls is not bound: bind a network, such as @resnet.resnet18.")
    model = make(num_output_classes=num_classes)
    model.build((None, *image_shape))
    return model


def bound_statistics(channels: int) -> tuple[str | None, tuple[tuple[float, ...], tuple[float, ...]] | None]:
    """Tells how the images of the data set that is bound are normalized. The set need not be prepared.

    Args:
        channels: of the images that a network takes.

    Returns:
        The name of the set, None if none is bound; and mean and standard deviation of each channel, of images scaled to
        0..1. In place of both there is None if they are not published, or belong to images of other channels.
    """
    name = bound("data.load_datasets", "name")
    # The name of a set of TensorFlow Datasets may end in a config and a version.
    published = loading.STATISTICS.get(re.split("[/:]", os.fspath(name))[0]) if name is not None else None
    return name, published if published is not None and len(published[0]) == channels else None


def bound_image_size() -> tuple[int, int]:
    """(height, width) of the images of the data set that is bound; that of CIFAR, 32 x 32, if none is bound."""
    if bound("data.load_datasets", "name") is not None:
        return bound_shapes()[0][:2]
    size = bound("data.load_datasets", "image_size") or 32
    return size, size
