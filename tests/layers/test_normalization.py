from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from diffstride_hybrid import FusedBatchNormalization

OPTIONS = {"momentum": 0.9, "epsilon": 1e-5}
# Half a unit in the last place of the output, for values of up to about 8.
TOLERANCES = {"float32": 1e-5, "mixed_bfloat16": 0.04, "mixed_float16": 0.005, "float64": 1e-12}


def both(shape: tuple[int, ...], policy: str = "float32", **options: Any) -> list[keras.layers.BatchNormalization]:
    layers = [
        cls(dtype=policy, **OPTIONS, **options) for cls in (keras.layers.BatchNormalization, FusedBatchNormalization)
    ]
    for layer in layers:
        layer.build(shape)
        values = np.random.default_rng(1)
        layer.set_weights([values.uniform(0.5, 2, weight.shape) for weight in layer.weights])
    return layers


def step(layer: keras.layers.Layer, inputs: tf.Tensor, training: bool) -> list[np.ndarray]:
    upstream = tf.cast(tf.random.stateless_normal(inputs.shape, [3, 4]), inputs.dtype)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs, training=training)
    variables = [variable.value for variable in layer.trainable_variables]
    gradients = tape.gradient(outputs, [inputs, *variables], output_gradients=upstream)
    assert outputs.dtype == layer.compute_dtype
    return [tf.cast(value, tf.float64).numpy() for value in (outputs, *gradients, *layer.get_weights())]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("policy", TOLERANCES)
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((5, 6, 7, 3), {}),
        ((5, 3, 6, 7), {"axis": 1}),  # Keras computes this one on a CPU.
        ((5, 7, 3), {}),
        ((5, 6, 7, 3), {"scale": False, "center": False}),
    ],
    ids=str,
)
def test_outputs_gradients_and_averages_are_those_of_keras(
    shape: tuple[int, ...], options: dict[str, Any], policy: str, training: bool
):
    layers = both(shape, policy, **options)
    inputs = tf.cast(tf.random.stateless_normal(shape, [1, 2], 1.0, 2.0), layers[0].compute_dtype)
    expected, results = (step(layer, inputs, training) for layer in layers)
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, value, atol=TOLERANCES[policy] * max(1, np.abs(value).max()), rtol=0)


def test_one_value_a_channel_has_no_variance():
    for layer in both((1, 1, 1, 3)):
        outputs = layer(tf.ones([1, 1, 1, 3]), training=True)[0, 0, 0]
        # Without variance the gain is 1 / sqrt(epsilon) = 316, which float32's rounding is multiplied by.
        np.testing.assert_allclose(outputs, layer.beta, atol=316 * 2 * np.finfo(np.float32).eps)
        assert all(np.all(np.isfinite(weight)) for weight in layer.get_weights())


def test_a_layer_that_is_not_trainable_keeps_its_averages():
    layer = both((4, 5, 5, 2))[1]
    layer.trainable = False
    before = [weight.numpy() for weight in layer.weights]
    layer(tf.random.normal([4, 5, 5, 2]), training=True)
    for weight, value in zip(layer.weights, before):
        np.testing.assert_array_equal(weight, value)


def test_a_stateless_call_changes_no_variable():
    layer, inputs = both((4, 5, 5, 2))[1], tf.random.normal([4, 5, 5, 2], seed=0)
    before = [weight.numpy() for weight in layer.weights]
    trained, others = (
        [weight.value for weight in weights] for weights in (layer.trainable_weights, layer.non_trainable_weights)
    )
    outputs, moved = layer.stateless_call(trained, others, inputs, training=True)
    with keras.StatelessScope() as scope:
        layer(inputs, training=True)
    for weight, value in zip(layer.weights, before):
        np.testing.assert_array_equal(weight, value)
    np.testing.assert_array_equal(outputs, layer(inputs, training=True))
    for weight, value in zip(layer.non_trainable_weights, moved):
        np.testing.assert_allclose(weight, value, rtol=1e-6)
        np.testing.assert_allclose(weight, scope.get_current_value(weight), rtol=1e-6)


def test_the_fused_kernel_is_what_runs():
    layer = both((4, 5, 5, 2), "mixed_bfloat16")[1]
    graph = tf.function(lambda x: layer(x, training=True)).get_concrete_function(
        tf.TensorSpec([4, 5, 5, 2], tf.bfloat16)
    )
    assert "FusedBatchNormV3" in {operation.type for operation in graph.graph.get_operations()}


def test_a_saved_layer_gives_the_same_bits(tmp_path: Path):
    model = keras.Sequential([keras.Input((5, 5, 2)), FusedBatchNormalization(**OPTIONS)])
    inputs = tf.random.normal([4, 5, 5, 2])
    model(inputs, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[-1].get_config() == model.layers[-1].get_config()
    np.testing.assert_array_equal(loaded(inputs), model(inputs))
