"""The functions equal direct sums in NumPy and SciPy's resampling."""

from collections.abc import Callable
from functools import partial
from unittest import mock

import numpy as np
import pytest
import scipy.signal
import tensorflow as tf
from support import numpy_reference
from support.spectral_cases import (
    ENGINES,
    STRIDES,
    assert_close,
    diffstride,
    even_and_odd,
    every_mask,
    every_norm,
    every_size,
    images,
    in_format,
    kept_at,
)

from diffstride_hybrid import spectral
from diffstride_hybrid.spectral.tensorflow import matmul
from diffstride_hybrid.spectral.tensorflow.engines import (
    FIXED_MAPS,
    LEARNED_MAPS,
    LEARNED_SIGNALS,
    RESAMPLED_MAPS,
    RESAMPLED_SIGNALS,
    resolve_method,
)


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


def test_auto_takes_the_engine_that_resolve_method_names():
    x = tf.constant(images((12, 12)))
    assert_close(diffstride(x), diffstride(x, method="fft").numpy(), 1e-10)
    for crossover in (LEARNED_MAPS, FIXED_MAPS, RESAMPLED_MAPS):
        assert [resolve_method("auto", crossover, n, n, 64) for n in (2, 32, 4096)] == ["matmul", "matmul", "fft"]
        assert [resolve_method(method, crossover, 640, 2, 1) for method in ENGINES] == [*ENGINES]
    for crossover in (LEARNED_SIGNALS, RESAMPLED_SIGNALS):
        assert [resolve_method("auto", crossover, 1, n, 64) for n in (2, 64, 16_000)] == ["matmul", "matmul", "fft"]


def test_the_engine_may_wait_for_what_is_not_known():
    """The matrices of 256x256x8 maps are worth their cost for many maps."""
    assert [resolve_method("auto", LEARNED_MAPS, 256, 256, 8, batch) for batch in (1, 64)] == ["fft", "matmul"]
    assert resolve_method("auto", LEARNED_MAPS, 256, 256, 8) is None
    assert resolve_method("auto", LEARNED_MAPS, None, 32, 64) is None
    assert resolve_method("auto", LEARNED_MAPS, 32, 32, None, 4) is None
    assert [resolve_method(method, LEARNED_MAPS, None, None, None) for method in ENGINES] == [*ENGINES]
