"""Crops of a fixed size."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.layer_cases import SHAPE, images, result

from diffstride_hybrid import CropRefresh, DiffStride, refresh_crops, spectral
from diffstride_hybrid.model_tools.inspection import diffstride_layers


# --- Static crop -----------------------------------------------------------------------------------------------------
def static_layer(**arguments: Any) -> DiffStride:
    layer = DiffStride((2.5, 3.0), smoothness_factor=2.0, static_crop=True, **arguments)
    layer.build(SHAPE)
    return layer


@pytest.mark.parametrize("mask", ["released", "symmetric"])
def test_refresh_crop_says_whether_the_crop_changed(mask: str):
    layer = static_layer(mask=mask)
    dynamic = DiffStride((2.5, 3.0), smoothness_factor=2.0, mask=mask)
    dynamic.build(SHAPE)
    x = images()
    np.testing.assert_allclose(layer(x), dynamic(x), rtol=1e-5, atol=1e-5)
    assert layer.refresh_crop() is False

    size = layer.compute_output_shape(SHAPE)
    for strides in ([4.0, 6.0], [1.6, 2.0]):
        for either in (layer, dynamic):
            either.strides.assign(strides)
        assert layer(x).shape == layer.compute_output_shape(SHAPE) == dynamic(x).shape != size
        assert layer.refresh_crop() is True
        assert layer.refresh_crop() is False
        np.testing.assert_allclose(layer(x), dynamic(x), rtol=1e-5, atol=1e-5)
        size = layer.compute_output_shape(SHAPE)


def test_a_dynamic_crop_has_nothing_to_refresh():
    layer = DiffStride()
    layer.build(SHAPE)
    layer.strides.assign([5.0, 5.0])
    assert layer.refresh_crop() is False


def test_while_a_crop_is_held_the_window_is_cut_at_its_size():
    layer = static_layer()
    layer.crop.held = layer.crop.ALL
    x = tf.constant(images())
    kept = (10, 6)
    assert layer(x).shape == (2, 10, 10, 3)
    layer.strides.assign([3.0, 2.5])
    expected = spectral.diffstride(x, tf.constant([3.0, 2.5]), smoothness_factor=2.0, kept=kept)
    np.testing.assert_array_equal(layer(x), expected)


@pytest.mark.parametrize("method", ["fft", "matmul"])
@pytest.mark.parametrize("mask", ["released", "symmetric"])
def test_xla_compiles_a_static_crop_and_its_gradients(mask: str, method: str):
    layer = static_layer(mask=mask, method=method)

    def gradients(x: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x) ** 2)
        return [loss, *tape.gradient(loss, [x, layer.strides.value])]

    compiled = tf.function(gradients, jit_compile=True)
    for actual, expected in zip(compiled(tf.constant(images())), gradients(tf.constant(images()))):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_xla_trains_a_model_with_a_static_crop(policy: str):
    keras.config.set_dtype_policy(policy)
    layer = static_layer()
    model = keras.Sequential([keras.Input(SHAPE[1:]), layer, keras.layers.Flatten(), keras.layers.Dense(1)])
    assert model.layers[-1].input.shape == (None, 300)
    model.compile("sgd", "mse", jit_compile=True)
    model.fit(images(), np.zeros([2, 1]), verbose=0)


@keras.saving.register_keras_serializable(package="test_pooling")
class Wrapped(keras.layers.Layer):
    """A layer of a user's own around a pooling."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.pooling = DiffStride((2.5, 3.0), smoothness_factor=2.0, static_crop=True)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.pooling.build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.pooling(inputs)


@pytest.mark.parametrize("refresh", [True, False], ids=["refreshed", "lagging"])
@pytest.mark.parametrize("nesting", ["model", "model in a model", "layer"])
def test_saving_keeps_the_crop(nesting: str, refresh: bool, tmp_path: Path):
    wrapped = Wrapped() if nesting == "layer" else None
    layer = wrapped.pooling if wrapped else DiffStride((2.5, 3.0), smoothness_factor=2.0, static_crop=True)
    inside = keras.Sequential([keras.Input(SHAPE[1:]), layer]) if nesting == "model in a model" else (wrapped or layer)
    model = keras.Sequential([keras.Input(SHAPE[1:]), inside])
    layer.strides.assign([3.5, 2.0])
    if refresh:
        assert layer.refresh_crop()
    else:
        layer.crops = {SHAPE[1:3]: (10, 6)}
    expected = result(model, images())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(result(loaded, images()), expected)
    (other,) = diffstride_layers(loaded)
    assert other.crops == layer.crops


@pytest.mark.parametrize(
    ("saved", "loaded"), [(True, True), (False, True), (True, False)], ids=["both", "to static", "to dynamic"]
)
def test_weights_alone_load_with_and_without_a_static_crop(saved: bool, loaded: bool, tmp_path: Path):
    model, other = (
        keras.Sequential([keras.Input(SHAPE[1:]), DiffStride((2.5, 3.0), smoothness_factor=2.0, static_crop=static)])
        for static in (saved, loaded)
    )
    model.layers[0].strides.assign([3.5, 2.0])
    model.layers[0].refresh_crop()
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(other(images()), model(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask", ["released", "symmetric"])
@pytest.mark.parametrize("size", [(6, 6), (9, 30)])
def test_a_static_crop_is_fixed_for_each_size_of_the_map(size: tuple[int, int], mask: str):
    layer = static_layer(mask=mask)
    dynamic = DiffStride((2.5, 3.0), smoothness_factor=2.0, mask=mask)
    dynamic.build(SHAPE)
    x = images((1, *size, 3))
    np.testing.assert_allclose(layer(x), dynamic(x), rtol=1e-5, atol=1e-5)
    assert layer.compute_output_shape(x.shape) == dynamic(x).shape


# --- The crop that XLA asks for --------------------------------------------------------------------------------------
SIZE_IS_KEPT = pytest.warns(UserWarning, match="CropRefresh lets it follow them")


def test_a_crop_is_dynamic_until_xla_compiles_the_layer():
    layer, inputs = DiffStride((2.5, 3.0), smoothness_factor=2.0), tf.constant(images())
    dynamic = layer(inputs)
    assert not layer.crop_is_static and layer.crops == {}
    with SIZE_IS_KEPT:
        compiled = tf.function(layer, jit_compile=True)(inputs)
    np.testing.assert_allclose(compiled, dynamic, rtol=1e-4, atol=1e-5)
    assert layer.crop_is_static and list(layer.crops) == [inputs.shape[1:3]]
    layer.strides.assign([1.5, 1.5])
    assert layer(inputs).shape[1] > dynamic.shape[1]
    assert layer.refresh_crop()


def test_a_crop_that_must_be_dynamic_is_refused_to_xla():
    layer = DiffStride(static_crop=False, name="pool")
    assert not layer.supports_jit
    layer(images())
    with pytest.raises(ValueError, match=r"pool has static_crop=False: XLA, TPUs and JAX need a static crop"):
        tf.function(layer, jit_compile=True)(tf.constant(images()))


def test_a_crop_that_was_static_stays_so_in_the_file(tmp_path: Path):
    model = keras.Sequential([keras.Input(SHAPE[1:]), DiffStride((2.5, 3.0), smoothness_factor=2.0)])
    with SIZE_IS_KEPT:
        tf.function(model, jit_compile=True)(tf.constant(images()))
    model.layers[0].strides.assign([1.5, 1.5])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].static_crop is None
    assert loaded.layers[0].crops == model.layers[0].crops != {}
    np.testing.assert_array_equal(loaded(images()), model(images()))


@pytest.mark.parametrize("mask", ["released", pytest.param("symmetric", marks=pytest.mark.slow)])
def test_hysteresis_keeps_a_crop_near_the_edge(mask: str):
    layer = DiffStride(2.5, smoothness_factor=2.0, static_crop=True, mask=mask)
    layer.build((None, 40, 40, 1))

    def crop_at(stride: float, hysteresis: float) -> tuple[int, int]:
        layer.strides.assign([stride, stride])
        layer.refresh_crop(hysteresis)
        return layer.crops[40, 40]

    strides = np.linspace(2.0, 3.0, 201)
    asked = [crop_at(stride, 0.0) for stride in strides]
    edges = [(low, high) for low, high, a, b in zip(strides, strides[1:], asked, asked[1:]) if a != b]
    assert len(edges) >= 3
    for low, high in edges:
        before = crop_at(low, 0.0)
        assert crop_at(high, 0.0) != before
        crop_at(low, 0.0)
        assert all(crop_at(stride, 0.02) == before for stride in (high, low, high * 1.01, low * 0.99))
        assert crop_at(high * 1.025, 0.02)[0] < before[0]
        assert crop_at(high * 1.025, 0.02) == crop_at(high * 1.025, 0.0)


# --- Hysteresis concerns training ------------------------------------------------------------------------------------
PAST_AN_EDGE = [2.66, 2.66]
"""Less than 2 % past the edge between 14 and 16 rows, seen from the stride 2.9 on a map of 16x16."""

SMALL = np.random.default_rng(0).normal(size=(4, 16, 16, 1)).astype("float32")


def refreshed_past_an_edge() -> keras.Model:
    pooling = DiffStride(2.9, static_crop=True)
    model = keras.Sequential([keras.Input((16, 16, 1)), pooling, keras.layers.GlobalMaxPooling2D()])
    pooling.strides.assign(PAST_AN_EDGE)
    refresh_crops(model, hysteresis=0.02)
    return model


def at_past_an_edge() -> np.ndarray:
    return DiffStride(PAST_AN_EDGE)(SMALL).numpy().max(axis=(1, 2))


def test_inference_has_the_size_that_the_strides_ask_for_and_training_the_one_held():
    model = refreshed_past_an_edge()
    pooling = model.layers[0]
    assert pooling(SMALL).shape[1] == 16
    assert pooling(SMALL, training=True).shape[1] == 14
    np.testing.assert_allclose(model(SMALL), at_past_an_edge(), rtol=1e-6)
    np.testing.assert_allclose(model.predict(SMALL, verbose=0), at_past_an_edge(), rtol=1e-6)
    assert pooling.crops == {(16, 16): (14, 8)}
    assert not refresh_crops(model, hysteresis=0.02)
    assert refresh_crops(model)


def test_what_inference_has_traced_is_traced_anew_though_training_keeps_its_size():
    pooling = DiffStride(2.9, static_crop=True)
    model = keras.Sequential([keras.Input((16, 16, 1)), pooling, keras.layers.GlobalMaxPooling2D()])
    model.predict(SMALL, verbose=0)
    pooling.strides.assign(PAST_AN_EDGE)
    assert refresh_crops(model, hysteresis=0.02)
    np.testing.assert_allclose(model.predict(SMALL, verbose=0), at_past_an_edge(), rtol=1e-6)


def test_a_model_saved_just_past_an_edge_loads_and_predicts(tmp_path: Path):
    refreshed_past_an_edge().save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(SMALL, verbose=0), at_past_an_edge(), rtol=1e-6)
    np.testing.assert_allclose(loaded(SMALL), at_past_an_edge(), rtol=1e-6)


def test_a_crop_from_a_file_serves_what_is_traced_and_what_is_not():
    """A run saves the crops by which it was evaluated."""
    model = refreshed_past_an_edge()
    pooling = model.layers[0]
    pooling.crops = {(16, 16): (14, 8)}
    held = model(SMALL)
    assert np.abs(held - at_past_an_edge()).max() > 1e-3
    np.testing.assert_allclose(model.predict(SMALL, verbose=0), held, rtol=1e-6)
    pooling.strides.assign([2.9, 2.9])
    with pytest.raises(tf.errors.InvalidArgumentError, match="have changed since"):
        model.predict(SMALL, verbose=0)


def test_a_fit_that_ends_just_past_an_edge_leaves_models_that_predict(tmp_path: Path):
    pooling = DiffStride(2.9, static_crop=True)
    model = keras.Sequential([keras.Input((16, 16, 1)), pooling, keras.layers.GlobalMaxPooling2D()])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    move = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: pooling.strides.assign(PAST_AN_EDGE))
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "model.keras")
    targets = np.zeros((4, 1))
    options = {"validation_data": (SMALL, targets), "callbacks": [move, CropRefresh(), checkpoint], "verbose": 0}
    history = model.fit(SMALL, targets, epochs=2, **options).history["val_loss"]
    assert history[-1] == pytest.approx(np.mean(at_past_an_edge() ** 2), rel=1e-5)
    for either in (model, keras.saving.load_model(tmp_path / "model.keras")):
        np.testing.assert_allclose(either.predict(SMALL, verbose=0), at_past_an_edge(), rtol=1e-6)
        np.testing.assert_allclose(either(SMALL), at_past_an_edge(), rtol=1e-6)
    assert not refresh_crops(model)


# --- Without cropping there is no crop -------------------------------------------------------------------------------
@pytest.mark.parametrize("mask", ["released", "symmetric"])
def test_a_static_crop_without_cropping_predicts_and_loads(mask: str, tmp_path: Path):
    x = np.random.default_rng(0).normal(size=(2, 32, 32, 1)).astype("float32")
    model = keras.Sequential(
        [keras.Input((None, None, 1)), DiffStride(2.0, cropping=False, static_crop=True, mask=mask)]
    )
    expected = DiffStride(2.0, cropping=False, mask=mask)(x)
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)
    loaded.layers[0].load_own_variables({"0": [2.0, 2.0], "crops": np.array([[32, 32, 32, 17]])})  # Of an older file.
    assert not loaded.layers[0].crop_is_static
