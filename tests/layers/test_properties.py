"""Properties that hold for any input: linear, adjoint, both engines alike."""

import dataclasses
import math
import tempfile
from collections.abc import Callable
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
from support.property_cases import (
    DATA_FORMATS,
    ENGINES,
    LEARNED_LAYERS,
    RESIZINGS,
    SLOW,
    TOLERANCES,
    Case,
    Layer,
    as_float64,
    assert_close,
    axes_of,
    channels_last,
    every_layer,
    in_format,
    spatial_pooling,
)

from diffstride_hybrid import (
    DiffStride,
    FixedSpectralPooling,
    SpatialPooling,
    SpectralPooling,
    SpectralPooling1D,
    spectral,
)
from diffstride_hybrid.layers.fourier_pooling import FourierPooling
from diffstride_hybrid.spectral.tensorflow import matmul


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
    if cls in RESIZINGS:
        output = tuple(draw(st.integers(1, 80)) for _ in size)
        if draw(st.booleans()):
            return {**arguments, "output_size": output if axes_of(cls) == 2 else output[0]}
        return {**arguments, "scale": draw(pair(cls, st.floats(0.1, 4.0)))}
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
        assert min(outputs.shape[1:-1]) >= 1
        assert case.cls in RESIZINGS or all(length <= n for length, n in zip(outputs.shape[1:-1], case.size))
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
    assert_close(case, layer.constant_call(tf.constant(case.images())), expected, message="constants")


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
    # The shape of a model's symbolic output is that of its time: Keras makes it before it loads the strides.
    shape = (None, *case.shape[1:])
    assert loaded.layers[0].compute_output_shape(shape) == layer.compute_output_shape(shape)
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
    if case.cls in RESIZINGS:
        name = "scale" if "scale" in arguments else "output_size"
        values = arguments[name] if axes_of(case.cls) == 2 else (arguments[name],)
        for axis, (length, value) in enumerate(zip(case.size, values), 1):
            size = value if name == "output_size" else max(1, math.floor(length * value + 1e-6))
            x = scipy.signal.resample(x, size, axis=axis)
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
