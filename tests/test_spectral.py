import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import scipy.signal
import tensorflow as tf
from support import numpy_reference

import diffstride_hybrid
from diffstride_hybrid import spectral
from diffstride_hybrid.spectral import matmul

SIZES = {"even": (12, 12), "odd": (11, 13), "tall": (15, 6), "wide": (6, 14)}
ENGINES = ("fft", "matmul")
MASKS = ("released", "symmetric")
NORMS = ("backward", "forward", "ortho")
DATA_FORMATS = ("channels_last", "channels_first")
STRIDES = (1.9, 2.3)

RELEASE = np.load(Path(__file__).parent / "reference" / "reference_layers.npz")
RELEASE_CASES = {case["key"]: case for case in json.loads(bytes(RELEASE["meta"]))}

every_engine = pytest.mark.parametrize("method", ENGINES)
every_mask = pytest.mark.parametrize("mask", MASKS)
every_norm = pytest.mark.parametrize("norm", NORMS)
every_data_format = pytest.mark.parametrize("data_format", DATA_FORMATS)
even_and_odd = pytest.mark.parametrize("size", [SIZES["even"], SIZES["odd"]], ids=["even", "odd"])
every_size = pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())


def images(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(2, *size, 3))


def in_format(x: np.ndarray, data_format: str) -> np.ndarray:
    return np.moveaxis(x, 3, 1) if data_format == "channels_first" else x


def assert_close(actual: Any, expected: np.ndarray, tolerance: float, message: str = "") -> None:
    """Within `tolerance` of the largest expected value."""
    actual = np.asarray(actual, np.float64)
    assert actual.shape == expected.shape, message
    atol = tolerance * max(np.abs(expected).max(), 1e-12)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol, err_msg=message)


def assert_matches_reference(pool: Callable[..., tf.Tensor], x: np.ndarray, expected: np.ndarray) -> None:
    """Calls `pool(x, method=…, data_format=…)` with every engine, layout and dtype, though not with every triple."""
    for method, split_from, data_format, dtype, tolerance in (
        ("fft", None, "channels_last", tf.float64, 1e-10),
        ("matmul", None, "channels_first", tf.float64, 1e-10),
        ("matmul", 2, "channels_last", tf.float64, 1e-10),
        ("fft", None, "channels_first", tf.float32, 1e-5),
        ("matmul", None, "channels_last", tf.float32, 1e-5),
    ):
        with mock.patch.object(matmul, "SPLIT_FROM", split_from or matmul.SPLIT_FROM):
            y = pool(tf.constant(in_format(x, data_format), dtype), method=method, data_format=data_format)
        assert y.dtype == dtype
        assert_close(y, in_format(expected, data_format), tolerance, f"{method}, {data_format}, {dtype.name}")


def diffstride(x: tf.Tensor, strides: tuple[float, ...] = STRIDES, **options: Any) -> tf.Tensor:
    strides = tf.constant(strides, tf.float64 if x.dtype == tf.float64 else tf.float32)
    return spectral.diffstride(x, strides, **options)


# --- Against the released code ---------------------------------------------------------------------------------------


@every_engine
@pytest.mark.parametrize("key", RELEASE_CASES)
def test_layers_match_the_released_code(key: str, method: str):
    case = RELEASE_CASES[key]
    options = {} if case["layer"] == "SpatialPooling" else {"method": method}
    layer = getattr(diffstride_hybrid, case["layer"])(**case["config"], **options)
    x = tf.constant(RELEASE[f"{key}/x"])
    layer.build(x.shape)
    if case["layer"] == "DiffStride":
        layer.strides.assign(RELEASE[f"{key}/strides"])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    sources = [x, *(weight.value for weight in layer.trainable_weights)]
    gradients = tape.gradient(y, sources, output_gradients=tf.constant(RELEASE[f"{key}/g"]))

    assert y.shape == case["output_shape"]
    assert_close(y, RELEASE[f"{key}/y"], 1e-5)
    assert_close(gradients[0], RELEASE[f"{key}/dx"], 1e-5)
    assert (f"{key}/dstrides" in RELEASE) == (len(gradients) == 2) == (case["layer"] == "DiffStride")
    if len(gradients) == 2:
        assert_close(gradients[1], RELEASE[f"{key}/dstrides"], 1e-5)


def test_the_recorded_cases_are_all_there():
    assert {case["layer"] for case in RELEASE_CASES.values()} == {
        "DiffStride",
        "FixedSpectralPooling",
        "SpatialPooling",
    }
    assert len(RELEASE_CASES) == 15


# --- Against direct sums ---------------------------------------------------------------------------------------------


@every_size
@pytest.mark.parametrize(
    ("smoothness_factor", "norm"),
    [(0.0, "backward"), (0.5, "backward"), (4.0, "backward"), (100.0, "backward"), (0.5, "forward"), (4.0, "ortho")],
)
@pytest.mark.parametrize("cropping", [True, False], ids=["cropped", "uncropped"])
@every_mask
def test_diffstride_equals_direct_sums(
    mask: str, norm: str, cropping: bool, smoothness_factor: float, size: tuple[int, int]
):
    x = images(size)
    options = {"smoothness_factor": smoothness_factor, "cropping": cropping, "mask": mask, "norm": norm}
    assert_matches_reference(partial(diffstride, **options), x, numpy_reference.diffstride(x, STRIDES, **options))


@even_and_odd
@every_mask
@pytest.mark.parametrize(
    ("strides", "limits"),
    [
        ((1.0, 1.0), {}),
        ((30.0, 30.0), {}),
        ((1.5, 4.0), {"lower_limit_stride": 2.0, "upper_limit_stride": 3.0}),
        ((1.0, 1.0), {"upper_limit_stride": 1.2}),
        ((1.0,), {}),
        ((2.4,), {"lower_limit_stride": 2.5}),
    ],
)
def test_effective_strides_equal_direct_sums(
    strides: tuple[float, ...], limits: dict[str, float], mask: str, size: tuple[int, int]
):
    x = images(size)
    expected = numpy_reference.diffstride(x, strides, mask=mask, **limits)
    assert_matches_reference(partial(diffstride, strides=strides, mask=mask, **limits), x, expected)


@every_mask
@pytest.mark.parametrize("change", [(-2, -1), (2, 1)], ids=["narrower", "wider"])
def test_a_crop_that_lags_behind_the_strides_equals_direct_sums(change: tuple[int, int], mask: str):
    x = images((20, 21))
    options = {"smoothness_factor": 3.0, "mask": mask}
    kept = kept_at(x.shape, STRIDES, **options)
    options["kept"] = (kept[0] + change[0], kept[1] + change[1])
    assert_matches_reference(partial(diffstride, **options), x, numpy_reference.diffstride(x, STRIDES, **options))


@every_size
@every_norm
@pytest.mark.parametrize("strides", [(1.0, 2.0), (1.5, 2.7), (9.0, 9.0)])
def test_fixed_spectral_pooling_equals_direct_sums(strides: tuple[float, float], norm: str, size: tuple[int, int]):
    x = images(size)
    expected = numpy_reference.fixed_spectral_pooling(x, strides, norm)
    assert_matches_reference(partial(spectral.fixed_spectral_pooling, strides=strides, norm=norm), x, expected)


@every_size
@every_norm
@pytest.mark.parametrize("output_size", [(6, 3), (5, 6), (1, 2)])
def test_spectral_pooling_equals_direct_sums(output_size: tuple[int, int], norm: str, size: tuple[int, int]):
    x = images(size)
    expected = numpy_reference.spectral_pooling(x, output_size, norm)
    assert_matches_reference(partial(spectral.spectral_pooling, output_lengths=output_size, norm=norm), x, expected)


@every_size
@every_norm
@pytest.mark.parametrize("shrink", [(0, 0), (1, 2), (2, 1), (4, 4)])
def test_spectral_pooling_equals_scipy_resample(shrink: tuple[int, int], norm: str, size: tuple[int, int]):
    x = images(size)
    output_size = (size[0] - shrink[0], size[1] - shrink[1])
    expected = scipy.signal.resample(scipy.signal.resample(x, output_size[0], axis=1), output_size[1], axis=2)
    ratio = np.prod(size) / np.prod(output_size)
    expected *= {"forward": 1.0, "backward": ratio, "ortho": np.sqrt(ratio)}[norm]
    assert_matches_reference(partial(spectral.spectral_pooling, output_lengths=output_size, norm=norm), x, expected)


def test_auto_takes_the_transforms_on_long_axes_only():
    x = tf.constant(images((12, 12)))
    assert_close(diffstride(x), diffstride(x, method="fft").numpy(), 1e-10)
    assert [spectral.resolve_method("auto", 2, n) for n in (2, 224, 512, 513)] == ["matmul"] * 3 + ["fft"]
    assert [spectral.resolve_method(method, 640, 2) for method in ("auto", *ENGINES)] == ["fft", *ENGINES]
    assert spectral.resolve_method("auto", tf.constant(640), tf.constant(640)) == "matmul"


# --- Gradients -------------------------------------------------------------------------------------------------------


def kept_at(shape: tuple[int, ...], strides: tuple[float, ...], **options: Any) -> tuple[int, int]:
    windows = spectral.diffstride_windows(
        *shape[1:3],
        tf.constant(strides, tf.float64),
        **{
            "smoothness_factor": 4.0,
            "cropping": True,
            "lower_limit_stride": None,
            "upper_limit_stride": None,
            "mask": "released",
            "dtype": tf.float64,
            **options,
        },
    )
    return spectral.kept_bins(*windows)


def stride_gradient(
    x: np.ndarray, strides: tuple[float, ...], weigh: np.ndarray | None = None, **options: Any
) -> np.ndarray:
    strides = tf.constant(strides, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(strides)
        y = spectral.diffstride(tf.constant(x), strides, **options)
        loss = tf.reduce_sum(y * (images(tuple(y.shape[1:3]), seed=1) if weigh is None else weigh))
    return tape.gradient(loss, strides).numpy()


@even_and_odd
@every_mask
@every_engine
@pytest.mark.parametrize("strides", [STRIDES, (2.15,)], ids=["two", "shared"])
def test_stride_gradient_equals_finite_differences(
    strides: tuple[float, ...], method: str, mask: str, size: tuple[int, int]
):
    x, options = images(size), {"smoothness_factor": 2.0, "mask": mask, "norm": "ortho", "method": method}
    kept = kept_at(x.shape, strides, smoothness_factor=2.0, mask=mask)
    gradient = stride_gradient(x, strides, kept=kept, **options)

    def loss(strides: np.ndarray) -> float:
        y = diffstride(tf.constant(x), strides, kept=kept, **options)
        return float(tf.reduce_sum(y * images(tuple(y.shape[1:3]), seed=1)))

    step = 1e-5
    shifts = step * np.eye(len(strides))
    differences = [(loss(strides + shift) - loss(strides - shift)) / (2 * step) for shift in shifts]
    assert np.abs(differences).min() > 1e-3
    assert_close(gradient, np.array(differences), 1e-6)
    assert_close(gradient, stride_gradient(x, strides, **options), 1e-12)


@even_and_odd
@every_mask
@pytest.mark.parametrize("smoothness_factor", [0.0, 1.5, 4.0])
def test_gradients_do_not_depend_on_how_the_frequencies_are_split(
    smoothness_factor: float, mask: str, size: tuple[int, int]
):
    x, strides = tf.constant(images(size)), tf.constant(STRIDES, tf.float64)

    def gradients(**options: Any) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch([x, strides])
            y = spectral.diffstride(x, strides, smoothness_factor=smoothness_factor, mask=mask, **options)
            loss = tf.reduce_sum(y**3)
        return tape.gradient(loss, [x, strides], unconnected_gradients="zero")

    expected = gradients(method="fft")
    for split_from in (2, matmul.SPLIT_FROM):
        with mock.patch.object(matmul, "SPLIT_FROM", split_from):
            for options in ({}, {"trainable": False}):
                for gradient, reference in zip(gradients(method="matmul", **options), expected):
                    assert_close(gradient, reference.numpy(), 1e-10)


@every_mask
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_the_gradient_to_the_strides_has_a_gradient(batch: int, mask: str):
    x = tf.constant(np.random.default_rng(0).normal(size=(batch, 12, 11, 3)))
    strides = tf.constant(STRIDES, tf.float64)
    second = {}
    for method in ENGINES:
        with tf.GradientTape() as outer:
            outer.watch([x, strides])
            with tf.GradientTape() as inner:
                inner.watch(strides)
                loss = tf.reduce_sum(spectral.diffstride(x, strides, mask=mask, method=method) ** 3)
            penalty = tf.reduce_sum(inner.gradient(loss, strides) ** 2)
        second[method] = outer.gradient(penalty, [x, strides])
    for by_products, fft in zip(second["matmul"], second["fft"]):
        assert np.abs(fft).max() > 0
        assert_close(by_products, fft.numpy(), 1e-9)


POOLS: dict[str, Callable[..., tf.Tensor]] = {
    "diffstride released": diffstride,
    "diffstride symmetric": partial(diffstride, mask="symmetric"),
    "fixed_spectral_pooling": partial(spectral.fixed_spectral_pooling, strides=STRIDES),
    "spectral_pooling": partial(spectral.spectral_pooling, output_lengths=(4, 5)),
}
every_pool = pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS.keys())


@even_and_odd
@every_data_format
@every_engine
@every_pool
def test_input_gradient_is_the_adjoint(
    pool: Callable[..., tf.Tensor], method: str, data_format: str, size: tuple[int, int]
):
    here, elsewhere = (tf.constant(in_format(images(size, seed), data_format)) for seed in (2, 3))
    options = {"method": method, "data_format": data_format, "norm": "ortho"}
    with tf.GradientTape() as tape:
        tape.watch(here)
        y = pool(here, **options)
    upstream = tf.constant(np.random.default_rng(4).normal(size=y.shape))
    adjoint = tape.gradient(y, here, output_gradients=upstream)
    forward = tf.reduce_sum(upstream * pool(elsewhere, **options))
    np.testing.assert_allclose(tf.reduce_sum(adjoint * elsewhere), forward, rtol=1e-10)


@every_mask
@every_engine
@pytest.mark.parametrize("strides", [(1.0, 1.1), (1.0,)], ids=["two", "shared"])
def test_gradient_passes_straight_through_the_minimum_stride(strides: tuple[float, ...], method: str, mask: str):
    x = images((16, 16))
    minimum = (16 / 12,) * len(strides)
    gradient = stride_gradient(x, strides, mask=mask, method=method)
    assert np.abs(gradient).min() > 1e-3
    assert_close(gradient, stride_gradient(x, minimum, mask=mask, method=method), 1e-12)


@every_mask
@every_engine
@pytest.mark.parametrize("stride", [1.0, 1.8])
def test_a_map_smaller_than_the_ramp_has_finite_gradients(stride: float, method: str, mask: str):
    gradient = stride_gradient(images((6, 6)), (stride, stride), smoothness_factor=8.0, mask=mask, method=method)
    assert np.all(np.isfinite(gradient))
    assert stride == 1.0 or np.abs(gradient).min() > 1e-3


@every_engine
def test_a_hard_crop_has_no_stride_gradient(method: str):
    x = tf.constant(images((12, 12)))
    strides = tf.constant(STRIDES, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(strides)
        y = spectral.diffstride(x, strides, smoothness_factor=0.0, method=method)
    gradient = tape.gradient(y, strides, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    np.testing.assert_array_equal(gradient, [0, 0])


# --- Precision, dynamic shapes, scale --------------------------------------------------------------------------------


@every_size
@every_pool
@pytest.mark.parametrize(("dtype", "tolerance"), [(tf.bfloat16, 2e-2), (tf.float16, 3e-3)], ids=["bfloat16", "float16"])
def test_engines_agree_in_half_precision(
    dtype: tf.DType, tolerance: float, pool: Callable[..., tf.Tensor], size: tuple[int, int]
):
    x = tf.cast(images(size), dtype)
    exact = pool(tf.cast(x, tf.float64), norm="forward").numpy()
    for method in ENGINES:
        for data_format in DATA_FORMATS:
            y = pool(
                tf.cast(in_format(x.numpy(), data_format), dtype),
                norm="forward",
                method=method,
                data_format=data_format,
            )
            assert y.dtype == dtype
            assert_close(tf.cast(y, tf.float64), in_format(exact, data_format), tolerance)


@pytest.mark.parametrize(
    ("method", "data_format"),
    [("fft", "channels_last"), ("matmul", "channels_last"), ("matmul", "channels_first")],
)
@every_pool
def test_unknown_sizes_give_what_known_sizes_give(pool: Callable[..., tf.Tensor], method: str, data_format: str):
    options = {"method": method, "data_format": data_format, "norm": "ortho"}
    traced = tf.function(
        lambda x: pool(x, **options), input_signature=[tf.TensorSpec([None, None, None, None], tf.float32)]
    )
    for size in SIZES.values():
        x = tf.constant(in_format(images(size), data_format), tf.float32)
        assert_close(traced(x), pool(x, **options).numpy(), 1e-6)
    assert traced.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
@pytest.mark.parametrize("strides", [(1.0, 1.0), (1.0,), (1.9, 2.3)])
@every_mask
def test_unknown_sizes_have_the_minimum_stride_of_known_sizes(mask: str, strides: tuple[float, ...], dtype: tf.DType):
    traced = tf.function(
        partial(diffstride, strides=strides, mask=mask),
        input_signature=[tf.TensorSpec([None, None, None, None], dtype)],
    )
    for size in [(4, 4), (3, 9), (7, 12), (13, 16)]:
        x = tf.constant(images(size), dtype)
        expected = diffstride(x, strides, mask=mask)
        assert_close(traced(x), expected.numpy(), 1e-6 if dtype == tf.float32 else 1e-12)


@even_and_odd
@every_engine
@every_norm
@every_pool
def test_norm_says_what_becomes_of_the_mean(
    pool: Callable[..., tf.Tensor], norm: str, method: str, size: tuple[int, int]
):
    x = images(size) + 1.0
    y = pool(tf.constant(x), norm=norm, method=method).numpy()
    ratio = np.prod(size) / np.prod(y.shape[1:3])
    factor = {"forward": 1.0, "backward": ratio, "ortho": np.sqrt(ratio)}[norm]
    np.testing.assert_allclose(y.mean((1, 2)), factor * x.mean((1, 2)), rtol=1e-10)
    ones = pool(tf.ones([1, *size, 1], tf.float64), norm=norm, method=method)
    np.testing.assert_allclose(ones, np.full(ones.shape, factor), rtol=1e-10)


@pytest.mark.parametrize(
    ("size", "stride", "expected"), [(32, 1.0, 32), (32, 2.0, 24), (24, 2.0, 20), (20, 2.0, 18), (18, 1.0, 18)]
)
def test_windows_keep_the_sizes_of_the_resnet(size: int, stride: float, expected: int):
    rows, columns = spectral.diffstride_windows(
        size,
        size,
        tf.constant([stride, stride]),
        smoothness_factor=4.0,
        cropping=True,
        lower_limit_stride=None,
        upper_limit_stride=None,
        mask="released",
    )
    assert (int(rows.output_length), int(columns.output_length)) == (expected, expected)
    assert spectral.kept_bins(rows, columns) == (expected, expected // 2 + 1)


@pytest.mark.parametrize(
    ("size", "expected"), [((5, 7), [1, 2, 2, 1, 0]), ((6, 7), [0, 1, 2, 2, 1, 0]), ((2, 7), [0, 0])]
)
def test_released_row_positions(size: tuple[int, int], expected: list[int]):
    rows, columns = spectral.diffstride_windows(
        *size,
        tf.constant([100.0, 100.0]),
        smoothness_factor=10.0,
        cropping=False,
        lower_limit_stride=None,
        upper_limit_stride=None,
        mask="released",
    )
    np.testing.assert_allclose(rows.weights, [min(1.0, (11 - p) / 10) for p in expected], rtol=1e-6)
    np.testing.assert_allclose(columns.weights, [min(1.0, (12 - p) / 10) for p in range(4)], rtol=1e-6)


# --- XLA -------------------------------------------------------------------------------------------------------------


def with_gradients(x: tf.Tensor, strides: tf.Tensor, **options: Any) -> list[tf.Tensor]:
    """The pooled map, and the gradients of half its sum of squares to the inputs and the strides."""
    pools = {
        "diffstride": lambda: spectral.diffstride(x, strides, mask=mask, kept=kept, **options),
        "fixed": lambda: spectral.fixed_spectral_pooling(x, STRIDES, **options),
        "spectral": lambda: spectral.spectral_pooling(x, (6, 5), **options),
    }
    name, mask, kept = options.pop("name"), options.pop("mask", None), options.pop("kept", None)
    with tf.GradientTape() as tape:
        tape.watch([x, strides])
        y = pools[name]()
        loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 2) / 2
    return [y, *tape.gradient(loss, [x, strides], unconnected_gradients="zero")]


@pytest.mark.parametrize(
    ("method", "data_format", "dtype"),
    [(method, data_format, tf.float32) for method in ENGINES for data_format in DATA_FORMATS]
    + [("matmul", "channels_last", tf.bfloat16)],
    ids=lambda value: getattr(value, "name", value),
)
@pytest.mark.parametrize(
    "options",
    [{"name": "diffstride", "mask": mask} for mask in MASKS] + [{"name": "fixed"}, {"name": "spectral"}],
    ids=["released", "symmetric", "fixed", "spectral"],
)
def test_xla_gives_the_same(options: dict[str, Any], method: str, data_format: str, dtype: tf.DType):
    x = tf.cast(in_format(images(SIZES["odd"]), data_format), dtype)
    if "mask" in options:
        options = {**options, "kept": kept_at((2, *SIZES["odd"], 3), STRIDES, mask=options["mask"])}
    options = {**options, "method": method, "data_format": data_format}
    strides = tf.constant(STRIDES, tf.float32)
    compiled = tf.function(partial(with_gradients, **options), jit_compile=True)(x, strides)
    for actual, expected in zip(compiled, with_gradients(x, strides, **options)):
        assert actual.dtype == expected.dtype
        assert_close(
            tf.cast(actual, tf.float32), tf.cast(expected, tf.float32).numpy(), 1e-5 if dtype == tf.float32 else 3e-2
        )


@every_mask
def test_xla_is_asked_for_the_highest_precision(mask: str):
    x, strides = tf.constant(images((12, 12)), tf.float32), tf.constant(STRIDES, tf.float32)
    options = {"name": "diffstride", "mask": mask, "kept": kept_at(x.shape, STRIDES, mask=mask), "method": "matmul"}
    traced = tf.function(partial(with_gradients, **options), jit_compile=True)
    text = traced.experimental_get_compiler_ir(x, strides)(stage="stablehlo")
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) >= 8
    for line in products:
        assert "precision = [HIGHEST, HIGHEST]" in line or line.count("precision HIGHEST") == 2, line


def test_graphs_for_xla_are_known_at_any_depth():
    seen = {}

    @tf.custom_gradient
    def identity(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        seen["custom gradient"] = spectral.needs_static_shapes()

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            seen["backward"] = spectral.needs_static_shapes()
            return upstream

        return identity_of(x), gradient

    @tf.function
    def identity_of(x: tf.Tensor) -> tf.Tensor:
        seen["nested"] = spectral.needs_static_shapes()
        return tf.identity(x)

    def step(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.cond(x > 0, lambda: identity(x), lambda: x)
        return tape.gradient(y, x)

    for jit_compile in (True, False):
        seen.clear()
        identity_of = tf.function(identity_of.python_function)
        tf.function(step, jit_compile=jit_compile)(tf.constant(1.0))
        assert seen == dict.fromkeys(("custom gradient", "nested", "backward"), jit_compile)
    assert not spectral.needs_static_shapes()
