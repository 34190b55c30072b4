"""Gradients equal finite differences, in both engines."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from support.spectral_cases import (
    DATA_FORMATS,
    ENGINES,
    STRIDES,
    assert_close,
    diffstride,
    even_and_odd,
    every_engine,
    every_mask,
    every_pool,
    images,
    in_format,
    kept_at,
)

from diffstride_hybrid import spectral
from diffstride_hybrid.spectral.tensorflow import matmul

every_data_format = pytest.mark.parametrize("data_format", DATA_FORMATS)


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
