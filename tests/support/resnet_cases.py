"""Small ResNets of every kind."""

from functools import partial
from typing import Any

import keras
import numpy as np
import pytest

from diffstride_hybrid import DiffStride, FixedSpectralPooling, Resnet, SpatialPooling, SpectralPooling, resnet18
from diffstride_hybrid.model_tools.inspection import leaf_layers

POOLINGS: dict[str, Any] = {
    "strided": None,
    "DiffStride": DiffStride,
    "DiffStride tuned": partial(DiffStride, smoothness_factor=2.0, mask="symmetric", norm="forward"),
    "DiffStride static": partial(DiffStride, static_crop=True, lower_limit_stride=1.2, shared_stride=True),
    "FixedSpectralPooling": FixedSpectralPooling,
    "SpectralPooling": partial(SpectralPooling, norm="ortho", method="fft"),
    "SpatialPooling": partial(SpatialPooling, pool_size=2),
}
every_pooling = pytest.mark.parametrize("pooling_cls", POOLINGS.values(), ids=POOLINGS.keys())


def images(size: tuple[int, int] = (32, 32), batch: int = 2) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, size=(batch, *size, 3)).astype("float32")


def small(size: tuple[int, int] = (32, 32), **kwargs: Any) -> Resnet:
    model = resnet18(width=4, num_output_classes=10, **kwargs)
    model.build((None, *size, 3))
    return model


def disturb(model: keras.layers.Layer) -> None:
    """Gives every weight but the strides a value that it does not start from, still positive for variances."""
    random = np.random.default_rng(1)
    for weight in model.weights:
        if weight.name != "strides":
            weight.assign(
                weight.numpy() * random.uniform(0.5, 1.5, weight.shape) + random.uniform(0, 0.1, weight.shape)
            )


def policies(model: keras.Model) -> list[str]:
    layers = leaf_layers(model)
    containers = (keras.Model, keras.layers.InputLayer)
    return [layer.dtype_policy.name for layer in layers if not isinstance(layer, containers)]
