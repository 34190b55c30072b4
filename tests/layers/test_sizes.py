"""Output sizes at any input size and stride."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.signal
import tensorflow as tf
from support.property_cases import (
    DATA_FORMATS,
    ENGINES,
    LEARNED_LAYERS,
    RESIZINGS,
    SLOW,
    TOLERANCES,
    Array,
    Case,
    Layer,
    assert_close,
    assert_only_spoilt_channels_differ,
    axes_of,
    call,
    channels_last,
    every_example,
    every_fourier_layer,
    every_layer,
    every_layer_with_strides,
    in_format,
    input_gradient,
    layers,
    most_layers_slowly,
    spoil,
    with_slow_ones,
)

from diffstride_hybrid import (
    DiffStride,
    DiffStride1D,
    FixedSpectralPooling,
    SpatialPooling,
    SpectralPooling,
    SpectralPooling1D,
    spectral,
)

every_learned_layer = pytest.mark.parametrize("cls", [DiffStride, pytest.param(DiffStride1D, marks=SLOW)])

every_mask = pytest.mark.parametrize("mask", spectral.MASKS)
every_data_format = pytest.mark.parametrize("data_format", DATA_FORMATS)


def compiled(layer: Layer) -> Callable[[Array], tf.Tensor]:
    if hasattr(layer, "fix_crop"):
        layer.fix_crop()
    function = tf.function(layer, jit_compile=True)
    return lambda x: function(tf.constant(x, layer.compute_dtype))


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
            if cls in RESIZINGS:
                outputs = cls(scale=3.0, method=method)(x)
                assert outputs.shape[1:-1] == tuple(3 * n for n in size)
                expected = x
                for axis, n in enumerate(size, 1):
                    expected = scipy.signal.resample(expected, 3 * n, axis=axis)
                np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-6)
                continue
            if cls is DiffStride:
                np.testing.assert_allclose(cls(1.0, smoothness_factor=0.0, method=method)(x), x, rtol=1e-5, atol=1e-6)
                continue
            if axes_of(cls) == 2:
                outputs = cls(method=method, norm="forward")(x)
                rows, columns = (1 if n == 1 else 3 for n in size)
                rows = 2 if rows == 3 and cls is FixedSpectralPooling else rows
                assert outputs.shape[1:3] == (rows, columns)
                np.testing.assert_allclose(np.mean(outputs, (1, 2)), np.mean(x, (1, 2)), rtol=1e-5, atol=1e-6)
                continue
            with pytest.raises(ValueError, match=f"{cls.__name__} needs at least 1x2 samples to pool, got"):
                cls(method=method)(x)


@most_layers_slowly
@pytest.mark.parametrize("data_format", ["channels_last", pytest.param("channels_first", marks=SLOW)])
def test_a_graph_of_unknown_sizes_refuses_what_is_too_small(data_format: str, cls: type[Layer]):
    if cls is SpatialPooling:
        layer, least, sizes = cls((2, 3), padding="valid", data_format=data_format), "2x3", [(1, 3), (2, 2)]
    elif axes_of(cls) == 1:
        layer, least, sizes = cls(method="fft", data_format=data_format), "1x2", [(1,)]
    else:
        layer, least, sizes = cls(method="fft", data_format=data_format), "1x1", [(0, 4), (4, 0)]
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


@every_layer_with_strides
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
        *((cls, argument) for cls in RESIZINGS for argument in ("output_size", "scale")),
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
        x = layer(x)
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
