"""Swaps of models that are made of blocks: layers within layers, nested models, one pooling called several times."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from diffstride_hybrid import DiffStride, replace_downsampling
from diffstride_hybrid.model_tools.inspection import diffstride_layers


def trained_attention(model: keras.Model) -> list[str]:
    return [weight.path for weight in model.trainable_variables if "attention" in weight.path]


@pytest.mark.parametrize("frozen", ["all", "query"])
def test_frozen_layers_within_a_layer_stay_frozen(frozen: str):
    inputs = keras.Input((16, 16, 8))
    maps = keras.layers.MaxPooling2D(2)(keras.layers.Conv2D(8, 3, padding="same")(inputs))
    attention = keras.layers.MultiHeadAttention(2, 4, name="attention")
    model = keras.Model(inputs, attention(maps, maps))
    (attention if frozen == "all" else attention.query_dense).trainable = False
    assert trained_attention(replace_downsampling(model)) == trained_attention(model)


def test_a_nested_head_that_flattens_gets_maps_of_the_size_that_they_had():
    head = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10)], name="head")
    inputs = keras.Input((32, 32, 3))
    maps = keras.layers.MaxPooling2D(2)(keras.layers.Conv2D(8, 3, padding="same")(inputs))
    swapped = replace_downsampling(keras.Model(inputs, head(maps)))
    assert swapped(np.zeros([2, 32, 32, 3], "float32")).shape == (2, 10)


def test_a_nested_model_may_be_called_at_two_sizes():
    inner = keras.Input((None, None, 3))
    net = keras.Model(inner, keras.layers.Conv2D(3, 3, padding="same")(inner), name="net")
    inputs = keras.Input((64, 64, 3))
    model = keras.Model(inputs, net(keras.layers.AveragePooling2D(2)(net(inputs))))
    swapped = replace_downsampling(model)
    assert len(diffstride_layers(swapped)) == 1
    assert swapped(np.zeros([1, 64, 64, 3], "float32")).shape[-1] == 3


@pytest.mark.parametrize("is_sequential", [False, True])
def test_one_pooling_may_go_down_to_a_single_position(is_sequential: bool):
    pool = keras.layers.MaxPooling2D(2, name="pool")
    layers = [each for i in range(3) for each in (keras.layers.Conv2D(4, 3, padding="same", name=f"c{i}"), pool)]
    outputs = inputs = keras.Input((8, 8, 3))
    for layer in layers:
        outputs = layer(outputs)
    model = keras.Sequential([inputs, *layers]) if is_sequential else keras.Model(inputs, outputs)
    swapped = replace_downsampling(model)
    assert swapped(np.zeros([2, 8, 8, 3], "float32")).shape == (2, 1, 1, 4)


class Block(keras.Model):
    def __init__(self, **options: Any):
        super().__init__(**options)
        self.convolution = keras.layers.Conv2D(3, 3, padding="same")
        self.pooling = keras.layers.MaxPooling2D(2, name="inner_pooling")

    def call(self, inputs: Any) -> Any:
        return self.pooling(self.convolution(inputs))

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


def test_a_block_of_class_model_is_copied():
    inputs, told = keras.Input((16, 16, 3)), []
    model = keras.Model(inputs, keras.layers.AveragePooling2D(2)(Block(name="block")(inputs)))
    swapped = replace_downsampling(model, report=told.append)
    assert [type(layer) for layer in diffstride_layers(swapped)] == [DiffStride]
    assert "keeping their strides: inner_pooling" in told[0]
    np.testing.assert_array_equal(
        swapped.get_layer("block").get_weights()[0], model.get_layer("block").get_weights()[0]
    )


def test_a_chain_that_calls_a_layer_twice_saves_all_of_its_calls(tmp_path: Path):
    """Both poolings take maps of 32x32 to 16x16, so they share one."""
    parts = [keras.layers.MaxPooling2D(2), keras.layers.Conv2D(4, 3, padding="same"), keras.layers.Resizing(32, 32)]
    parts += [keras.layers.Conv2D(4, 3, padding="same"), keras.layers.AveragePooling2D(2)]
    swapped = replace_downsampling(keras.Sequential([keras.Input((32, 32, 3)), *parts], name="chain"), exclude=is_fixed)
    swapped.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype("float32")
    np.testing.assert_array_equal(loaded(images), swapped(images))


def is_fixed(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.Resizing)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning")
def test_weights_that_a_copy_does_not_take_are_not_blamed_on_the_size_of_maps():
    parts = [keras.layers.MaxPooling2D(2), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(5, name="head")]
    model = keras.Sequential([keras.Input((16, 16, 3)), *parts])
    model.quantize("float8")
    with pytest.raises(ValueError, match="Layer head cannot be copied: the copy does not take its weights: "):
        replace_downsampling(model)
