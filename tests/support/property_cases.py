"""Strategies of Hypothesis: layers, shapes and dtypes."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from diffstride_hybrid import (
    DiffStride,
    DiffStride1D,
    FixedSpectralPooling,
    SpatialPooling,
    SpectralPooling,
    SpectralPooling1D,
    SpectralResizing,
    SpectralResizing1D,
)

SLOW = pytest.mark.slow

Layer = keras.layers.Layer
Array = np.ndarray | tf.Tensor

LAYERS = (
    *(DiffStride, SpectralPooling, FixedSpectralPooling, SpatialPooling, SpectralResizing),
    *(DiffStride1D, SpectralPooling1D, SpectralResizing1D),
)
FOURIER_LAYERS = tuple(cls for cls in LAYERS if cls is not SpatialPooling)
LEARNED_LAYERS = (DiffStride, DiffStride1D)
RESIZINGS = (SpectralResizing, SpectralResizing1D)

NEEDED = {cls: {"scale": 2.0} for cls in RESIZINGS}
"""What a layer needs to be called on one map."""

TOLERANCES = {"float32": 2e-5, "float64": 1e-11, "mixed_float16": 1e-2, "mixed_bfloat16": 8e-2}
DATA_FORMATS = ("channels_last", "channels_first")
ENGINES = ("fft", "matmul")

every_layer = pytest.mark.parametrize("cls", LAYERS)
every_layer_with_strides = pytest.mark.parametrize("cls", [cls for cls in LAYERS if cls not in RESIZINGS])
every_fourier_layer = pytest.mark.parametrize("cls", FOURIER_LAYERS)

most_layers_slowly = pytest.mark.parametrize(
    "cls", [pytest.param(cls, marks=() if cls in (DiffStride, SpatialPooling) else SLOW) for cls in LAYERS]
)


def axes_of(cls: type[Layer]) -> int:
    return 1 if cls in (DiffStride1D, SpectralPooling1D, SpectralResizing1D) else 2


def in_format(x: Array, data_format: str) -> np.ndarray:
    """A map with its channels last, as `data_format` has them."""
    return np.asarray(x) if data_format == "channels_last" else np.moveaxis(np.asarray(x), -1, 1)


def channels_last(x: Array, data_format: str) -> np.ndarray:
    return np.asarray(x) if data_format == "channels_last" else np.moveaxis(np.asarray(x), 1, -1)


def as_float64(x: Array) -> np.ndarray:
    return tf.cast(x, tf.float64).numpy()


# --- Cases -----------------------------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Case:
    """A layer and what it is to pool.

    Attributes:
        cls: the layer's class.
        arguments: for its construction, but for the data format and the dtype.
        size: of the map, or of the signal.
        batch: how many images.
        channels: how many channels.
        drift: what training has made of a learned stride since the layer was built, as a factor.
        content: what the images show.
        seed: of everything random.
    """

    cls: type[Layer]
    arguments: dict[str, Any]
    size: tuple[int, ...]
    batch: int = 1
    channels: int = 1
    drift: float = 1.0
    content: str = "noise"
    seed: int = 0

    def layer(self, data_format: str = "channels_last", dtype: str = "float64", **changes: Any) -> Layer:
        layer = self.cls(**{**self.arguments, **changes}, data_format=data_format, dtype=dtype)
        layer.build(in_format(np.empty(self.shape), data_format).shape)
        for strides in layer.weights:
            strides.assign(strides.constraint(strides * self.drift))
        return layer

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.batch, *self.size, self.channels)

    def random(self, stream: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, stream))

    def images(self, stream: int = 0) -> np.ndarray:
        """Pixels that every dtype can hold exactly."""
        if self.content == "noise":
            return np.clip(np.round(16 * self.random(stream).normal(size=self.shape)) / 16, -8, 8)
        if self.content == "constant":
            return np.full(self.shape, 2.5)
        if self.content == "zero":
            return np.zeros(self.shape)
        if self.content == "alternating":
            return np.broadcast_to((1.0 - 2.0 * (np.indices(self.size).sum(0) % 2))[None, ..., None], self.shape)
        images = np.zeros(self.shape)
        images[self.place(stream)] = 4.0
        return images

    def place(self, stream: int = 0) -> tuple[int, ...]:
        return tuple(self.random(stream).integers(self.shape))

    def amplitude(self, shape: tuple[int, ...]) -> float:
        """The size that numbers of an output of this shape may have: 8 times the ratio that 'norm' puts on the mean."""
        return 8.0 * self.mean_factor(shape)

    def mean_factor(self, shape: tuple[int, ...]) -> float:
        ratio = np.prod(self.size) / np.prod(shape[1:-1])
        default = "forward" if self.cls in (SpatialPooling, *RESIZINGS) else "backward"
        norm = self.arguments.get("norm", default)
        return {"forward": 1.0, "backward": ratio, "ortho": math.sqrt(ratio)}[norm]


def assert_close(case: Case, actual: Array, expected: Array, tolerance: float = 1e-11, message: str = "") -> None:
    actual, expected = as_float64(actual), as_float64(expected)
    assert actual.shape == expected.shape, message
    atol = tolerance * case.amplitude(expected.shape)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=message)


def spatial_pooling(x: np.ndarray, pool: tuple[int, int], strides: tuple[float, float], padding: str) -> np.ndarray:
    for axis, (width, stride) in enumerate(zip(pool, strides), 1):
        length = x.shape[axis]
        count = max(1, math.ceil((length if padding == "same" else length - width + 1) / stride - 1e-6))
        before = max(0, (count - 1) * int(stride) + width - length) // 2 if padding == "same" else 0
        starts = [math.floor(i * stride + 1e-6) - before for i in range(count)]
        ranges = [range(max(0, start), min(length, start + width)) for start in starts]
        x = np.stack([x.take(taken, axis).mean(axis) for taken in ranges], axis)
    return x


# --- At the limits ---------------------------------------------------------------------------------------------------
EXAMPLES = {
    "DiffStride": Case(DiffStride, {"strides": (2.5, 3.0), "smoothness_factor": 1.5}, (12, 14)),
    "DiffStride symmetric": Case(DiffStride, {"strides": 3, "smoothness_factor": 1, "mask": "symmetric"}, (12, 13)),
    "DiffStride hard": Case(DiffStride, {"strides": 2.2, "smoothness_factor": 0}, (11, 12)),
    "DiffStride large": Case(DiffStride, {"strides": (2.5, 1.5), "norm": "forward"}, (50, 51)),
    "DiffStride static": Case(DiffStride, {"strides": 2.5, "static_crop": True, "norm": "ortho"}, (14, 12)),
    "SpectralPooling": Case(SpectralPooling, {"strides": (1.5, 2.5), "norm": "forward"}, (12, 14)),
    "FixedSpectralPooling": Case(FixedSpectralPooling, {"strides": (1.5, 2.5)}, (12, 13)),
    "SpatialPooling": Case(SpatialPooling, {"pool_size": (3, 2), "strides": 2}, (12, 14)),
    "SpatialPooling fractional": Case(SpatialPooling, {"strides": (1.5, 2.5)}, (12, 14)),
    "DiffStride1D": Case(DiffStride1D, {"strides": 2.5, "smoothness_factor": 2.0}, (21,)),
    "DiffStride1D symmetric": Case(DiffStride1D, {"strides": 2.5, "mask": "symmetric", "norm": "forward"}, (16,)),
    "SpectralPooling1D": Case(SpectralPooling1D, {"strides": 2.5, "norm": "ortho"}, (21,)),
    "SpectralResizing": Case(SpectralResizing, {"scale": (1.5, 0.7)}, (12, 14)),
    "SpectralResizing sized": Case(SpectralResizing, {"output_size": (9, 30), "norm": "ortho"}, (12, 13)),
    "SpectralResizing1D": Case(SpectralResizing1D, {"scale": 2.5, "norm": "backward"}, (20,)),
}
EXAMPLES = {name: dataclasses.replace(case, batch=2, channels=3) for name, case in EXAMPLES.items()}


def with_slow_ones(quick: tuple[str, ...]) -> pytest.MarkDecorator:
    """Every example, of which all but a few are left to the slow tests."""
    examples = [pytest.param(case, id=name, marks=() if name in quick else SLOW) for name, case in EXAMPLES.items()]
    return pytest.mark.parametrize("case", examples)


every_example = with_slow_ones(("DiffStride", "SpatialPooling fractional"))


def layers(case: Case, **changes: Any) -> Iterator[Layer]:
    """The layer with both engines, in both data formats, save for 'fft', which transposes, in channels_last."""
    if case.cls is SpatialPooling:
        yield from (case.layer(data_format, **changes) for data_format in DATA_FORMATS)
        return
    yield case.layer("channels_first", method="fft", **changes)
    yield case.layer("channels_last", method="matmul", **changes)
    yield case.layer("channels_first", method="matmul", **changes)


def call(layer: Callable[[Array], tf.Tensor], x: np.ndarray, data_format: str) -> np.ndarray:
    """What a layer makes of maps with their channels last, in that format and in float64."""
    return channels_last(as_float64(layer(in_format(x, data_format))), data_format)


def input_gradient(layer: Layer, x: tf.Tensor, upstream: Callable[[tf.Tensor], Array]) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
        tape.watch(x)
        outputs = layer(x)
    sources = [x, *(weight.value for weight in layer.trainable_weights)]
    return [outputs, *tape.gradient(outputs, sources, upstream(outputs), unconnected_gradients="zero")]


SPOILT = {(0, 1): np.nan, (1, 0): np.inf, (1, 2): -np.inf}


def spoil(x: np.ndarray) -> np.ndarray:
    """One pixel of some channels of some images is not a number, or not finite."""
    x = np.array(x)
    for (image, channel), value in SPOILT.items():
        x[image, ..., channel].flat[7] = value
    return x


def assert_only_spoilt_channels_differ(case: Case, outputs: np.ndarray, clean: np.ndarray, atol: float = 0.0) -> None:
    spoilt = np.zeros([2, 3], bool)
    spoilt[tuple(np.transpose(list(SPOILT)))] = True
    spoilt = np.broadcast_to(spoilt.reshape(2, *[1] * len(case.size), 3), clean.shape)
    if case.cls is SpatialPooling:
        arguments = {"pool_size": (1, 1), "padding": "same", **case.arguments}
        strides = np.broadcast_to(arguments["strides"], 2)
        pixels = spatial_pooling(spoil(case.images()), arguments["pool_size"], strides, arguments["padding"])
        spoilt = ~np.isfinite(pixels)
    np.testing.assert_array_equal(np.isfinite(outputs), ~spoilt)
    np.testing.assert_allclose(outputs[~spoilt], clean[~spoilt], rtol=0, atol=atol)
