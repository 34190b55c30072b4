"""What the layers refuse, and what they say."""

import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from support.layer_cases import SHAPE, every_class, every_class_with_strides, images, in_format

from diffstride_hybrid import CropRefresh, DiffStride, FixedSpectralPooling, SpatialPooling, SpectralPooling

every_fourier_class = pytest.mark.parametrize("cls", [DiffStride, FixedSpectralPooling, SpectralPooling])


# --- Errors ----------------------------------------------------------------------------------------------------------
@every_class_with_strides
@pytest.mark.parametrize(
    ("strides", "error", "shown"),
    [
        (0.5, ValueError, "0.5"),
        ((2, 0.5), ValueError, "0.5"),
        (0, ValueError, "0"),
        (-2.0, ValueError, "-2.0"),
        (float("nan"), ValueError, "nan"),
        ((float("nan"), 2), ValueError, "nan"),
        (float("inf"), ValueError, "inf"),
        (True, TypeError, "True"),
        ((2, True), TypeError, "True"),
        ("2", TypeError, "'2'"),
        (("2", 2), TypeError, "'2'"),
        ((2,), TypeError, r"\(2,\)"),
        ((2, 2, 2), TypeError, r"\(2, 2, 2\)"),
        (None, TypeError, "None"),
    ],
)
def test_strides_must_be_one_or_two_finite_numbers_of_at_least_1(
    strides: Any, error: type[Exception], shown: str, cls: type[keras.layers.Layer]
):
    allowed = "finite and at least 1" if error is ValueError else "number"
    with pytest.raises(error, match=rf"strides must be .*{allowed}.*got {shown}"):
        cls(strides=strides)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DiffStride(smoothness_factor=-1), ValueError, "smoothness_factor must be .*at least 0, got -1"),
        (lambda: DiffStride(smoothness_factor=float("nan")), ValueError, "smoothness_factor must be finite.*got nan"),
        (lambda: DiffStride(smoothness_factor="4"), TypeError, "smoothness_factor must be a number, got '4'"),
        (lambda: DiffStride(cropping="yes"), TypeError, "cropping must be True or False, got 'yes'"),
        (lambda: DiffStride(static_crop=1), TypeError, "static_crop must be True or False, got 1"),
        (lambda: DiffStride(shared_stride=None), TypeError, "shared_stride must be True or False, got None"),
        (lambda: DiffStride((2, 3), shared_stride=True), ValueError, r"shared_stride.* one stride.*\(2.0, 3.0\)"),
        (lambda: DiffStride(lower_limit_stride=0.5), ValueError, "lower_limit_stride must be .*at least 1, got 0.5"),
        (lambda: DiffStride(upper_limit_stride=0.5), ValueError, "upper_limit_stride must be .*at least 1, got 0.5"),
        (lambda: DiffStride(upper_limit_stride="3"), TypeError, "upper_limit_stride must be a number, got '3'"),
        (
            lambda: DiffStride(lower_limit_stride=3, upper_limit_stride=2),
            ValueError,
            "lower_limit_stride must not exceed upper_limit_stride, got 3 and 2",
        ),
        (lambda: DiffStride(mask="hard"), ValueError, "mask must be one of 'released', 'symmetric', got 'hard'"),
        (lambda: SpectralPooling(output_size=0), ValueError, "output_size must be at least 1.*got 0"),
        (lambda: SpectralPooling(output_size=(4, 0)), ValueError, r"output_size must be at least 1.*got \(4, 0\)"),
        (lambda: SpectralPooling(output_size=4.5), TypeError, "output_size must be a whole number.*got 4.5"),
        (lambda: SpectralPooling(output_size=True), TypeError, "output_size must be a whole number.*got True"),
        (lambda: SpectralPooling(output_size=(4, 4, 4)), TypeError, r"output_size must be .*got \(4, 4, 4\)"),
        (
            lambda: SpatialPooling(2, strides=1.5),
            ValueError,
            r"whole strides if pool_size is \(2, 2\), got \(1.5, 1.5\)",
        ),
        (lambda: SpatialPooling((1, 2), strides=(2, 2.5)), ValueError, r"whole strides.*got \(2.0, 2.5\)"),
        (lambda: SpatialPooling(strides=0.5), ValueError, "strides must be .*at least 1, got 0.5"),
        (lambda: CropRefresh(every_steps=0), ValueError, "every_steps must be a whole number of at least 1, got 0"),
        (lambda: SpatialPooling(pool_size=0), ValueError, "pool_size must be at least 1.*got 0"),
        (lambda: SpatialPooling(pool_size="big"), TypeError, "pool_size must be a whole number.*got 'big'"),
        (lambda: SpatialPooling(padding="most"), ValueError, "padding.*'same'.*'valid'.*'most'"),
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], keras.layers.Layer], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        make()


@every_class
def test_unknown_data_format_is_named(cls: type[keras.layers.Layer]):
    with pytest.raises(ValueError, match=r"data_format.* must be one of.*nhwc") as error:
        cls(data_format="nhwc")
    assert {"channels_last", "channels_first"} <= set(re.findall(r"\w+", str(error.value)))


@every_fourier_class
@pytest.mark.parametrize(
    ("argument", "allowed"),
    [("norm", "'backward', 'forward', 'ortho'"), ("method", "'auto', 'fft', 'matmul'")],
)
def test_unknown_options_are_named(cls: type[keras.layers.Layer], argument: str, allowed: str):
    with pytest.raises(ValueError, match=f"{argument} must be one of {allowed}, got 'other'"):
        cls(**{argument: "other"})


@pytest.mark.parametrize("cls", [FixedSpectralPooling, SpectralPooling])
@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_a_map_without_rows_or_columns_is_too_small(cls: type[keras.layers.Layer], size: tuple[int, int]):
    for data_format in ("channels_last", "channels_first"):
        shape = in_format((None, *size, 3), data_format)
        with pytest.raises(ValueError, match=rf"{cls.__name__} .*at least 1x1 samples.*\(None, {shape[1]}, {shape[2]}"):
            cls(data_format=data_format).build(shape)


@pytest.mark.parametrize("cls", [FixedSpectralPooling, SpectralPooling])
@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_a_map_that_turns_out_too_small_is_refused(cls: type[keras.layers.Layer], size: tuple[int, int]):
    layer = cls()
    layer.build((None, None, None, 3))
    with pytest.raises(ValueError, match=f"{cls.__name__} .*at least 1x1 samples"):
        layer(images((2, *size, 3)))


@every_class
@pytest.mark.parametrize("shape", [(2, 12, 14), (2, 12, 14, 3, 1), (2, 12)])
def test_wrong_rank_is_named(cls: type[keras.layers.Layer], shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"(4 dimensions|ndim=4)") as error:
        cls()(images(shape))
    assert str(shape) in str(error.value)
    with pytest.raises(ValueError, match=r"(4 dimensions|ndim=4)"):
        cls()(keras.Input(shape[1:]))


@every_class
@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_integer_images_are_refused_at_once(cls: type[keras.layers.Layer], dtype: str):
    message = f"{cls.__name__} needs floating-point input, got {dtype}.*Rescaling"
    with pytest.raises(TypeError, match=message):
        cls()(np.ones(SHAPE, dtype))
    with pytest.raises(TypeError, match=message):
        cls()(keras.Input(SHAPE[1:], dtype=dtype))


@pytest.mark.parametrize("method", ["fft", "matmul"])
def test_output_size_must_not_exceed_the_map(method: str):
    layer = SpectralPooling(output_size=(12, 15), method=method)
    message = r"output_size must not exceed.*\(12, 15\).*\(12, 14\)"
    with pytest.raises(ValueError, match=message):
        layer.build(SHAPE)
    with pytest.raises(ValueError, match=message):
        SpectralPooling(output_size=(12, 15), method=method)(keras.Input(SHAPE[1:]))
    layer = SpectralPooling(output_size=(12, 15), method=method)
    layer.build((None, None, None, 3))
    with pytest.raises(ValueError, match=message):
        layer(images())


def test_static_crop_needs_a_known_size():
    for shape in [(None, None, None, 3), (None, 12, None, 3)]:
        with pytest.raises(ValueError, match=r"A static crop needs a known height and width, got \((None|12), None"):
            DiffStride(static_crop=True).build(shape)
