"""`SpectralResizing` and its twin for signals: to any size, and to that of another map."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import scipy.signal
import tensorflow as tf

from diffstride_hybrid import DiffStride, SpectralPooling, SpectralResizing, SpectralResizing1D, macs
from diffstride_hybrid.model_tools.exporting import export, load_export

RNG = np.random.default_rng(0)

both_engines = pytest.mark.parametrize("method", ["fft", "matmul"])


def maps(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype("float32")


def resampled(x: np.ndarray, *lengths: int) -> np.ndarray:
    x = x.astype("float64")
    for axis, length in enumerate(lengths, 1):
        x = scipy.signal.resample(x, length, axis=axis)
    return x


@both_engines
def test_it_equals_scipy_at_many_sizes(method: str):
    for _ in range(100):
        height, width, rows, columns = (int(n) for n in RNG.integers(1, 70, 4))
        x = maps(2, height, width, 3)
        layer = SpectralResizing((rows, columns), method=method)
        np.testing.assert_allclose(layer(x), resampled(x, rows, columns), atol=2e-5)
        signal_layer = SpectralResizing1D(rows, method=method)
        np.testing.assert_allclose(signal_layer(x[:, :, 0]), resampled(x[:, :, 0], rows), atol=2e-5)


@both_engines
@pytest.mark.parametrize("sizes", [((4, 5), (7, 8)), ((6, 7), (4, 3)), ((5, 4), (5, 9))])
def test_gradients_equal_finite_differences(sizes: tuple[tuple[int, int], tuple[int, int]], method: str):
    before, after = sizes
    layer = SpectralResizing(after, method=method, dtype="float64")
    x = tf.constant(RNG.normal(size=(1, *before, 2)))
    analytic, numeric = tf.test.compute_gradient(lambda x: tf.sin(layer(x)), [x])
    np.testing.assert_allclose(analytic[0], numeric[0], atol=1e-6)


@both_engines
@pytest.mark.parametrize("size", [(8, 9), (7, 6), (1, 4)])
def test_what_was_enlarged_comes_back(size: tuple[int, int], method: str):
    x = maps(2, *size, 3)
    for larger in ((size[0] + 1, size[1] + 2), (2 * size[0], 3 * size[1]), (31, 32)):
        enlarged = SpectralResizing(larger, method=method)(x)
        np.testing.assert_allclose(SpectralResizing(size, method=method)(enlarged), x, atol=1e-5)


def test_to_fewer_samples_it_is_spectral_pooling():
    x = maps(2, 12, 13, 3)
    np.testing.assert_allclose(
        SpectralResizing((6, 7))(x), SpectralPooling(output_size=(6, 7), norm="forward")(x), atol=1e-6
    )


@pytest.mark.parametrize("mask", ["released", "symmetric"])
def test_behind_diffstride_it_gives_back_what_lies_inside_the_window(mask: str):
    smooth = SpectralResizing((32, 30))(maps(2, 7, 7, 3))
    pooling = DiffStride(2.0, mask=mask, norm="forward")
    pooled = pooling(smooth)
    assert pooled.shape[1] < 32 and pooled.shape[2] < 30
    np.testing.assert_allclose(SpectralResizing()(pooled, like=smooth), smooth, atol=1e-5)


# --- The size of another map -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("known", [True, False])
def test_it_takes_the_size_of_another_map(known: bool, data_format: str):
    last = data_format == "channels_last"
    x, other = (maps(2, 9, 8, 3), maps(1, 14, 5, 1)) if last else (maps(2, 3, 9, 8), maps(1, 1, 14, 5))
    layer = SpectralResizing(data_format=data_format)
    specs = [tf.TensorSpec(each.shape if known else [None] * 4, tf.float32) for each in (x, other)]
    outputs = tf.function(lambda x, other: layer(x, like=other), input_signature=specs)(x, other)
    expected = SpectralResizing((14, 5), data_format=data_format)(x)
    np.testing.assert_allclose(outputs, expected, atol=1e-6)


def test_signals_take_the_length_of_other_signals():
    x, other = maps(2, 40, 3), maps(2, 100, 1)
    np.testing.assert_allclose(SpectralResizing1D()(x, like=other), SpectralResizing1D(100)(x), atol=1e-6)
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, SpectralResizing1D()(keras.layers.AveragePooling1D(2)(inputs), like=inputs))
    assert model.output_shape == (None, None, 3)
    assert model(maps(1, 41, 3)).shape == (1, 41, 3)


def encoder_and_decoder(
    size: tuple[int | None, int | None], data_format: str = "channels_last", **options: Any
) -> keras.Model:
    """A map that is pooled by a learned stride, and enlarged again to meet what it was."""
    axis = -1 if data_format == "channels_last" else 1
    inputs = keras.Input((*size, 3) if axis == -1 else (3, *size))
    skip = keras.layers.Conv2D(4, 3, padding="same", data_format=data_format)(inputs)
    x = DiffStride(2.0, smoothness_factor=1.0, norm="forward", data_format=data_format, **options)(skip)
    x = keras.layers.Conv2D(4, 3, padding="same", activation="relu", data_format=data_format)(x)
    x = SpectralResizing(data_format=data_format)(x, like=skip)
    return keras.Model(inputs, keras.layers.Concatenate(axis)([skip, x]))


@pytest.mark.parametrize("size", [(24, 21), (None, None)])
def test_a_network_with_a_learned_stride_trains_saves_and_loads(size: tuple[int | None, int | None], tmp_path: Path):
    model, x = encoder_and_decoder(size), maps(2, 24, 21, 3)
    assert model.output_shape == (None, *size, 8)
    (pooling,) = (layer for layer in model.layers if isinstance(layer, DiffStride))
    before = pooling.strides.numpy()
    model.compile(keras.optimizers.SGD(1.0), "mse")
    model.fit(x, maps(2, 24, 21, 8), verbose=0)
    assert np.all(pooling.strides.numpy() != before)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))


def test_channels_first_networks_meet():
    model = encoder_and_decoder((24, 21), "channels_first")
    assert model.output_shape == (None, 8, 24, 21)


def test_xla_compiles_it_at_known_sizes():
    model, x = encoder_and_decoder((24, 21), static_crop=True), maps(2, 24, 21, 3)
    expected = model(x)
    compiled = tf.function(model, jit_compile=True)
    np.testing.assert_allclose(compiled(x), expected, atol=1e-4)


def test_it_is_exported_as_constants(tmp_path: Path):
    model, x = encoder_and_decoder((24, 21)), maps(2, 24, 21, 3)
    export(model, tmp_path / "saved", "saved_model", x.shape[1:])
    np.testing.assert_allclose(load_export(tmp_path / "saved", "saved_model")(x), model(x), atol=1e-5)


def test_its_products_are_counted():
    inputs = keras.Input((8, 10, 3))
    cost = macs(keras.Model(inputs, SpectralResizing((16, 5))(inputs)))
    assert cost.pooling_macs == 3 * (16 * 8 * 10 + 16 * 10 * 5)
    assert list(cost.pooling_sizes().values()) == [((8, 10), (16, 5))]
    signals = keras.Input((8, 3))
    assert macs(keras.Model(signals, SpectralResizing1D(16)(signals))).pooling_macs == 3 * 8 * 16


# --- Refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [SpectralResizing, SpectralResizing1D])
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda cls: cls(3, 2.0), ValueError, r"Give output_size or scale, not both\."),
        (lambda cls: cls(0), ValueError, "output_size must be at least 1"),
        (lambda cls: cls(scale=0.0), ValueError, "scale must be finite and at least 1e-06, got 0.0"),
        (lambda cls: cls(scale="2"), TypeError, "scale must be a number, got '2'"),
        (lambda cls: cls(norm="none"), ValueError, "norm must be one of"),
    ],
)
def test_a_wrong_argument_is_named(
    make: Callable[[Any], Any], error: type[Exception], message: str, cls: type[keras.layers.Layer]
):
    with pytest.raises(error, match=message):
        make(cls)


@pytest.mark.parametrize("symbolic", [True, False])
def test_no_size_and_two_sizes_are_refused(symbolic: bool):
    x = keras.Input((8, 8, 3)) if symbolic else maps(1, 8, 8, 3)
    with pytest.raises(ValueError, match="neither output_size nor scale, so call it with like=another_map"):
        SpectralResizing()(x)
    with pytest.raises(ValueError, match="has an output_size or scale of its own, so it takes no `like`"):
        SpectralResizing(scale=2.0)(x, like=x)
    with pytest.raises(ValueError, match="scale must be one number or a pair"):
        SpectralResizing(scale=(1.0, 2.0, 3.0))


def test_the_other_map_may_be_the_second_argument():
    inputs = keras.Input((9, 8, 3))
    pooled = SpectralPooling(2.0)(inputs)
    assert SpectralResizing()(pooled, inputs).shape == (None, 9, 8, 3)
    x, other = maps(1, 5, 4, 2), maps(1, 9, 8, 3)
    np.testing.assert_array_equal(SpectralResizing()(x, other), SpectralResizing()(x, like=other))


@pytest.mark.parametrize("symbolic", [True, False])
@pytest.mark.parametrize("cls", [SpectralResizing, SpectralResizing1D])
def test_another_map_of_another_rank_is_refused(cls: type[keras.layers.Layer], symbolic: bool):
    a_map, signals = ((keras.Input(shape) if symbolic else maps(1, *shape)) for shape in [(8, 8, 3), (9, 3)])
    x, other = (a_map, signals) if cls is SpectralResizing else (signals, a_map)
    with pytest.raises(ValueError, match=r"needs a `like` of \d dimensions, as its input has, got \("):
        cls()(x, like=other)


def test_constants_need_a_size():
    x = maps(1, 8, 8, 3)
    with pytest.raises(ValueError, match="neither output_size nor scale"):
        SpectralResizing().constant_call(tf.constant(x))
    with pytest.raises(ValueError, match="so it takes no `like`"):
        SpectralResizing(scale=2.0).constant_call(tf.constant(x), tf.constant(x))


@pytest.mark.parametrize(("cls", "shape"), [(SpectralResizing, (2, 9, 8, 3)), (SpectralResizing1D, (2, 9, 3))])
def test_constants_of_float64_are_exact(cls: type[keras.layers.Layer], shape: tuple[int, ...]):
    layer, x = cls(13, dtype="float64"), tf.constant(RNG.normal(size=shape))
    np.testing.assert_allclose(layer.constant_call(x), layer(x), atol=1e-13)
