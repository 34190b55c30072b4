"""The layers in models: training, saving, exporting."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.layer_cases import CASES, POLICIES, SHAPE, Case, every_case, every_policy, images, model_of, result

from diffstride_hybrid import DiffStride


# --- Dtypes and use in models ----------------------------------------------------------------------------------------
@every_case
@every_policy
def test_dtype_policies(case: Case, policy: str):
    keras.config.set_dtype_policy(policy)
    layer = case.layer()
    x = tf.constant(images())
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 2)
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    assert layer(keras.Input(SHAPE[1:])).dtype == layer.compute_dtype
    assert {weight.dtype for weight in layer.weights} <= {"float32"}
    for gradient in tape.gradient(loss, [x, *(weight.value for weight in layer.trainable_weights)]):
        assert np.all(np.isfinite(gradient))
        assert np.abs(gradient).max() > 0
    expected = result(case.layer(dtype="float64"), images())
    tolerance = {"float32": 1e-5, "float64": 1e-12, "mixed_float16": 3e-3, "mixed_bfloat16": 2e-2}[policy]
    np.testing.assert_allclose(np.asarray(y, "float64"), expected, rtol=0, atol=tolerance * np.abs(expected).max())


@every_policy
@pytest.mark.parametrize("limits", [{"lower_limit_stride": 1.9}, {"upper_limit_stride": (None, 2.2)}], ids=str)
def test_a_stride_at_its_limit_has_a_gradient(limits: dict[str, Any], policy: str):
    """Its weight is float32 under every policy, which holds neither 1.9 nor 2.2."""
    at = (1.9, 1.9) if "lower_limit_stride" in limits else (1.5, 2.2)
    layer = DiffStride(at, dtype=policy, **limits)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.cast(layer(images()), tf.float32) ** 2)
    assert np.all(tape.gradient(loss, layer.strides.value).numpy() != 0)


@pytest.mark.parametrize("static_crop", [None, True])
def test_a_stateless_call_in_a_graph_takes_the_strides_that_it_is_given(static_crop: bool | None):
    """A static crop has the size of the layer's own strides there: a graph cannot read others."""
    layer = DiffStride(2.0, static_crop=static_crop)
    layer.build(SHAPE)
    given = tf.constant([2.1, 2.05])
    others = [weight.value for weight in layer.non_trainable_variables]
    outputs, _ = tf.function(lambda strides: layer.stateless_call([strides], others, tf.constant(images())))(given)
    np.testing.assert_allclose(outputs, DiffStride((2.1, 2.05))(images()), rtol=1e-4, atol=1e-5)


@every_case
def test_sequential_functional_and_subclassed_models_agree(case: Case):
    class Subclassed(keras.Model):
        def __init__(self, pooling: keras.layers.Layer):
            super().__init__()
            self.pooling = pooling

        def call(self, inputs: tf.Tensor) -> tf.Tensor:
            return self.pooling(inputs)

    layer = case.layer()
    inputs = keras.Input(SHAPE[1:])
    models = (keras.Sequential([layer]), keras.Model(inputs, layer(inputs)), Subclassed(layer))
    expected = layer(images()).numpy()
    for model in models:
        np.testing.assert_array_equal(model(images()), expected)
        assert len(model.weights) == (case.cls is DiffStride)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=name) for name, case in CASES.items() if case.cls is DiffStride]
)
def test_call_assigns_nothing(case: Case):
    model = model_of(case)
    for weight in model.weights:
        weight.assign(tf.fill(weight.shape, 0.5))  # Below the least stride.
    model(images())
    model(images(), training=True)
    for weight in model.weights:
        np.testing.assert_array_equal(weight, np.full(weight.shape, 0.5))


@every_case
def test_only_a_trainable_stride_is_a_weight(case: Case):
    layer = case.layer()
    layer.build(SHAPE)
    assert [weight.name for weight in layer.weights] == (["strides"] if case.cls is DiffStride else [])
    trains = case.cls is DiffStride and case.arguments.get("trainable", True)
    assert len(layer.trainable_weights) == trains


@every_case
def test_every_layer_supports_xla(case: Case):
    layer = case.layer()
    assert layer.supports_jit
    if case.dynamic:
        layer.fix_crop()
    compiled = tf.function(layer, jit_compile=True)
    np.testing.assert_allclose(compiled(tf.constant(images())), layer(images()), rtol=1e-4, atol=1e-5)


# --- Training --------------------------------------------------------------------------------------------------------
def fit_uncropped(target: str, **arguments: Any) -> np.ndarray:
    """Trains strides alone, on an output of the input's size. They fall for a copy and grow for a blank."""
    layer = DiffStride(cropping=False, smoothness_factor=3.0, **arguments)
    model = keras.Sequential([keras.Input(SHAPE[1:]), layer])
    model.compile(keras.optimizers.Adam(1.0), "mse", run_eagerly=True)
    model.fit(images(), images() if target == "copy" else np.zeros(SHAPE), epochs=3, verbose=0)
    return layer.strides.numpy()


@pytest.mark.parametrize(("policy", "mask"), [*((policy, "released") for policy in POLICIES), ("float32", "symmetric")])
def test_fit_keeps_falling_strides_at_the_minimum(policy: str, mask: str):
    keras.config.set_dtype_policy(policy)
    strides = fit_uncropped("copy", mask=mask)
    np.testing.assert_allclose(strides, [12 / (12 - 3), 14 / (14 - 3)], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "target", "expected"),
    [
        ({"shared_stride": True}, "copy", [12 / 9]),
        ({"lower_limit_stride": 1.3}, "copy", [12 / 9, 1.3]),
        ({"lower_limit_stride": 1.75}, "copy", [1.75, 1.75]),
        ({"upper_limit_stride": 2.25}, "blank", [2.25, 2.25]),
        ({"upper_limit_stride": 2.25, "shared_stride": True}, "blank", [2.25]),
    ],
    ids=str,
)
def test_fit_keeps_strides_within_limits(arguments: dict[str, Any], target: str, expected: list[float]):
    np.testing.assert_allclose(fit_uncropped(target, **arguments), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        *((policy, {}) for policy in POLICIES),
        ("float32", {"static_crop": True}),
        ("mixed_bfloat16", {"method": "fft"}),
        ("float32", {"trainable": False}),
    ],
    ids=str,
)
def test_fit_changes_trainable_strides_among_other_layers(policy: str, options: dict[str, Any]):
    keras.config.set_dtype_policy(policy)
    layer = DiffStride((2.5, 3.0), smoothness_factor=2.0, **options)
    model = keras.Sequential(
        [
            keras.Input(SHAPE[1:]),
            keras.layers.Conv2D(4, 3, padding="same"),
            layer,
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )
    before = layer.strides.numpy()
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=policy != "float32",
    )
    model.fit(images(), np.array([0, 1]), epochs=2, verbose=0)
    assert np.all((layer.strides.numpy() != before) == options.get("trainable", True))
    assert np.all(np.isfinite(model(images())))


@pytest.mark.parametrize(
    ("arguments", "shape", "expected"),
    [
        ({}, SHAPE, [12 / 8, 14 / 10]),
        ({"shared_stride": True}, SHAPE, [12 / 8]),
        ({"smoothness_factor": 0}, SHAPE, [1, 1]),
        ({"smoothness_factor": 12}, SHAPE, [1, 14 / 2]),
        ({"smoothness_factor": 100}, SHAPE, [1, 1]),
        ({"lower_limit_stride": 1.45}, SHAPE, [12 / 8, 1.45]),
        ({"upper_limit_stride": 1.45}, SHAPE, [1.45, 1.4]),
        ({}, (None, None, None, 3), [1, 1]),
        ({}, (None, 12, None, 3), [12 / 8, 1]),
    ],
)
def test_initial_strides_are_raised_to_the_minimum_and_put_within_limits(
    arguments: dict[str, Any], shape: tuple[int | None, ...], expected: list[float]
):
    layer = DiffStride(1.0, **arguments)
    layer.build(shape)
    np.testing.assert_allclose(layer.strides, expected, rtol=1e-6)
    assert layer.strides.dtype == "float32"
    np.testing.assert_allclose(layer.strides.constraint(tf.zeros_like(layer.strides)), expected, rtol=1e-6)


def test_shared_stride_equals_two_equal_strides():
    shared = DiffStride(2.5, shared_stride=True)
    np.testing.assert_array_equal(shared(images()), DiffStride(2.5)(images()))
    assert shared.strides.shape == (1,)
