"""Extreme inputs: large, small, not finite."""

from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf
from support.property_cases import (
    NEEDED,
    SLOW,
    SPOILT,
    Case,
    Layer,
    as_float64,
    assert_only_spoilt_channels_differ,
    axes_of,
    call,
    channels_last,
    every_example,
    every_fourier_layer,
    every_layer,
    in_format,
    input_gradient,
    layers,
    most_layers_slowly,
    spoil,
    with_slow_ones,
)

POLICIES = ("float32", "mixed_float16", "mixed_bfloat16", "float64")

every_policy = pytest.mark.parametrize(
    "policy", [POLICIES[0], *(pytest.param(policy, marks=SLOW) for policy in POLICIES[1:])]
)


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
    case = Case(cls, {"norm": norm, **NEEDED.get(cls, {})}, size[: axes_of(cls)])
    for layer in layers(case, dtype="mixed_float16"):
        small = call(layer, np.ones(case.shape), layer.data_format)
        value = np.floor(6e4 / small.max())
        np.testing.assert_allclose(call(layer, np.full(case.shape, value), layer.data_format), value * small, rtol=5e-3)
