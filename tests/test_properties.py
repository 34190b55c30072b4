import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import keras
import numpy as np
import pytest
import scipy.signal
import tensorflow as tf
from hypothesis import strategies as st
from support import numpy_reference

from diffstride_hybrid import (
    DiffStride,
    DiffStride1D,
    FixedSpectralPooling,
    SpatialPooling,
    SpectralPooling,
    SpectralPooling1D,
    spectral,
)
from diffstride_hybrid.layers.fourier_pooling import FourierPooling
from diffstride_hybrid.spectral import matmul

SLOW = pytest.mark.slow

Layer = keras.layers.Layer
Array = np.ndarray | tf.Tensor

LAYERS = (DiffStride, SpectralPooling, FixedSpectralPooling, SpatialPooling, DiffStride1D, SpectralPooling1D)
FOURIER_LAYERS = tuple(cls for cls in LAYERS if cls is not SpatialPooling)
LEARNED_LAYERS = (DiffStride, DiffStride1D)
POLICIES = ("float32", "mixed_float16", "mixed_bfloat16", "float64")
TOLERANCES = {"float32": 2e-5, "float64": 1e-11, "mixed_float16": 1e-2, "mixed_bfloat16": 8e-2}
DATA_FORMATS = ("channels_last", "channels_first")
ENGINES = ("fft", "matmul")

every_layer = pytest.mark.parametrize("cls", LAYERS)
every_fourier_layer = pytest.mark.parametrize("cls", FOURIER_LAYERS)
every_learned_layer = pytest.mark.parametrize("cls", [DiffStride, pytest.param(DiffStride1D, marks=SLOW)])
most_layers_slowly = pytest.mark.parametrize(
    "cls", [pytest.param(cls, marks=() if cls in (DiffStride, SpatialPooling) else SLOW) for cls in LAYERS]
)
every_policy = pytest.mark.parametrize(
    "policy", [POLICIES[0], *(pytest.param(policy, marks=SLOW) for policy in POLICIES[1:])]
)
every_mask = pytest.mark.parametrize("mask", spectral.MASKS)
every_data_format = pytest.mark.parametrize("data_format", DATA_FORMATS)


def axes_of(cls: type[Layer]) -> int:
    return 1 if cls in (DiffStride1D, SpectralPooling1D) else 2


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
        norm = "forward" if self.cls is SpatialPooling else self.arguments.get("norm", "backward")
        return {"forward": 1.0, "backward": ratio, "ortho": math.sqrt(ratio)}[norm]


def pair(cls: type[Layer], numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return numbers if axes_of(cls) == 1 else st.tuples(numbers, numbers)


STRIDES = st.sampled_from([1.0, 2.0, 1e6]) | st.floats(1.0, 8.0) | st.floats(8.0, 100.0)
RAMPS = st.sampled_from([0.0, 1.0, 4.0]) | st.floats(0.5, 8.0) | st.floats(64.0, 200.0)
LIMITS = st.none() | st.floats(1.0, 6.0)


@st.composite
def arguments_of(draw: st.DrawFn, cls: type[Layer], size: tuple[int, ...]) -> dict[str, Any]:
    if cls is SpatialPooling:
        pool_size = draw(st.just((1, 1)) | st.tuples(st.integers(1, 5), st.integers(1, 5)))
        whole = st.integers(1, 70)
        strides = draw(pair(cls, whole if pool_size != (1, 1) else whole | STRIDES))
        fits = all(n >= pool for n, pool in zip(size, pool_size))
        padding = draw(st.sampled_from(["same", "valid"])) if fits else "same"
        return {"pool_size": pool_size, "strides": strides, "padding": padding}
    arguments = {
        "norm": draw(st.sampled_from(spectral.NORMS)),
        "method": draw(st.sampled_from(ENGINES)),
    }
    if cls in (SpectralPooling, SpectralPooling1D) and draw(st.booleans()):
        output = tuple(draw(st.integers(1, n)) for n in size)
        return {**arguments, "output_size": output if axes_of(cls) == 2 else output[0]}
    arguments["strides"] = draw(pair(cls, STRIDES))
    if cls in LEARNED_LAYERS:
        arguments |= {
            "smoothness_factor": draw(RAMPS),
            "mask": draw(st.sampled_from(spectral.MASKS)),
            "cropping": draw(st.sampled_from([True, True, False])),
            "static_crop": draw(st.sampled_from([None, True])),
            "trainable": draw(st.booleans()),
        }
        lower, upper = draw(LIMITS), draw(LIMITS)
        if None not in (lower, upper):
            lower, upper = sorted((lower, upper))
        arguments |= {"lower_limit_stride": lower, "upper_limit_stride": upper}
    if cls is DiffStride and draw(st.booleans()):
        arguments |= {"shared_stride": True, "strides": arguments["strides"][0]}
    return arguments


@st.composite
def cases(draw: st.DrawFn, cls: type[Layer]) -> Case:
    lengths = st.integers(2 if issubclass(cls, FourierPooling) else 1, 64)
    size = tuple(draw(lengths) for _ in range(axes_of(cls)))
    return Case(
        cls,
        draw(arguments_of(cls, size)),
        size,
        batch=draw(st.integers(1, 2)),
        channels=draw(st.integers(1, 2)),
        drift=draw(st.sampled_from([1.0, 0.9, 1.2, 3.0])) if cls in LEARNED_LAYERS else 1.0,
        content=draw(st.sampled_from(["noise", "noise", "noise", "constant", "zero", "alternating", "impulse"])),
        seed=draw(st.integers(0, 2**16)),
    )


def each_engine(case: Case) -> list[dict[str, str]]:
    """What to change of the layer to have it compute in each way that it can."""
    return [{}] if case.cls is SpatialPooling else [{"method": method} for method in ENGINES]


def assert_close(case: Case, actual: Array, expected: Array, tolerance: float = 1e-11, message: str = "") -> None:
    actual, expected = as_float64(actual), as_float64(expected)
    assert actual.shape == expected.shape, message
    atol = tolerance * case.amplitude(expected.shape)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=message)


# --- What holds for every layer --------------------------------------------------------------------------------------


def has_the_shape_that_it_announces(case: Case) -> None:
    for data_format in DATA_FORMATS:
        layer = case.layer(data_format)
        inputs = in_format(case.images(), data_format)
        outputs = layer(inputs)
        announced = layer.compute_output_shape(inputs.shape)
        fits = [known is None or known == length for known, length in zip(announced, outputs.shape)]
        assert len(announced) == len(outputs.shape) and all(fits)
        dynamic = case.cls in LEARNED_LAYERS and case.arguments["cropping"] and not case.arguments["static_crop"]
        assert (None in announced) == dynamic
        outputs = channels_last(outputs, data_format)
        assert (outputs.shape[0], outputs.shape[-1]) == (case.batch, case.channels)
        assert all(1 <= length <= n for length, n in zip(outputs.shape[1:-1], case.size))
        if dynamic and case.drift == 1.0:
            static = case.layer(data_format, static_crop=True)
            assert channels_last(static(inputs), data_format).shape == outputs.shape


def is_finite_and_real(case: Case) -> None:
    layer = case.layer(dtype="float32")
    outputs = layer(case.images())
    assert outputs.dtype == tf.float32
    assert np.isfinite(outputs).all()
    assert np.abs(outputs).max() <= case.amplitude(outputs.shape) * 4 ** axes_of(case.cls)


def engines_agree(case: Case) -> None:
    layer = case.layer()
    expected = layer(case.images())
    if not isinstance(layer, FourierPooling):
        other = case.layer("channels_first")(in_format(case.images(), "channels_first"))
        assert_close(case, channels_last(other, "channels_first"), expected)
        return
    for method in ENGINES:
        for data_format in DATA_FORMATS:
            other = case.layer(data_format, method=method)(in_format(case.images(), data_format))
            assert_close(case, channels_last(other, data_format), expected, message=f"{method} {data_format}")
    with mock.patch.object(matmul, "SPLIT_FROM", 2):
        assert_close(case, case.layer(method="matmul")(case.images()), expected, message="split")
    assert_close(case, layer.constant_call(tf.constant(case.images())), expected, 1e-6, "constants")


def is_linear(case: Case) -> None:
    layer = case.layer()
    x, y = case.images(0), case.random(1).normal(size=case.shape)
    assert_close(case, layer(2.0 * x - 3.0 * y), 2.0 * layer(x) - 3.0 * layer(y), 1e-10)
    assert not np.any(layer(np.zeros(case.shape)))


def has_its_adjoint_as_gradient(case: Case) -> None:
    x, elsewhere = tf.constant(case.images(0)), tf.constant(case.random(1).normal(size=case.shape))
    for change in each_engine(case):
        layer = case.layer(**change)
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x)
        upstream = tf.constant(case.random(2).normal(size=outputs.shape))
        adjoint = tape.gradient(outputs, x, output_gradients=upstream)
        products = np.sum(upstream * layer(elsewhere)), np.sum(adjoint * elsewhere)
        scale = np.linalg.norm(upstream) * np.linalg.norm(elsewhere) * case.mean_factor(outputs.shape)
        assert abs(products[0] - products[1]) <= 1e-11 * scale


def keeps_the_mean(case: Case) -> None:
    layer = case.layer()
    if isinstance(layer, FourierPooling):
        outputs = layer(case.images())
        axes = tuple(range(1, outputs.ndim - 1))
        expected = case.mean_factor(outputs.shape) * case.images().mean(axes)
        atol = 1e-11 * case.amplitude(outputs.shape)
        np.testing.assert_allclose(np.mean(outputs, axes), expected, rtol=0, atol=atol)
    outputs = layer(np.full(case.shape, 3.0))
    assert_close(case, outputs, np.full(outputs.shape, 3.0 * case.mean_factor(outputs.shape)))


def keeps_images_and_channels_apart(case: Case) -> None:
    case = dataclasses.replace(case, batch=2, channels=2, content="noise")
    layer = case.layer()
    expected = as_float64(layer(case.images()))
    spoilt = case.images()
    image, *_, channel = place = case.place()
    spoilt[place] = [np.nan, np.inf, -np.inf][case.seed % 3]
    outputs = as_float64(layer(spoilt))
    if isinstance(layer, FourierPooling):
        assert not np.isfinite(outputs[image, ..., channel]).any()
    outputs[image, ..., channel] = expected[image, ..., channel]
    np.testing.assert_array_equal(outputs, expected)
    for i in range(2):
        assert_close(case, layer(case.images()[i : i + 1]), expected[i : i + 1])
        assert_close(case, layer(case.images()[..., i : i + 1]), expected[..., i : i + 1])


def agrees_with_itself_in_every_dtype(case: Case) -> None:
    expected = case.layer(dtype="float32")(case.images())
    exact = case.layer()(case.images())
    # A bin of a weight near 0 may be kept in one precision and not in another.
    if exact.shape == expected.shape:
        expected = exact
    for policy in ("float32", "mixed_float16", "mixed_bfloat16"):
        for change in each_engine(case):
            layer = case.layer(dtype=policy, **change)
            outputs = layer(case.images())
            assert outputs.dtype == layer.compute_dtype
            assert_close(case, outputs, expected, TOLERANCES[policy], f"{policy} {change}")


def is_saved_and_loaded_alike(case: Case) -> None:
    layer = case.layer(dtype="float32")
    model = keras.Sequential([keras.Input(case.shape[1:]), layer])
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "model.keras")
        loaded = keras.saving.load_model(Path(folder) / "model.keras")
    assert loaded.layers[0].get_config() == layer.get_config()
    assert loaded.output_shape == model.output_shape
    np.testing.assert_array_equal(loaded(case.images()), model(case.images()))


def is_its_definition(case: Case) -> None:
    layer = case.layer()
    assert_close(case, layer(case.images()), defined(case, layer), 1e-10)


def defined(case: Case, layer: Layer) -> np.ndarray:
    """The layer's output by direct sums, or by SciPy."""
    x, arguments = case.images(), case.arguments
    if case.cls is SpatialPooling:
        return spatial_pooling(x, arguments["pool_size"], arguments["strides"], arguments["padding"])
    if case.cls in (SpectralPooling, SpectralPooling1D):
        sizes, strides = arguments.get("output_size"), arguments.get("strides")
        if axes_of(case.cls) == 1:
            sizes, strides = sizes and (sizes,), (strides,)
        for axis, length in enumerate(case.size):
            size = sizes[axis] if sizes else pooled_length(length, strides[axis])
            x = scipy.signal.resample(x, size, axis=axis + 1)
        return x * case.mean_factor(x.shape)
    if case.cls is FixedSpectralPooling:
        height, width = map(pooled_length, case.size, arguments["strides"])
        height -= height % 2
        rows = [(k, 1.0) for k in (*range(height // 2), *range(-(height // 2), 0))]
        columns = [(k, 1.0) for k in range(width // 2 + 1)]
        return numpy_reference.one_sided_pooling(x, rows, columns, height, width, arguments["norm"])
    options = ("smoothness_factor", "cropping", "lower_limit_stride", "upper_limit_stride", "mask", "norm")
    options = {name: arguments[name] for name in options}
    if arguments["static_crop"] and arguments["cropping"]:
        options["kept"] = layer.crops[(1, *case.size) if axes_of(case.cls) == 1 else case.size]
    strides = tuple(layer.strides.numpy().astype(float))
    if axes_of(case.cls) == 1:
        return numpy_reference.diffstride(x[:, None], (1.0, *strides), **options)[:, 0]
    # The sums leave out the mean of a hard crop to the utmost on an odd number of rows. The layer must not.
    utmost = options["mask"] == "released" and case.size[0] % 2 == 1 and case.size[0] <= 2 * strides[0]
    hypothesis.assume(options["smoothness_factor"] > 0 or not utmost)
    return numpy_reference.diffstride(x, strides, **options)


def pooled_length(length: int, stride: float) -> int:
    whole = round(length / stride)
    return max(2, whole if math.isclose(length / stride, whole, abs_tol=1e-6) else math.floor(length / stride))


def spatial_pooling(x: np.ndarray, pool: tuple[int, int], strides: tuple[float, float], padding: str) -> np.ndarray:
    for axis, (width, stride) in enumerate(zip(pool, strides), 1):
        length = x.shape[axis]
        count = max(1, math.ceil((length if padding == "same" else length - width + 1) / stride - 1e-6))
        before = max(0, (count - 1) * int(stride) + width - length) // 2 if padding == "same" else 0
        starts = [math.floor(i * stride + 1e-6) - before for i in range(count)]
        ranges = [range(max(0, start), min(length, start + width)) for start in starts]
        x = np.stack([x.take(taken, axis).mean(axis) for taken in ranges], axis)
    return x


PROPERTIES = (
    has_the_shape_that_it_announces,
    is_finite_and_real,
    engines_agree,
    is_linear,
    has_its_adjoint_as_gradient,
    keeps_the_mean,
    keeps_images_and_channels_apart,
    agrees_with_itself_in_every_dtype,
    is_saved_and_loaded_alike,
    is_its_definition,
)
FEW = hypothesis.settings(max_examples=3, derandomize=True, database=None, deadline=None)
MANY = hypothesis.settings(
    max_examples=60,
    database=None,
    deadline=None,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)


def hold(holds: Callable[[Case], None], cls: type[Layer], settings: hypothesis.settings) -> None:
    @settings
    @hypothesis.given(cases(cls))
    def check(case: Case) -> None:
        holds(case)

    check()


@every_layer
@pytest.mark.parametrize("holds", PROPERTIES)
def test_a_property_holds_for_a_few_cases(holds: Callable[[Case], None], cls: type[Layer]):
    hold(holds, cls, FEW)


@SLOW
@every_layer
@pytest.mark.parametrize("holds", PROPERTIES)
def test_a_property_holds_for_many_cases(holds: Callable[[Case], None], cls: type[Layer]):
    hold(holds, cls, MANY)


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


def compiled(layer: Layer) -> Callable[[Array], tf.Tensor]:
    if hasattr(layer, "fix_crop"):
        layer.fix_crop()
    function = tf.function(layer, jit_compile=True)
    return lambda x: function(tf.constant(x, layer.compute_dtype))


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


@every_example
@every_policy
def test_pixels_that_are_not_finite_spoil_their_own_channel_of_their_own_image(policy: str, case: Case):
    for layer in layers(case, dtype=policy):
        clean = call(layer, case.images(), layer.data_format)
        outputs = call(layer, spoil(case.images()), layer.data_format)
        assert_only_spoilt_channels_differ(case, outputs, clean)


@every_example
def test_pixels_that_are_not_finite_do_not_reach_the_gradient_to_the_inputs(case: Case):
    for layer in layers(case):
        clean, spoilt = (
            input_gradient(layer, tf.constant(in_format(x, layer.data_format)), lambda y: tf.ones_like(y))
            for x in (case.images(), spoil(case.images()))
        )
        np.testing.assert_array_equal(clean[1], spoilt[1])
        for of_clean, of_spoilt in zip(clean[2:], spoilt[2:]):
            assert np.isfinite(of_clean).all()
            assert np.isnan(of_spoilt).all() or not np.any(of_clean)


@every_example
def test_an_upstream_gradient_that_is_not_finite_stays_in_its_channel_of_its_image(case: Case):
    def upstream(outputs: tf.Tensor) -> tf.Tensor:
        values = spoil(channels_last(tf.ones_like(outputs), layer.data_format))
        return tf.constant(in_format(values, layer.data_format))

    for layer in layers(case):
        x = tf.constant(in_format(case.images(), layer.data_format))
        clean = channels_last(input_gradient(layer, x, lambda y: tf.ones_like(y))[1], layer.data_format)
        spoilt = channels_last(input_gradient(layer, x, upstream)[1], layer.data_format)
        for image, channel in np.ndindex(2, 3):
            same = np.array_equal(spoilt[image, ..., channel], clean[image, ..., channel])
            assert same == ((image, channel) not in SPOILT)


@every_example
@pytest.mark.parametrize("policy", ["float32", pytest.param("mixed_bfloat16", marks=SLOW)])
def test_an_empty_batch_has_an_empty_result(policy: str, case: Case):
    for layer in layers(case, dtype=policy):
        full = tf.cast(in_format(case.images(), layer.data_format), layer.compute_dtype)
        outputs, *gradients = input_gradient(layer, full[:0], tf.zeros_like)
        assert outputs.shape == (0, *layer(full).shape[1:])
        assert gradients[0].shape == (0, *full.shape[1:])
        assert not np.any(gradients[1:])


@with_slow_ones(("SpectralPooling",))
def test_a_graph_pools_batches_of_any_number(case: Case):
    layer = case.layer(dtype="float32")
    function = tf.function(
        lambda x: input_gradient(layer, x, lambda y: 2.0 * y), input_signature=[tf.TensorSpec([None, *case.shape[1:]])]
    )
    for count in (0, 1, 2):
        x = tf.constant(case.images()[:count], "float32")
        for actual, expected in zip(function(x), input_gradient(layer, x, lambda y: 2.0 * y)):
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


ARRAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "big-endian": lambda x: x.astype(">f4"),
    "big-endian float64": lambda x: x.astype(">f8"),
    "big-endian float16": lambda x: x.astype(">f2"),
    "Fortran order": np.asfortranarray,
    "reversed": lambda x: np.flip(np.flip(x, 1).copy(), 1),
    "every other": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "transposed": lambda x: np.moveaxis(np.moveaxis(x, 0, -1).copy(), -1, 0),
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "float16": lambda x: x.astype("float16"),
    "float64": lambda x: x.astype("float64"),
}


@most_layers_slowly
def test_an_array_may_lie_in_memory_as_it_likes(cls: type[Layer]):
    case = Case(cls, {}, (12, 14)[: axes_of(cls)], batch=2, channels=3)
    layer = case.layer(dtype="float32")
    plain = np.repeat(case.images()[:1], 2, axis=0).astype("float32")
    expected = layer(plain)
    for name, arranged in ARRAYS.items():
        array = arranged(plain)
        assert array.dtype != plain.dtype or array.strides != plain.strides, name
        array.flags.writeable = False
        outputs = layer(array)
        assert outputs.dtype == tf.float32
        np.testing.assert_array_equal(outputs, expected, name)


@every_layer
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int32", ">i4", "int64", "bool", "complex64"])
def test_what_is_not_floating_point_is_refused_by_its_name(dtype: str, cls: type[Layer]):
    shape = (1, *[8] * axes_of(cls), 1)
    with pytest.raises(TypeError, match=f"{cls.__name__} needs floating-point input, got {np.dtype(dtype).name}"):
        cls()(np.ones(shape, dtype))


@every_example
@every_policy
def test_zero_gives_exactly_zero(policy: str, case: Case):
    for layer in layers(case, dtype=policy):
        x = tf.zeros(in_format(case.images(), layer.data_format).shape, layer.compute_dtype)
        outputs, *gradients = input_gradient(layer, x, tf.ones_like)
        assert not np.any(outputs)
        assert all(np.isfinite(as_float64(gradient)).all() for gradient in gradients)
        assert not np.any(gradients[1:])


@every_example
@every_policy
def test_a_constant_stays_constant_to_rounding(policy: str, case: Case):
    rtol = {"float32": 5e-6, "float64": 1e-14, "mixed_float16": 5e-3, "mixed_bfloat16": 3e-2}[policy]
    for layer in layers(case, dtype=policy):
        outputs = call(layer, np.full(case.shape, 0.7), layer.data_format)
        value = as_float64(tf.constant(0.7, layer.compute_dtype))
        np.testing.assert_allclose(outputs, value * case.mean_factor(outputs.shape), rtol=rtol)


@pytest.mark.parametrize("norm", ["forward", pytest.param("ortho", marks=SLOW)])
@pytest.mark.parametrize("size", [pytest.param((12, 13), marks=SLOW), (64, 64)], ids=str)
@every_fourier_layer
def test_a_result_that_float16_holds_does_not_overflow_on_the_way(cls: type[Layer], size: tuple[int, int], norm: str):
    case = Case(cls, {"norm": norm}, size[: axes_of(cls)])
    for layer in layers(case, dtype="mixed_float16"):
        small = call(layer, np.ones(case.shape), layer.data_format)
        value = np.floor(6e4 / small.max())
        np.testing.assert_allclose(call(layer, np.full(case.shape, value), layer.data_format), value * small, rtol=5e-3)


@every_layer
def test_one_pixel_is_pooled_or_refused(cls: type[Layer]):
    sizes = [(1,)] if axes_of(cls) == 1 else [(1, 1), (1, 6), (6, 1)]
    for size in sizes:
        x = Case(cls, {}, size, seed=1).images()
        if cls is SpatialPooling:
            np.testing.assert_array_equal(cls()(x), x[:, ::2, ::2])
            np.testing.assert_array_equal(cls(strides=1e6)(x), x[:, :1, :1])
            np.testing.assert_array_equal(cls(strides=(1.5, 1e6))(x), x[:, [0, 1, 3, 4][: -(-size[0] * 2 // 3)], :1])
            continue
        for method in ENGINES:
            with pytest.raises(ValueError, match=f"{cls.__name__} needs at least [12]x2 samples to pool, got"):
                cls(method=method)(x)


@most_layers_slowly
@pytest.mark.parametrize("data_format", ["channels_last", pytest.param("channels_first", marks=SLOW)])
def test_a_graph_of_unknown_sizes_refuses_what_is_too_small(data_format: str, cls: type[Layer]):
    if cls is SpatialPooling:
        layer, least, sizes = cls((2, 3), padding="valid", data_format=data_format), "2x3", [(1, 3), (2, 2)]
    else:
        layer, least, sizes = cls(method="fft", data_format=data_format), "[12]x2", [(1, 1), (6, 1)]
        sizes = [(1,)] if axes_of(cls) == 1 else [*sizes, (1, 6)]
    unknown = [None] * (axes_of(cls) + 2)
    unknown[-1 if data_format == "channels_last" else 1] = 3
    layer.build(unknown)
    function = tf.function(layer, input_signature=[tf.TensorSpec(unknown)])
    for size in sizes:
        x = in_format(np.ones([1, *size, 3], "float32"), data_format)
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"{cls.__name__} needs at least {least} samples"):
            function(x)


@pytest.mark.parametrize("method", ENGINES)
def test_a_graph_of_unknown_sizes_refuses_an_output_larger_than_the_map(method: str):
    for layer, shape in (
        (SpectralPooling(output_size=(5, 8)), (1, 6, 7, 1)),
        (SpectralPooling1D(output_size=8), (1, 7, 1)),
    ):
        layer.method = method
        layer.build([None] * len(shape))
        function = tf.function(layer, input_signature=[tf.TensorSpec([None] * len(shape))])
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"Pooling(1D)? needs at least [15]x8 samples to pool"):
            function(tf.ones(shape))


@with_slow_ones(("DiffStride",))
def test_a_graph_of_unknown_sizes_gives_what_known_sizes_give(case: Case):
    arguments = {**case.arguments, "static_crop": None} if case.cls in LEARNED_LAYERS else case.arguments
    unknown = [None] * len(case.shape)
    layer = case.cls(**arguments)
    layer.build([*unknown[:-1], 1])
    function = tf.function(layer, input_signature=[tf.TensorSpec(unknown)])
    for size in [(2, 2), (3, 5), (5, 4), (27, 54), (49, 64)]:
        x = dataclasses.replace(case, size=size[-len(case.size) :]).images().astype("float32")
        np.testing.assert_allclose(function(x), layer(x), rtol=0, atol=2e-5 * np.abs(layer(x)).max())


@pytest.mark.parametrize("cls", [SpectralPooling, FixedSpectralPooling, SpectralPooling1D])
def test_a_size_does_not_depend_on_when_it_is_known(cls: type[Layer]):
    layer = cls(1.7)
    x = tf.ones([1, *[17] * axes_of(cls), 1])
    function = tf.function(layer, input_signature=[tf.TensorSpec([None] * len(x.shape))])
    assert function(x).shape == layer(x).shape == layer.compute_output_shape(x.shape)
    assert layer(x).shape[-2] == 10


@pytest.mark.parametrize("stride", [1.08, 1.7, *(pytest.param(stride, marks=SLOW) for stride in (1.07, 2.6, 9 / 7))])
def test_every_length_is_pooled_to_the_same_known_or_not(stride: float):
    lengths = range(2, 400)
    pooled = tf.function(lambda lengths: spectral.spectral_output_length(lengths, stride))(tf.constant(lengths))
    assert list(pooled) == [spectral.spectral_output_length(length, stride) for length in lengths]


def test_a_stride_of_size_by_output_size_has_that_output_size():
    for length in range(2, 300):
        for expected in range(2, length + 1):
            assert spectral.spectral_output_length(length, length / expected) == expected


@every_learned_layer
@pytest.mark.parametrize("mask", ["released", pytest.param("symmetric", marks=SLOW)])
def test_a_static_crop_in_float64_is_that_of_the_dynamic_one(mask: str, cls: type[Layer]):
    # 63 / 2.1, of a stride held in float32, is 30 in float32 and more in float64, and the ramp ends on a bin.
    case = Case(cls, {"strides": 2.1, "mask": mask, "smoothness_factor": 1.0}, (63, 63)[: axes_of(cls)])
    sizes = {dtype: case.layer(dtype=dtype)(case.images()).shape for dtype in ("float32", "float64")}
    assert sizes["float32"] != sizes["float64"]
    for dtype, size in sizes.items():
        assert case.layer(dtype=dtype, static_crop=True)(case.images()).shape == size


RELEASED, SYMMETRIC = ({"mask": mask, "smoothness_factor": 1.0} for mask in spectral.MASKS)


@pytest.mark.parametrize(
    ("cls", "arguments", "least"),
    [
        (DiffStride, RELEASED, (3, 4)),
        (DiffStride, SYMMETRIC, (3, 3)),
        (SpectralPooling, {}, (2, 2)),
        (FixedSpectralPooling, {}, (2, 2)),
        (SpatialPooling, {}, (1, 1)),
        (DiffStride1D, RELEASED, (4,)),
        (DiffStride1D, SYMMETRIC, (3,)),
        (SpectralPooling1D, {}, (2,)),
    ],
)
def test_a_huge_stride_leaves_the_least(cls: type[Layer], arguments: dict[str, Any], least: tuple[int, ...]):
    case = Case(cls, arguments, (11, 12)[: axes_of(cls)])
    expected = case.layer(strides=12)(case.images())
    assert expected.shape == (1, *least, 1)
    for layer in layers(case, strides=1e6):
        assert_close(case, call(layer, case.images(), layer.data_format), expected)
    assert_close(case, case.layer(strides=2**31 - 1)(case.images()), expected)


@every_layer
@pytest.mark.parametrize("stride", [2**31, 1e30, 1e39, 10**400])
def test_a_stride_beyond_what_kernels_take_is_refused(stride: float, cls: type[Layer]):
    with pytest.raises(ValueError, match=r"strides must be at most 2147483647, got [12]"):
        cls(strides=stride)


@pytest.mark.parametrize(
    ("cls", "argument"),
    [
        (DiffStride, "smoothness_factor"),
        (DiffStride1D, "smoothness_factor"),
        (DiffStride, "upper_limit_stride"),
        (DiffStride, "lower_limit_stride"),
        (SpectralPooling, "output_size"),
        (SpectralPooling1D, "output_size"),
        (SpatialPooling, "pool_size"),
    ],
)
def test_a_number_beyond_what_kernels_take_is_refused(cls: type[Layer], argument: str):
    with pytest.raises(ValueError, match=f"{argument} must be at most 2147483647, got 1{'0' * 40}"):
        cls(**{argument: 10**40})


@pytest.mark.parametrize("pool_size", [(13, 1), (1, 15), 50])
@every_data_format
def test_a_pool_larger_than_the_map_is_refused_without_padding(data_format: str, pool_size: Any):
    x = in_format(np.ones([1, 12, 14, 1], "float32"), data_format)
    with pytest.raises(ValueError, match=r"SpatialPooling needs at least (13x1|1x15|50x50) samples to pool, got \(1"):
        SpatialPooling(pool_size, padding="valid", data_format=data_format)(x)
    np.testing.assert_allclose(SpatialPooling(pool_size, data_format=data_format)(x), 1.0, rtol=1e-6)


@every_learned_layer
@every_mask
def test_a_stride_at_its_lower_limit_is_the_limit(mask: str, cls: type[Layer]):
    case = Case(cls, {"mask": mask, "norm": "forward"}, (12, 14)[: axes_of(cls)])
    limited = case.layer(strides=1.0, lower_limit_stride=3.0)
    assert_close(case, limited(case.images()), case.layer(strides=3.0)(case.images()))
    whole = dataclasses.replace(case, size=(13, 11)[: axes_of(cls)]) if mask == "symmetric" else case
    assert_close(whole, whole.layer(strides=1.0, smoothness_factor=0.0)(whole.images()), whole.images())
    layer, limits = case.layer(strides=1.0), [n / (n - 4) for n in case.size]
    np.testing.assert_allclose(layer.strides, limits, rtol=1e-6)
    layer.strides.assign(tf.ones_like(layer.strides))
    expected = case.layer(strides=limits if len(limits) == 2 else limits[0])(case.images())
    assert_close(case, layer(case.images()), expected, 1e-6)


@pytest.mark.parametrize("cls", [SpectralPooling, FixedSpectralPooling, SpatialPooling, SpectralPooling1D])
def test_a_fixed_stride_of_1_changes_nothing(cls: type[Layer]):
    case = Case(cls, {"strides": 1}, (12, 14)[: axes_of(cls)])
    for layer in layers(case):
        assert_close(case, call(layer, case.images(), layer.data_format), case.images())


@every_learned_layer
@every_mask
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=SLOW)])
@pytest.mark.parametrize("ramp", [1e-300, *(pytest.param(ramp, marks=SLOW) for ramp in (1e-40, 1e-10))])
def test_a_ramp_too_short_for_float32_is_a_hard_crop(ramp: float, dtype: str, mask: str, cls: type[Layer]):
    case = Case(cls, {"strides": 2.2, "mask": mask}, (11, 12)[: axes_of(cls)])
    hard = case.layer(dtype=dtype, smoothness_factor=0.0)
    x = tf.constant(case.images(), dtype)
    expected = input_gradient(hard, x, tf.ones_like)
    for method in ENGINES:
        results = input_gradient(case.layer(dtype=dtype, smoothness_factor=ramp, method=method), x, tf.ones_like)
        for actual, wanted in zip(results, expected):
            assert_close(case, actual, wanted, TOLERANCES[dtype])


@every_learned_layer
@every_mask
@pytest.mark.parametrize("ramp", [12, *(pytest.param(ramp, marks=SLOW) for ramp in (11, 12.5, 2**31 - 1))])
def test_a_ramp_longer_than_the_map_keeps_the_whole_map(ramp: float, mask: str, cls: type[Layer]):
    case = Case(cls, {"strides": 1.3, "mask": mask, "smoothness_factor": ramp}, (11, 12)[: axes_of(cls)])
    expected = case.layer()(case.images())
    assert expected.shape[1:-1] == [11, 12][: axes_of(cls)] or mask == "released"
    for layer in layers(case, dtype="float32"):
        x = tf.constant(in_format(case.images(), layer.data_format), "float32")
        outputs, *gradients = input_gradient(layer, x, tf.ones_like)
        assert_close(case, channels_last(outputs, layer.data_format), expected, 1e-5)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "ramp", [0.0, pytest.param(1e-10, marks=SLOW), 1e-6, *(pytest.param(ramp, marks=SLOW) for ramp in (1e-3, 0.3))]
)
@pytest.mark.parametrize(
    "size", [pytest.param((3, 3), marks=SLOW), (5, 8), pytest.param((51, 50), marks=SLOW)], ids=str
)
def test_the_hardest_crop_of_an_odd_number_of_rows_keeps_the_mean(size: tuple[int, int], ramp: float, dtype: str):
    case = Case(DiffStride, {"strides": 1e6, "smoothness_factor": ramp, "norm": "forward"}, size)
    for layer in layers(case, dtype=dtype):
        outputs = call(layer, case.images() + 1.0, layer.data_format)
        np.testing.assert_allclose(outputs.mean((1, 2)), 1.0 + case.images().mean((1, 2)), rtol=1e-5)


@every_learned_layer
@every_mask
@pytest.mark.parametrize("size", [pytest.param((12, 14), marks=SLOW), (50, 51)], ids=str)
def test_strides_that_are_not_numbers_give_what_is_not(size: tuple[int, int], mask: str, cls: type[Layer]):
    case = Case(cls, {"mask": mask}, size[: axes_of(cls)])
    for layer in layers(case):
        layer.strides.assign(tf.fill(layer.strides.shape, np.nan))
        for _ in ("dynamic", "static"):
            outputs = call(layer, case.images(), layer.data_format)
            assert np.isnan(outputs).all() and outputs.size > 0
            layer.fix_crop()


@every_example
def test_pooling_again_and_again_comes_to_an_end(case: Case):
    layer = case.cls(**{**case.arguments, "strides": 1e6})
    x, sizes = case.images(), []
    while len(sizes) < 8:
        try:
            x = layer(x)
        except ValueError as error:
            assert "needs at least 2x2 samples to pool" in str(error) and 1 in x.shape[1:-1]
            return
        sizes.append(x.shape[1:-1])
        assert np.isfinite(x).all()
    assert sizes[-1] == sizes[-2]


@every_example
def test_maps_without_channels_are_pooled_to_such(case: Case):
    for layer in layers(case):
        size = call(layer, case.images(), layer.data_format).shape[:-1]
        assert call(layer, case.images()[..., :0], layer.data_format).shape == (*size, 0)


# --- The same under XLA ----------------------------------------------------------------------------------------------


@SLOW
@every_example
def test_xla_does_the_same_at_the_limits(case: Case):
    for layer in layers(case, dtype="float32"):
        function = compiled(layer)
        clean = call(layer, case.images(), layer.data_format)
        atol = 2e-5 * case.amplitude(clean.shape)
        np.testing.assert_allclose(call(function, case.images(), layer.data_format), clean, rtol=0, atol=atol)
        outputs = call(function, spoil(case.images()), layer.data_format)
        assert_only_spoilt_channels_differ(case, outputs, clean, atol)
        assert not np.any(call(function, np.zeros(case.shape), layer.data_format))
        assert call(function, case.images()[:0], layer.data_format).shape == (0, *clean.shape[1:])


@SLOW
@every_fourier_layer
def test_xla_does_not_overflow_float16_on_the_way(cls: type[Layer]):
    case = Case(cls, {"norm": "forward"}, (64, 64)[: axes_of(cls)])
    for layer in layers(case, dtype="mixed_float16"):
        outputs = call(compiled(layer), np.full(case.shape, 6e4), layer.data_format)
        np.testing.assert_allclose(outputs, 6e4, rtol=5e-3)
