"""Layers in states that a user brings about without thinking of them: unbuilt, left over from XLA, stateless."""

import copy
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from diffstride_hybrid import CropRefresh, DiffStride, DiffStride1D, spectral
from diffstride_hybrid.layers.recomputing import recomputed_pooling

MAPS = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype("float32")


def test_training_without_xla_at_a_size_that_xla_has_fixed_is_warned_of(tmp_path: Path):
    layers = [DiffStride(3.0), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input(MAPS.shape[1:]), *layers])
    model.compile("sgd", "mse", jit_compile=True)
    model.fit(MAPS, np.zeros([2, 3]), callbacks=[CropRefresh()], verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    loaded.compile("sgd", "mse", jit_compile=False)
    loaded.fit(MAPS, np.zeros([2, 3]), callbacks=[CropRefresh()], verbose=0)
    again = keras.saving.load_model(tmp_path / "model.keras")
    again.compile("sgd", "mse", jit_compile=False)
    with pytest.warns(UserWarning, match="XLA once fixed .*: its output keeps the size .*CropRefresh lets it"):
        again.fit(MAPS, np.zeros([2, 3]), verbose=0)


@pytest.mark.parametrize("layer", [DiffStride(2.0, static_crop=True), DiffStride1D(2.0, static_crop=True)])
def test_an_unbuilt_layer_of_static_size_is_copied(layer: DiffStride):
    again = copy.deepcopy(layer)
    assert not again.built
    assert again.static_crop is True


@pytest.mark.filterwarnings("ignore:.*has not been built:UserWarning")
@pytest.mark.filterwarnings("ignore:You are saving a model that has not yet been built:UserWarning")
def test_a_model_with_an_unbuilt_layer_of_static_size_is_loaded(tmp_path: Path):
    keras.Sequential([DiffStride(2.0, static_crop=True), keras.layers.ReLU()]).save(tmp_path / "model.keras")
    assert keras.saving.load_model(tmp_path / "model.keras")(MAPS).shape == DiffStride(2.0)(MAPS).shape


def test_signals_have_the_defaults_of_maps():
    signals = keras.ops.array(MAPS[:, :, 0])
    of_layer = DiffStride1D(2.0)(signals)
    np.testing.assert_allclose(spectral.diffstride_1d(signals, keras.ops.array([2.0])), of_layer, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask", ["released", "symmetric"])
def test_a_single_row_does_not_bound_a_stride_that_is_shared(mask: str):
    row = np.random.default_rng(1).normal(size=(1, 1, 64, 1)).astype("float32")
    shared, own = (DiffStride(1.2, smoothness_factor=0.5, mask=mask, shared_stride=each) for each in (True, False))
    np.testing.assert_allclose(shared(row), own(row), rtol=1e-5, atol=1e-6)
    assert float(shared.strides[0]) == pytest.approx(1.2)
    assert float(spectral.minimum_stride(keras.ops.array(1), 0.5)) == spectral.minimum_stride(1, 0.5) == 1.0


def test_a_stateless_call_that_computes_poolings_again_has_the_gradient_of_its_strides():
    layer = DiffStride(2.0)
    layer.build(MAPS.shape)
    given = tf.constant([3.0, 3.0])

    def gradients(pool) -> list[tf.Tensor]:
        inputs = tf.constant(MAPS)
        with tf.GradientTape() as tape:
            tape.watch([given, inputs])
            with keras.StatelessScope([(layer.strides, given)]):
                loss = tf.reduce_sum(pool(inputs) ** 3)
        return tape.gradient(loss, [given, inputs])

    expected = gradients(lambda inputs: layer(inputs, training=True))
    found = gradients(lambda inputs: recomputed_pooling(layer, inputs, training=True))
    for one, other in zip(found, expected):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
