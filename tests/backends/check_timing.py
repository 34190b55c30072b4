"""What `experiments.frameworks` times is a pass in training. `test_backends.py` runs this file."""

import keras
import numpy as np

from diffstride_hybrid import DiffStride
from experiments.frameworks import timing

MAPS = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype("float32")


def test_a_timed_step_has_the_gradient_of_the_inputs():
    (gradient,) = timing.step_of(keras.layers.AveragePooling2D(2), MAPS)(2)
    pooled = MAPS.reshape(2, 3, 2, 2, 2, 3).mean((2, 4))
    expected = 2 / 4 * pooled.repeat(2, 1).repeat(2, 2)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(gradient), expected, rtol=1e-5, atol=1e-6)


def test_a_timed_step_has_the_gradient_of_the_strides():
    layer = timing.POOLINGS["DiffStride, symmetric"]()
    layer.build(MAPS.shape)
    assert isinstance(layer, DiffStride)
    of_maps, of_strides = timing.step_of(layer, MAPS)(1)
    assert of_maps.shape == MAPS.shape and of_strides.shape == (2,)
    assert np.all(keras.ops.convert_to_numpy(of_strides) != 0)


class Told(keras.layers.Layer):
    """Multiplies by 1 in inference, by 3 in training."""

    def call(self, inputs, training=False):
        return inputs * (3.0 if training else 1.0)


def test_a_timed_step_trains():
    (gradient,) = timing.step_of(Told(), MAPS)(1)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(gradient), 2 * 9 * MAPS, rtol=1e-5)
