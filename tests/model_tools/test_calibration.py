"""Statistics of batch normalization that are taken anew after a network was changed."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.swapped_models import disturbed

from diffstride_hybrid import DiffStride, SpectralPooling, recalibrate_normalization, replace_downsampling, resnet18

RNG = np.random.default_rng(0)

IMAGES = RNG.normal(1.0, 3.0, size=(50, 12, 10, 3)).astype("float32")


def convolution(x: keras.KerasTensor, channels: int, **options: Any) -> keras.KerasTensor:
    x = keras.layers.Conv2D(channels, 3, padding="same", **options)(x)
    return keras.layers.BatchNormalization(axis=1 if options.get("data_format") == "channels_first" else -1)(x)


def network() -> keras.Model:
    """Three normalizations behind each other and one beside them, with dropout, which has no part in inference."""
    inputs = keras.Input((12, 10, 3))
    x = keras.layers.ReLU()(convolution(inputs, 4))
    x = keras.layers.Dropout(0.5)(keras.layers.MaxPooling2D()(x))
    y = keras.layers.ReLU()(convolution(x, 6, strides=2))
    y = convolution(y, 6)
    x = keras.layers.Add()([y, convolution(x, 6, strides=2)])
    return disturbed(keras.Model(inputs, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(x))))


def normalizations(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    return [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]


def assert_calibrated(model: keras.Model, images: np.ndarray, axis: int = -1):
    """The statistics are those of the maps that the layers get from the model as it is now."""
    for layer in normalizations(model):
        maps = keras.Model(model.input, layer.input)(images, training=False).numpy()
        maps = np.moveaxis(maps, axis, -1).reshape(-1, maps.shape[axis]).astype("float64")
        np.testing.assert_allclose(layer.moving_mean, maps.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(layer.moving_variance, maps.var(0), rtol=1e-4, atol=1e-5)


GIVEN: dict[str, Callable[[], Any]] = {
    "array": lambda: IMAGES,
    "tensor": lambda: tf.constant(IMAGES),
    "batches": lambda: tf.data.Dataset.from_tensor_slices(IMAGES).batch(16),
    "batches with labels": lambda: tf.data.Dataset.from_tensor_slices((IMAGES, np.zeros(50))).batch(7),
    "a list of batches": lambda: [(IMAGES[:1], 0), (IMAGES[1:1], 0), (IMAGES[1:], 0)],
}


@pytest.mark.parametrize("given", GIVEN)
def test_each_layer_gets_the_statistics_of_its_maps_behind_calibrated_layers(given: str):
    model = network()
    before = [weight.numpy() for weight in model.trainable_variables]
    paths = recalibrate_normalization(model, GIVEN[given]())
    assert sorted(paths) == sorted(layer.name for layer in normalizations(model))
    assert_calibrated(model, IMAGES)
    for weight, value in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(weight, value)


def test_the_channels_are_those_of_the_layers_axis():
    inputs = keras.Input((3, 8, 8))
    pooled = keras.layers.AveragePooling2D(2, data_format="channels_first")(inputs)
    model = keras.Model(inputs, keras.layers.BatchNormalization(axis=1)(pooled))
    images = RNG.normal(1.0, 3.0, size=(20, 3, 8, 8)).astype("float32")
    recalibrate_normalization(model, images, batch_size=6)
    assert_calibrated(model, images, axis=1)


def test_a_layer_that_is_called_twice_gets_the_maps_of_both_calls():
    layer = keras.layers.BatchNormalization()
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, layer(keras.layers.Rescaling(3.0)(layer(inputs))))
    first = RNG.normal(size=(10, 4, 4, 2)).astype("float32")
    second = 3.0 * first / np.sqrt(1.001)  # The layer starts with a mean of 0, a variance of 1 and an epsilon of 0.001.
    assert recalibrate_normalization(model, first) == [layer.name]
    both = np.concatenate([first, second]).reshape(-1, 2)
    np.testing.assert_allclose(layer.moving_mean, both.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, both.var(0), rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", pytest.param("float64", marks=pytest.mark.slow)])
def test_residual_networks_are_calibrated(dtype: str):
    model = disturbed(resnet18(width=2, num_output_classes=3, pooling_cls=DiffStride, dtype=dtype))
    model.build((None, 12, 10, 3))
    before = model(IMAGES, training=False)
    paths = recalibrate_normalization(model, IMAGES)
    assert len(paths) == 1 + 4 * 2 * 2  # The stem, and two in each of two layers of four blocks.
    assert not np.allclose(before, model(IMAGES, training=False))
    # Normalized by the statistics of the batch itself, the outputs are the same.
    trained = model(IMAGES, training=True)
    np.testing.assert_allclose(model(IMAGES, training=False), trained, atol=0.1 if dtype == "mixed_bfloat16" else 1e-3)


def test_a_model_without_normalization_stays_as_it_is():
    model = keras.Sequential([keras.Input((12, 10, 3)), keras.layers.Conv2D(2, 3)])
    assert recalibrate_normalization(model, IMAGES) == []


@pytest.mark.parametrize("images", [IMAGES[:0], [], tf.data.Dataset.from_tensor_slices(IMAGES[:0]).batch(4)])
def test_no_images_are_refused(images: Any):
    with pytest.raises(ValueError, match="needs at least one image, got none"):
        recalibrate_normalization(network(), images)


def test_a_swap_calibrates_and_says_so():
    reports: list[str] = []
    swapped = replace_downsampling(network(), SpectralPooling, calibrate=IMAGES, report=reports.append)
    assert_calibrated(swapped, IMAGES)
    names = ", ".join(recalibrate_normalization(swapped, IMAGES))
    assert reports[0].endswith(f"statistics taken anew: {names}")


def test_steps_that_a_mask_leaves_out_do_not_count():
    parts = [keras.layers.Masking(), keras.layers.BatchNormalization(), keras.layers.LSTM(2)]
    model = keras.Sequential([keras.Input((6, 3)), *parts])
    signals = RNG.normal(2.0, size=(8, 6, 3)).astype("float32")
    signals[:5, 4:] = 0.0
    recalibrate_normalization(model, signals)
    kept = signals[np.any(signals != 0, axis=-1)].astype("float64")
    assert len(kept) == 8 * 6 - 5 * 2
    np.testing.assert_allclose(model.layers[1].moving_mean, kept.mean(0), rtol=1e-5)
    np.testing.assert_allclose(model.layers[1].moving_variance, kept.var(0), rtol=1e-5)
