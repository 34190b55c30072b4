"""One residual layer."""

from functools import partial
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from support.resnet_cases import disturb, every_pooling, images, small

from diffstride_hybrid import DiffStride, ResidualLayer, macs
from diffstride_hybrid.model_tools.inspection import diffstride_layers


# --- A residual layer ------------------------------------------------------------------------------------------------
def weights_of(layer: keras.layers.Layer) -> dict[str, tf.Variable]:
    return {"/".join(weight.path.split("/")[-2:]): weight for weight in layer.weights}


@every_pooling
def test_a_residual_layer_computes_its_formula_with_the_shortcut_convolved_first(pooling_cls: Any):
    x = images((12, 16))
    layer = ResidualLayer(5, strides=2, pooling_cls=pooling_cls, project=True, name="layer")
    layer.build(x.shape)
    disturb(layer)
    weights = weights_of(layer)
    pooling, strides = (lambda x: x), 2
    if pooling_cls is not None:
        pooling, strides = pooling_cls(strides=2), 1

    def norm(x: tf.Tensor, name: str) -> tf.Tensor:
        gamma, beta, mean, variance = (
            weights[f"{name}/{weight}"] for weight in ("gamma", "beta", "moving_mean", "moving_variance")
        )
        return tf.nn.relu(gamma * (x - mean) / tf.sqrt(variance + 1e-3) + beta)

    def convolution(x: tf.Tensor, name: str, strides: int = 1) -> tf.Tensor:
        return tf.nn.conv2d(x, weights[f"{name}/kernel"], strides, "SAME")

    main = pooling(convolution(norm(tf.constant(x), "norm_1"), "conv_1", strides))
    main = convolution(norm(main, "norm_2"), "conv_2")
    expected = main + pooling(convolution(tf.constant(x), "shortcut", strides))
    actual = layer(x)
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_a_residual_layer_without_projection_adds_its_input():
    x = images((8, 8))
    layer = ResidualLayer(3, strides=2, pooling_cls=DiffStride)
    layer.build(x.shape)
    weights_of(layer)["conv_2/kernel"].assign(np.zeros((3, 3, 3, 3)))
    np.testing.assert_array_equal(layer(x), x)


def test_one_pooling_serves_the_main_path_and_the_shortcut():
    model = small(pooling_cls=DiffStride)
    layers = diffstride_layers(model)
    assert len(layers) == 4 == sum(weight.name == "strides" for weight in model.weights)
    calls = [cost.layer for cost in macs(model).layers if cost.is_pooling]
    assert [calls.count(layer) for layer in layers] == [1, 2, 2, 2]
    for layer in layers:
        layer.strides.assign([2.7, 3.9])
    assert model(images()).shape == (2, 10)


def test_static_crops_of_a_network_follow_the_strides():
    static = small(pooling_cls=partial(DiffStride, static_crop=True))
    dynamic = small(pooling_cls=DiffStride)
    dynamic.set_weights(static.get_weights())
    np.testing.assert_allclose(static(images()), dynamic(images()), rtol=1e-4, atol=1e-5)
    for model in (static, dynamic):
        for layer, stride in zip(diffstride_layers(model), (1.5, 6.0, 2.5, 4.0)):
            layer.strides.assign([stride, stride])
    for layer in diffstride_layers(static):
        layer.refresh_crop()
    assert macs(static).pooling_sizes() == {
        path.replace(dynamic.name, static.name, 1): sizes for path, sizes in macs(dynamic).pooling_sizes().items()
    }
    np.testing.assert_allclose(static(images()), dynamic(images()), rtol=1e-4, atol=1e-5)


def test_a_strided_layer_equals_a_strided_convolution_on_its_shortcut():
    layer = ResidualLayer(6, strides=(2, 3), project=True)
    images = tf.random.normal([2, 9, 11, 4], seed=1)
    layer.build(images.shape)
    outputs, kernel = layer(images), layer.parts()["shortcut"].kernel
    shortcut = tf.nn.conv2d(images, kernel.value, [1, 2, 3, 1], "SAME")
    kernel.assign(tf.zeros_like(kernel))
    np.testing.assert_allclose(outputs - layer(images), shortcut, rtol=1e-5, atol=1e-5)


def test_a_layer_names_its_parts():
    names = ["norm_1", "conv_1", "norm_2", "conv_2"]
    assert list(ResidualLayer(4).parts()) == names
    assert sorted(ResidualLayer(4, project=True).parts()) == sorted([*names, "shortcut"])
    projecting = ResidualLayer(4, project=True, pooling_cls=DiffStride).parts()
    assert sorted(projecting) == sorted([*names, "pooling", "shortcut"])
    assert {name: part.name for name, part in projecting.items()} == {name: name for name in projecting}
