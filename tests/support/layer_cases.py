"""The layers that every contract test walks, and models around them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest

from diffstride_hybrid import DiffStride, FixedSpectralPooling, SpatialPooling, SpectralPooling, SpectralResizing

POLICIES = ("float32", "float64", "mixed_float16", "mixed_bfloat16")
SHAPE = (2, 12, 14, 3)


class Case(NamedTuple):
    cls: type[keras.layers.Layer]
    arguments: dict[str, Any]
    pooled: tuple[int, int]
    dynamic: bool = False

    def layer(self, **kwargs: Any) -> keras.layers.Layer:
        return self.cls(**self.arguments, **kwargs)


CASES = {
    "DiffStride": Case(DiffStride, {"strides": (2.5, 1.5)}, (14 - 2, 14), dynamic=True),
    "DiffStride ramp of 2": Case(DiffStride, {"strides": (2.5, 3.0), "smoothness_factor": 2}, (10, 10), dynamic=True),
    "DiffStride fft": Case(DiffStride, {"strides": 3, "smoothness_factor": 1, "method": "fft"}, (6, 8), dynamic=True),
    "DiffStride symmetric": Case(
        DiffStride, {"strides": 3, "smoothness_factor": 1, "mask": "symmetric"}, (5, 7), dynamic=True
    ),
    "DiffStride shared": Case(DiffStride, {"strides": 3.0, "shared_stride": True}, (12, 14), dynamic=True),
    "DiffStride fixed": Case(
        DiffStride, {"strides": (2.5, 3.0), "smoothness_factor": 2, "trainable": False}, (10, 10), dynamic=True
    ),
    "DiffStride uncropped": Case(DiffStride, {"strides": (2.5, 3.0), "cropping": False, "norm": "forward"}, (12, 14)),
    "DiffStride static": Case(
        DiffStride, {"strides": (2.5, 3.0), "smoothness_factor": 2, "static_crop": True, "norm": "ortho"}, (10, 10)
    ),
    "DiffStride static symmetric": Case(
        DiffStride, {"strides": 3, "smoothness_factor": 1, "static_crop": True, "mask": "symmetric"}, (5, 7)
    ),
    "FixedSpectralPooling": Case(FixedSpectralPooling, {"strides": (1.5, 2.5)}, (8, 5)),
    "FixedSpectralPooling fft": Case(FixedSpectralPooling, {"method": "fft", "norm": "ortho"}, (6, 7)),
    "SpectralPooling": Case(SpectralPooling, {"strides": (1.5, 2.5), "norm": "forward"}, (8, 5)),
    "SpectralPooling fft": Case(SpectralPooling, {"output_size": (7, 6), "method": "fft"}, (7, 6)),
    "SpectralResizing": Case(SpectralResizing, {"scale": (1.5, 0.5)}, (18, 7)),
    "SpectralResizing fft": Case(SpectralResizing, {"output_size": (9, 20), "method": "fft", "norm": "ortho"}, (9, 20)),
    "SpatialPooling": Case(SpatialPooling, {"pool_size": (3, 2), "strides": (2, 3)}, (6, 5)),
    "SpatialPooling fractional": Case(SpatialPooling, {"strides": (1.5, 2.5)}, (8, 6)),
}

EVERY_ARGUMENT = {
    DiffStride: {
        "strides": (3.5, 3.5),
        "smoothness_factor": 1.5,
        "cropping": False,
        "trainable": False,
        "shared_stride": True,
        "lower_limit_stride": 1.25,
        "upper_limit_stride": 5.5,
        "data_format": "channels_first",
        "mask": "symmetric",
        "norm": "ortho",
        "method": "fft",
        "static_crop": True,
    },
    FixedSpectralPooling: {
        "strides": (1.5, 2.5),
        "data_format": "channels_first",
        "norm": "ortho",
        "method": "fft",
    },
    SpectralPooling: {
        "strides": (1.5, 2.5),
        "output_size": (5, 4),
        "data_format": "channels_first",
        "norm": "ortho",
        "method": "fft",
    },
    SpectralResizing: {
        "output_size": (5, 30),
        "data_format": "channels_first",
        "norm": "ortho",
        "method": "fft",
    },
    SpatialPooling: {
        "pool_size": (3, 2),
        "strides": (3, 1),
        "padding": "valid",
        "data_format": "channels_first",
    },
}

NEEDED = {SpectralResizing: {"scale": 0.5}}
"""What a layer needs to be called on one map."""

INSTEAD = {SpectralResizing: {"output_size": {"scale": (1.5, 2.5)}}}
"""Arguments that exclude one of `EVERY_ARGUMENT`, by its name."""

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_policy = pytest.mark.parametrize("policy", POLICIES)

every_class = pytest.mark.parametrize("cls", EVERY_ARGUMENT)
every_class_with_strides = pytest.mark.parametrize("cls", [cls for cls in EVERY_ARGUMENT if cls not in NEEDED])


def images(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def in_format(shape: tuple[int | None, ...], data_format: str) -> tuple[int | None, ...]:
    return shape if data_format == "channels_last" else (shape[0], shape[-1], *shape[1:-1])


def model_of(case: Case, **kwargs: Any) -> keras.Sequential:
    """A model around one layer, with strides that training might have left."""
    model = keras.Sequential([keras.Input(SHAPE[1:]), case.layer(**kwargs)])
    for weight in model.weights:
        weight.assign(weight.numpy() + np.linspace(0.25, 0.125, weight.shape[0]))
    return model


def result(model: Callable[..., Any], x: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(x)).astype("float64")
