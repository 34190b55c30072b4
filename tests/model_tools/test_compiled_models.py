"""Models that compile their own forward pass: the tools see the calls of their layers all the same."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from diffstride_hybrid import DiffStride
from diffstride_hybrid.audit.poolings import audit_poolings
from diffstride_hybrid.model_tools.calibration import recalibrate_normalization
from diffstride_hybrid.model_tools.macs import macs


class Compiled(keras.Model):
    """Calls its layers from a `tf.function`, whose Python code runs when it is traced and not again."""

    def __init__(self) -> None:
        super().__init__()
        layers = [
            keras.layers.Conv2D(4, 3, padding="same"),
            DiffStride(4.0, smoothness_factor=1),
            keras.layers.BatchNormalization(),
        ]
        self.inner = keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D()])
        self.compiled = tf.function(self.inner, jit_compile=False)

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.compiled(images, training=training)


@pytest.fixture
def model() -> Compiled:
    model = Compiled()
    model(tf.zeros([1, 8, 8, 1]))
    return model


def test_its_cost_is_that_of_its_layers_each_time(model: Compiled):
    expected = macs(model.inner, (8, 8, 1))
    assert expected.macs == 8 * 8 * 9 * 4
    for _ in range(2):
        cost = macs(model, (8, 8, 1))
        assert (cost.macs, cost.pooling_macs) == (expected.macs, expected.pooling_macs)
    assert not tf.config.functions_run_eagerly()


def test_its_normalization_is_calibrated(model: Compiled):
    images = np.random.default_rng(0).normal(2.0, 3.0, [20, 8, 8, 1]).astype("float32")
    assert len(recalibrate_normalization(model, images)) == 1
    normalized = keras.Sequential(model.inner.layers[:3])(images)
    np.testing.assert_allclose(np.std(normalized, axis=(0, 1, 2)), 1.0, atol=0.01)


def test_its_poolings_are_audited(model: Compiled):
    images = np.random.default_rng(0).normal(size=[4, 8, 8, 1]).astype("float32")
    (found,), (expected,) = audit_poolings(model, images, 0), audit_poolings(model.inner, images, 0)
    assert found[1:4] == expected[1:4] == ("DiffStride", (8, 8), (4, 4))
    assert found[5:] == pytest.approx(expected[5:], abs=1e-6)
