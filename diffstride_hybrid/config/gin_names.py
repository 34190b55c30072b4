"""Every name that a gin file can bind, registered in one place so that no other module needs gin.

The names are those of the code released with DiffStride. Importing this module registers them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import gin
import keras

from diffstride_hybrid.data import loading
from diffstride_hybrid.data.augmentation import augment
from diffstride_hybrid.data.loading import shapes
from diffstride_hybrid.layers.diffstride import DiffStride
from diffstride_hybrid.layers.pooling_1d import DiffStride1D, SpectralPooling1D
from diffstride_hybrid.layers.spatial_pooling import SpatialPooling
from diffstride_hybrid.layers.spectral_pooling import FixedSpectralPooling, SpectralPooling
from diffstride_hybrid.models.residual import batch_norm
from diffstride_hybrid.models.resnet import Resnet, resnet18, resnet34, resnet56
from diffstride_hybrid.training import run

PARAMETERS: dict[str, list[str]] = {}


def _register(target: Callable[..., Any], module: str, also: tuple[str, ...] = ()) -> Callable[..., Any]:
    """Makes a function or class configurable by the parameters that its signature names, and by no others."""
    parameters = inspect.signature(target).parameters.values()
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = list(dict.fromkeys([*named, *also]))
    PARAMETERS[f"{module}.{target.__name__}"] = known
    return gin.external_configurable(target, module=module, allowlist=known)


def _register_all(namespace: Any, base: type, module: str) -> None:
    for name, member in vars(namespace).items():
        if inspect.isclass(member) and issubclass(member, base) and member is not base and not name.startswith("_"):
            _register(member, module)


train = _register(run.train, "train")

load_datasets = _register(loading.load_datasets, "data")

_register(augment, "data")

_OF_LAYERS = ("dtype",)

for _layer in (
    DiffStride,
    FixedSpectralPooling,
    SpectralPooling,
    SpatialPooling,
    DiffStride1D,
    SpectralPooling1D,
):
    _register(_layer, "pooling", also=_OF_LAYERS)

_register(Resnet, "resnet")

_register(batch_norm, "resnet")

_OF_RESNET = tuple(inspect.signature(Resnet).parameters)

for _model in (resnet18, resnet34, resnet56):
    _register(_model, "resnet", also=_OF_RESNET)

_register_all(keras.optimizers, keras.optimizers.Optimizer, "tf.keras.optimizers")

_register_all(
    keras.optimizers.schedules, keras.optimizers.schedules.LearningRateSchedule, "tf.keras.optimizers.schedules"
)

_register_all(keras.losses, keras.losses.Loss, "tf.keras.losses")


def bound_model() -> tuple[keras.Model, tuple[int, int, int]]:
    """The network that is bound, built for the data set that is bound, which need not be here.

    Returns:
        The network, and (height, width, channels) of an image.
    """
    image_shape, num_classes = shapes(**gin.get_bindings("data.load_datasets"))
    model = gin.get_bindings("train.train")["model_cls"](num_output_classes=num_classes)
    model.build((None, *image_shape))
    return model, image_shape
