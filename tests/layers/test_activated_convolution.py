"""A convolution behind normalization and activation, of which a training step keeps one map in two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.memory import median_peak_megabytes

from diffstride_hybrid import FusedBatchNormalization, SpectralPooling, resnet18
from diffstride_hybrid.layers.recomputing import activated_convolution
from diffstride_hybrid.model_tools.inspection import replaced_calls

IMAGES = np.random.default_rng(0).normal(size=(4, 9, 8, 6)).astype("float32")
Pair = tuple[keras.layers.Layer, keras.layers.Layer]


def pair(policy: str = "float32", **options: Any) -> Pair:
    keras.utils.set_random_seed(1)
    norm = FusedBatchNormalization(
        dtype=policy, momentum=0.9, gamma_initializer="random_normal", beta_initializer="random_normal"
    )
    options = {"padding": "same", "use_bias": False, **options}
    convolution = keras.layers.Conv2D(5, 3, dtype=policy, **options)
    norm.build(IMAGES.shape)
    convolution.build(IMAGES.shape)
    return norm, convolution


def plain(norm: keras.layers.Layer, convolution: keras.layers.Layer, inputs: tf.Tensor, training: bool) -> tf.Tensor:
    return convolution(tf.nn.relu(norm(inputs, training=training)))


class Within(keras.layers.Layer):
    """Calls layers within a layer, whose policy casts their weights."""

    def __init__(self, layers: Pair, apply: Callable[..., tf.Tensor], policy: str):
        super().__init__(dtype=policy)
        self.parts, self.apply = layers, apply

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return self.apply(*self.parts, inputs, training)


def results(layers: Pair, apply: Callable[..., tf.Tensor], policy: str, training: bool = True) -> list[np.ndarray]:
    """The output, its gradients to the inputs and to all weights, and the moving averages afterwards."""
    within = Within(layers, apply, policy)
    weights = [variable.value for layer in layers for variable in layer.trainable_variables]

    @tf.function(autograph=False)
    def run(images: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = within(images, training=training)
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 3)
        return [outputs, *tape.gradient(loss, [images, *weights])]

    found = run(tf.constant(IMAGES))
    return [tf.cast(each, tf.float32).numpy() for each in [*found, layers[0].moving_mean, layers[0].moving_variance]]


def is_recomputed(layers: Pair, images: tf.Tensor | None = None) -> bool:
    """Whether the gradient's graph normalizes once more."""
    images = tf.constant(IMAGES) if images is None else images

    @tf.function(autograph=False)
    def run(images: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = activated_convolution(*layers, images, training=True)
        return tape.gradient(outputs, images)

    operations = [node.op for node in run.get_concrete_function(images).graph.as_graph_def().node]
    return operations.count("FusedBatchNormV3") == 2


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("strides", [1, 2, (2, 1)])
@pytest.mark.parametrize(
    ("policy", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 3e-2), ("mixed_float16", 4e-3), ("float64", 1e-10)]
)
def test_it_gives_what_the_layers_give(policy: str, tolerance: float, strides: Any, training: bool):
    found = results(pair(policy, strides=strides), activated_convolution, policy, training)
    for one, other in zip(found, results(pair(policy, strides=strides), plain, policy, training), strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(other).max())


def test_the_activation_is_computed_again():
    assert is_recomputed(pair())


@pytest.mark.parametrize(
    "options", [{"use_bias": True}, {"padding": "valid"}, {"dilation_rate": 2}, {"activation": "relu"}, None], ids=str
)
def test_layers_of_other_kinds_are_called(options: dict[str, Any] | None):
    layers = pair(**(options or {}))
    if options is None:
        layers = layers[0], keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False)
        layers[1].build(IMAGES.shape)
    assert not is_recomputed(layers)
    other = activated_convolution(*layers, tf.constant(IMAGES), training=True)
    np.testing.assert_allclose(other, plain(*layers, tf.constant(IMAGES), True), rtol=1e-5, atol=1e-5)


class Doubled(FusedBatchNormalization):
    """A layer of a user's own with a call of its own."""

    def call(self, *args: Any, **options: Any) -> tf.Tensor:
        return 2.0 * super().call(*args, **options)


class Renamed(FusedBatchNormalization):
    """A layer of a user's own that computes the same."""


@pytest.mark.parametrize(("kind", "is_fused"), [(Doubled, False), (Renamed, True)])
def test_a_normalization_of_ones_own_is_called_if_it_computes_something_else(kind: Any, is_fused: bool):
    norm, convolution = kind(), pair()[1]
    norm.build(IMAGES.shape)
    assert is_recomputed((norm, convolution)) == is_fused
    found = activated_convolution(norm, convolution, tf.constant(IMAGES), training=True)
    np.testing.assert_allclose(found, plain(norm, convolution, IMAGES, True), rtol=1e-5, atol=1e-5)


def test_penalties_on_activity_are_heard():
    norm, convolution = pair(activity_regularizer=keras.regularizers.L2(1.0))
    activated_convolution(norm, convolution, tf.constant(IMAGES), training=True)
    assert len(convolution.losses) == 1


def test_layers_whose_calls_are_watched_are_called():
    layers, seen = pair(), []

    def watched(layer: keras.layers.Layer) -> Callable[..., tf.Tensor]:
        call = layer.call
        return lambda *args, **options: seen.append(layer) or call(*args, **options)

    with replaced_calls(layers, watched):
        activated_convolution(*layers, tf.constant(IMAGES), training=True)
    assert seen == list(layers)


def test_a_frozen_normalization_keeps_its_averages():
    norm, convolution = pair()
    norm.trainable = False
    before = norm.moving_mean.numpy()
    activated_convolution(norm, convolution, tf.constant(IMAGES), training=True)
    np.testing.assert_array_equal(norm.moving_mean, before)


def test_a_training_step_of_a_network_holds_less():
    """Of each residual layer the inputs of two normalizations, in place of four maps."""
    images = tf.random.normal([16, 32, 32, 3], seed=0)

    def megabytes(watch: bool) -> float:
        model = resnet18(num_output_classes=10, width=16, pooling_cls=SpectralPooling)
        model.build(images.shape)

        layers = model._flatten_layers(recursive=True, include_self=False)
        convolutions = [layer for layer in layers if isinstance(layer, keras.layers.Conv2D)]
        with replaced_calls(convolutions if watch else [], lambda layer: layer.call):
            return median_peak_megabytes(model, images)

    assert megabytes(watch=False) < 0.85 * megabytes(watch=True)


# --- Second derivatives ----------------------------------------------------------------------------------------------
def squared_gradient(layers: Pair, apply: Callable[..., tf.Tensor], inputs: tf.Tensor) -> list[tf.Tensor]:
    """The sum of the squares of the kernel's gradient, and its own gradients to the inputs and to all weights."""
    kernel = layers[1].kernel.value
    variables = [variable.value for layer in layers for variable in layer.trainable_variables]
    with tf.GradientTape() as outer:
        outer.watch(inputs)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            loss = tf.reduce_sum(tf.sin(apply(*layers, inputs, True)))
        gradients = inner.gradient(loss, [inputs, kernel])
        penalty = tf.add_n([tf.reduce_sum(each**2) for each in gradients])
    return [penalty, *outer.gradient(penalty, [inputs, *variables])]


@pytest.mark.parametrize("is_compiled", [True, False], ids=["compiled", "eager"])
def test_second_derivatives_know_that_the_statistics_are_those_of_the_batch(is_compiled: bool):
    run = tf.function(squared_gradient, autograph=False) if is_compiled else squared_gradient
    found = run(pair(), activated_convolution, tf.constant(IMAGES))
    for one, other in zip(found, squared_gradient(pair(), plain, tf.constant(IMAGES)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())


def test_second_derivatives_are_the_slopes_of_first_ones():
    """Far from the kinks of relu, along a random direction."""
    layers = pair()
    layers[0].beta.assign(6.0 + layers[0].beta)
    direction = np.random.default_rng(1).normal(size=IMAGES.shape).astype("float32")
    step = 3e-3
    high, low = (
        float(squared_gradient(layers, activated_convolution, tf.constant(IMAGES + sign * step * direction))[0])
        for sign in (1, -1)
    )
    _, of_inputs, *_ = squared_gradient(layers, activated_convolution, tf.constant(IMAGES))
    assert (high - low) / (2 * step) == pytest.approx(float(np.sum(of_inputs * direction)), rel=2e-2)
