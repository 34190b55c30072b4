"""Saved networks."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.resnet_cases import disturb, every_pooling, images, policies, small

from diffstride_hybrid import DiffStride, ResidualLayer, Resnet, ResnetBlock, SpectralPooling
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.models.residual import batch_norm

Normalization = partial(batch_norm, momentum=0.8, epsilon=1e-4)


def tiny(**kwargs: Any) -> Resnet:
    """Two blocks, of which the second downsamples, for a map of 16x16."""
    options = {"num_output_classes": 10, "id_only": [0], "num_layers": [1, 2], **kwargs}
    return Resnet([4, 4, 6], [1, 1, 2], **options)


# --- Configuration and saving ----------------------------------------------------------------------------------------
@every_pooling
@pytest.mark.parametrize("placement", ["before_gap", "before_activation"])
def test_a_saved_model_loads_to_the_same_bits(pooling_cls: Any, placement: str, tmp_path: Path):
    kwargs = {
        "pooling_cls": pooling_cls,
        "head_pooling_cls": partial(SpectralPooling, strides=(2, 1.5), norm="forward"),
        "head_placement": placement,
    }
    if placement == "before_activation":
        keras.config.set_dtype_policy("mixed_bfloat16")
        kwargs |= {"normalization_cls": Normalization, "output_activation": "softmax"}
    model = tiny(**kwargs)
    model.build((None, 16, 16, 3))
    disturb(model)
    for layer in diffstride_layers(model):
        layer.strides.assign(layer.strides.numpy() * 1.25)
    model.save(tmp_path / "model.keras")
    keras.config.set_dtype_policy("float32")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, Resnet)
    assert loaded.get_config() == model.get_config()
    assert policies(loaded) == policies(model)
    np.testing.assert_array_equal(loaded(images((16, 16))), model(images((16, 16))))


def test_config_round_trips_every_argument():
    model = Resnet(
        [4, 4, 6],
        [1, 2, (2, 1.5)],
        5,
        output_activation="softmax",
        id_only=[0],
        channels_first=False,
        pooling_cls=partial(DiffStride, smoothness_factor=1.0, mask="symmetric", trainable=False),
        weight_decay=0.25,
        head_pooling_cls=partial(SpectralPooling, output_size=(2, 3), norm="forward"),
        pooling_placement="blocks",
        head_placement="before_activation",
        stride_complexity=0.5,
        num_layers=[1, 3],
        kernel_size=5,
        normalization_cls=Normalization,
        dtype="mixed_float16",
        name="net",
    )
    config = model.get_config()
    copy = Resnet.from_config(config)
    assert copy.get_config() == config
    for either in (model, copy):
        either.build((None, 16, 16, 3))
    assert [(w.path, w.shape) for w in copy.weights] == [(w.path, w.shape) for w in model.weights]
    assert [w.path for w in copy.trainable_weights] == [w.path for w in model.trainable_weights]
    copy.set_weights(model.get_weights())
    np.testing.assert_array_equal(copy(images((16, 16))), model(images((16, 16))))
    np.testing.assert_array_equal(copy.losses, model.losses)
    norm = copy.get_layer("norm")
    assert (norm.momentum, norm.epsilon) == (0.8, 1e-4)
    assert copy.get_layer("head_pooling").get_config() == model.get_layer("head_pooling").get_config()
    assert [a.get_config() for a in diffstride_layers(copy)] == [b.get_config() for b in diffstride_layers(model)]


@pytest.mark.parametrize("channels_first", [False, True])
def test_channels_first_is_in_the_config(channels_first: bool):
    copy = Resnet.from_config(small(channels_first=channels_first, pooling_cls=DiffStride).get_config())
    copy.build((None, 32, 32, 3))
    assert {layer.data_format for layer in diffstride_layers(copy)} == {
        "channels_first" if channels_first else "channels_last"
    }


@pytest.mark.parametrize(
    "make",
    [
        partial(ResidualLayer, 6, kernel_size=5, strides=(2, 1.5), project=True, weight_decay=0.5),
        partial(ResnetBlock, 6, strides=(2, 1.5), num_layers=3, kernel_size=5, weight_decay=0.5),
        partial(ResnetBlock, 3, strides=2, num_layers=1, project_first=False),
    ],
    ids=["layer", "projecting block", "identity block"],
)
def test_parts_of_the_network_save_by_themselves(make: Callable[..., keras.layers.Layer], tmp_path: Path):
    part = make(
        pooling_cls=partial(DiffStride, smoothness_factor=1.0), normalization_cls=Normalization, dtype="mixed_bfloat16"
    )
    model = keras.Sequential([keras.Input((12, 12, 3)), part])
    disturb(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is type(part)
    assert json.dumps(loaded.layers[0].get_config()) == json.dumps(part.get_config())
    np.testing.assert_array_equal(loaded(images((12, 12))), model(images((12, 12))))
    np.testing.assert_array_equal(loaded.losses, model.losses)


# --- Errors ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"strides": (1, 2, 2)}, "filters and strides must .*got 2 filters and 3 strides"),
        ({"num_layers": [2, 2]}, r"num_layers must be one number or one for each of the 1 blocks, got \[2, 2\]"),
        ({"head_placement": "end"}, "head_placement must be one of 'before_gap', .*'after_each_block', got 'end'"),
        (
            {"pooling_placement": "stem"},
            "pooling_placement must be one of 'everywhere', 'first_convolution', 'blocks', got 'stem'",
        ),
        ({"stride_complexity": -1.0}, "stride complexity must be a number of at least 0, got -1.0"),
        ({"strides": (1, 1.5)}, "whole strides of at least 1, got 1.5"),
        ({"strides": (1.5, 1)}, "whole strides of at least 1, got 1.5"),
        ({"strides": (1, (2, 1.5))}, r"whole strides of at least 1, got \(2, 1.5\)"),
        ({"strides": (1, 0)}, "strides must be finite and at least 1, got 0"),
        ({"strides": (1, 0.5), "pooling_cls": DiffStride}, "strides must be .*at least 1, got 0.5"),
        (
            {"strides": (1, 1.5), "pooling_cls": DiffStride, "pooling_placement": "first_convolution"},
            "whole strides of at least 1, got 1.5",
        ),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Resnet(**{"filters": [4, 4], "strides": (1, 2), "num_output_classes": 10, **kwargs})


def test_a_strided_layer_equals_a_strided_convolution_on_its_shortcut():
    layer = ResidualLayer(6, strides=(2, 3), project=True)
    images = tf.random.normal([2, 9, 11, 4], seed=1)
    layer.build(images.shape)
    outputs = layer(images)
    shortcut = tf.nn.conv2d(images, layer._shortcut_conv.kernel.value, [1, 2, 3, 1], "SAME")
    layer._shortcut_conv.kernel.assign(tf.zeros_like(layer._shortcut_conv.kernel))
    np.testing.assert_allclose(outputs - layer(images), shortcut, rtol=1e-5, atol=1e-5)
