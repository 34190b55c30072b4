"""Signals that are long, or whose length is known only when the graph runs."""

import keras
import numpy as np
import pytest
import scipy.signal
import tensorflow as tf

from diffstride_hybrid import DiffStride1D, spectral
from diffstride_hybrid.spectral.matrices import waves

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("length", [46_341, 60_000, 100_003])
def test_products_of_long_signals_are_right(length: int):
    """The kept bins are low here. A matrix in which bin times sample is beyond int32 takes 17 GB."""
    signal = RNG.normal(size=(1, length, 1)).astype("float32")
    pooled = spectral.spectral_resizing_1d(tf.constant(signal), 31, norm="forward", method="matmul")
    expected = scipy.signal.resample(signal.astype("float64"), 31, axis=1)
    np.testing.assert_allclose(pooled, expected, atol=1e-5 * np.abs(expected).max())


# From 23,171 samples on, four times bin times sample is beyond int32, from 46,342 on bin times sample itself. Of a
# power of two the remainder is right even so.
@pytest.mark.parametrize("length", [7, 23_170, 23_171, 23_172, 46_341, 46_342, 60_001, 100_003, 2**20])
@pytest.mark.parametrize("known", [True, False])
def test_angles_are_right_at_every_length(length: int, known: bool):
    frequencies = np.unique(np.linspace(0, length - 1, 50).astype("int32"))
    most = length if known else tf.constant(length)
    quarters = np.array([0, 1, 2])[:, None, None]
    found = waves(tf.constant(frequencies[:, None]), tf.constant(frequencies), most, quarters, tf.float32, most=most)
    turns = frequencies[:, None].astype("int64") * frequencies % length
    angles = 2 * np.pi * turns / length
    np.testing.assert_allclose(found, [np.cos(angles), np.sin(angles), -np.cos(angles)], atol=1e-5)


@pytest.mark.parametrize("mask", ["released", "symmetric"])
@pytest.mark.parametrize("length", [40, 512, 513, 20_000])
def test_signals_of_unknown_length_give_what_those_of_known_length_give(length: int, mask: str):
    signals = tf.constant(RNG.normal(size=(2, length, 3)).astype("float32"))
    layer = DiffStride1D(3.3, mask=mask)

    def pooled(inputs: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs)
            loss = tf.reduce_sum(outputs**3)
        return outputs, *tape.gradient(loss, [inputs, layer.strides.value])

    unknown = tf.function(pooled, input_signature=[tf.TensorSpec([None, None, 3])])(signals)
    for one, other in zip(unknown, pooled(signals), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * float(tf.reduce_max(tf.abs(other))))


def test_long_signals_of_unknown_length_are_not_multiplied_by_matrices():
    """A matrix for 100,000 samples would have 40 GB."""
    model = keras.Sequential([keras.Input((None, 1)), DiffStride1D(4.0), keras.layers.GlobalMaxPooling1D()])
    batches = tf.data.Dataset.from_tensor_slices(np.zeros((2, 100_000, 1), "float32")).batch(1)
    batches = batches.map(lambda signals: tf.ensure_shape(tf.reshape(signals, [1, -1, 1]), [1, None, 1]))
    assert model.predict(batches, verbose=0).shape == (2, 1)
