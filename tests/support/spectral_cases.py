"""Reference cases of the released code, and how tensors are compared."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from diffstride_hybrid import spectral

SIZES = {"even": (12, 12), "odd": (11, 13), "tall": (15, 6), "wide": (6, 14)}
ENGINES = ("fft", "matmul")
MASKS = ("released", "symmetric")
NORMS = ("backward", "forward", "ortho")
DATA_FORMATS = ("channels_last", "channels_first")
STRIDES = (1.9, 2.3)

every_engine = pytest.mark.parametrize("method", ENGINES)
every_mask = pytest.mark.parametrize("mask", MASKS)
every_norm = pytest.mark.parametrize("norm", NORMS)

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


def diffstride(x: tf.Tensor, strides: tuple[float, ...] = STRIDES, **options: Any) -> tf.Tensor:
    strides = tf.constant(strides, tf.float64 if x.dtype == tf.float64 else tf.float32)
    return spectral.diffstride(x, strides, **options)


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


POOLS: dict[str, Callable[..., tf.Tensor]] = {
    "diffstride released": diffstride,
    "diffstride symmetric": partial(diffstride, mask="symmetric"),
    "fixed_spectral_pooling": partial(spectral.fixed_spectral_pooling, strides=STRIDES),
    "spectral_pooling": partial(spectral.spectral_pooling, output_lengths=(4, 5)),
}
every_pool = pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS.keys())
