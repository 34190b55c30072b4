"""Half precision, long axes, unknown sizes."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import tensorflow as tf
from support.spectral_cases import (
    DATA_FORMATS,
    ENGINES,
    SIZES,
    assert_close,
    diffstride,
    even_and_odd,
    every_engine,
    every_mask,
    every_norm,
    every_pool,
    every_size,
    images,
    in_format,
)

from diffstride_hybrid import spectral


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


@pytest.mark.parametrize("mask", ["released", "symmetric"])
def test_a_ramp_that_float32_cannot_tell_from_none_counts_as_none(mask: str):
    """In float64 too, where a threshold that is whole would keep a bin of weight 0 more."""

    def windows(smoothness_factor: float) -> list[list[float]]:
        made = spectral.diffstride_windows(
            *(16, 12),
            tf.constant([2.0, 2.0], tf.float64),
            smoothness_factor=smoothness_factor,
            cropping=True,
            lower_limit_stride=None,
            upper_limit_stride=None,
            mask=mask,
            dtype="float64",
        )
        return [window.weights.numpy().tolist() for window in made]

    assert windows(1e-9) == windows(0.0)
