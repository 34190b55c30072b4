"""Saved networks."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from support.resnet_cases import disturb, every_pooling, images, policies, small

from diffstride_hybrid import DiffStride, ResidualLayer, Resnet, ResnetBlock, SpectralPooling
from diffstride_hybrid.model_tools.inspection import diffstride_layers, leaf_layers
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


def test_saved_weights_keep_their_names_so_that_older_files_load(tmp_path: Path):
    model = tiny(pooling_cls=DiffStride)
    model.build((None, 16, 16, 3))
    model.save_weights(tmp_path / "model.weights.h5")
    with h5py.File(tmp_path / "model.weights.h5") as file:
        layer = file["layers/resnet_block_1/layers/residual_layer"]
        assert {name for name in layer if name != "vars"} == {
            "_norms",
            "_pooling",
            "_shortcut_conv",
            "_strided_conv",
            "_unstrided_conv",
        }


# --- Layers that are no longer what the arguments make ---------------------------------------------------------------
def saved_and_loaded(model: keras.Model, folder: Path) -> keras.Model:
    model.save(folder / "model.keras")
    loaded = keras.saving.load_model(folder / "model.keras")
    assert type(loaded) is type(model)
    np.testing.assert_array_equal(loaded(images((16, 16))), model(images((16, 16))))
    assert names_of(loaded.trainable_weights) == names_of(model.trainable_weights)
    return loaded


def names_of(weights: list[keras.Variable]) -> list[str]:
    return [weight.path.removeprefix("sequential/") for weight in weights]  # Keras loads these without the prefix.


def built(**kwargs: Any) -> Resnet:
    model = tiny(**kwargs)
    model.build((None, 16, 16, 3))
    disturb(model)
    return model


def test_another_head_is_saved(tmp_path: Path):
    model = built(pooling_cls=DiffStride)
    model.pop()
    model.add(keras.layers.Dense(10, activation="softmax"))
    model.build((None, 16, 16, 3))
    loaded = saved_and_loaded(model, tmp_path)
    loaded = saved_and_loaded(loaded, tmp_path)
    np.testing.assert_allclose(np.sum(loaded(images((16, 16))), axis=1), 1.0, rtol=1e-5)


def test_an_activation_that_was_set_is_saved(tmp_path: Path):
    model = built()
    model.layers[-1].activation = keras.activations.softmax
    saved_and_loaded(model, tmp_path)


def test_another_layer_in_a_block_is_saved(tmp_path: Path):
    block = ResnetBlock(6, strides=2, num_layers=2, pooling_cls=SpectralPooling)
    block.pop()
    block.add(keras.layers.ReLU())
    saved_and_loaded(keras.Sequential([keras.Input((16, 16, 3)), block]), tmp_path)


def flags_of(model: keras.Model) -> list[bool]:
    return [layer.trainable for layer in leaf_layers(model) if not isinstance(layer, keras.layers.InputLayer)]


def freeze_all(model: keras.Model) -> None:
    model.trainable = False


def freeze_a_block(model: keras.Model) -> None:
    model.layers[0].trainable = model.get_layer("block_2").trainable = False


def freeze_all_but_the_head(model: keras.Model) -> None:
    model.trainable = False
    model.trainable = True
    for layer in model.layers[:-1]:
        layer.trainable = False


def freeze_a_part(model: keras.Model) -> None:
    model.get_layer("block_2").layers[0].parts()["norm_2"].trainable = False
    model.get_layer("block_2").layers[0].parts()["pooling"].trainable = False


@pytest.mark.parametrize("freeze", [freeze_all, freeze_a_block, freeze_all_but_the_head, freeze_a_part])
def test_frozen_layers_stay_frozen(freeze: Callable[[keras.Model], None], tmp_path: Path):
    model = built(pooling_cls=DiffStride)
    freeze(model)
    loaded = saved_and_loaded(model, tmp_path)
    assert flags_of(loaded) == flags_of(model)
    assert loaded.trainable == model.trainable
    # A frozen normalization computes with its averages in training, too.
    x = images((16, 16))
    np.testing.assert_array_equal(loaded(x, training=True), model(x, training=True))


@pytest.mark.parametrize("part", [ResidualLayer, partial(ResnetBlock, strides=2)], ids=["layer", "block"])
def test_a_part_of_a_network_stays_frozen(part: Any, tmp_path: Path):
    made = part(6, pooling_cls=DiffStride)
    model = keras.Sequential([keras.Input((16, 16, 6)), made])
    inner = made.layers[0] if isinstance(made, ResnetBlock) else made
    inner.parts()["norm_1"].trainable = False
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert names_of(loaded.trainable_weights) == names_of(model.trainable_weights)


# --- Functions that make layers of several kinds ---------------------------------------------------------------------
def test_poolings_of_several_kinds_are_saved(tmp_path: Path):
    def pooling(strides: Any, **kwargs: Any) -> DiffStride:
        return DiffStride(strides, upper_limit_stride=2.0 * strides, **kwargs)

    model = built(pooling_cls=pooling)
    for layer in diffstride_layers(model):
        layer.strides.assign([3.0, 3.0])
    loaded = saved_and_loaded(model, tmp_path)
    assert [layer.upper_limit_stride for layer in diffstride_layers(loaded)] == [2.0, 4.0]


def along_one_axis(strides: Any, **kwargs: Any) -> SpectralPooling:
    return SpectralPooling((strides, 1.0), **kwargs)


def to_a_size(strides: Any, **kwargs: Any) -> SpectralPooling:
    return SpectralPooling(output_size=(5, 7), **kwargs)


def in_full_precision(dtype: Any, **kwargs: Any) -> DiffStride:
    return DiffStride(dtype="float32", **kwargs)


def of_its_own_name(name: str, **kwargs: Any) -> DiffStride:
    return DiffStride(**kwargs)


def test_a_frozen_pooling_whose_function_names_it_otherwise_stays_frozen(tmp_path: Path):
    model = built(pooling_cls=of_its_own_name)
    model.get_layer("block_2").layers[0].parts()["pooling"].trainable = False
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert [layer.trainable for layer in diffstride_layers(loaded)] == [True, False]


@pytest.mark.parametrize("pooling_cls", [along_one_axis, to_a_size, in_full_precision])
def test_what_a_function_decides_itself_is_saved(pooling_cls: Any, tmp_path: Path):
    model = built(pooling_cls=pooling_cls, dtype="mixed_bfloat16")
    assert policies(saved_and_loaded(model, tmp_path)) == policies(model)
    layer = ResidualLayer(6, strides=2, project=True, pooling_cls=pooling_cls, dtype="mixed_bfloat16")
    copy = ResidualLayer.from_config(layer.get_config())
    for each in (layer, copy):
        each.build((None, 16, 16, 6))
    copy.set_weights(layer.get_weights())
    x = keras.ops.cast(np.ones([1, 16, 16, 6]), "bfloat16")
    np.testing.assert_array_equal(keras.ops.cast(copy(x), "float32"), keras.ops.cast(layer(x), "float32"))


def test_head_poolings_of_several_kinds_are_saved(tmp_path: Path):
    def pooling(name: str, **kwargs: Any) -> SpectralPooling:
        return SpectralPooling(1.5 if name.endswith("1") else 1.25, name=name, **kwargs)

    saved_and_loaded(built(head_pooling_cls=pooling, head_placement="after_each_block"), tmp_path)


@pytest.mark.parametrize("other", ["norm", "norm_1", "norm_2"])
def test_normalizations_of_several_kinds_are_saved(other: str, tmp_path: Path):
    def normalization(name: str, **kwargs: Any) -> keras.layers.Layer:
        return batch_norm(epsilon=0.5 if name == other else 1e-3, name=name, **kwargs)

    saved_and_loaded(built(normalization_cls=normalization), tmp_path)


def test_a_network_that_its_arguments_tell_is_saved_by_them_alone():
    config = built(pooling_cls=DiffStride).get_config()
    assert not {"layers", "frozen"} & config.keys()


def test_a_block_of_layers_that_cannot_be_saved_can_be_used():
    class Unsaved(keras.layers.Layer):
        def __init__(self, factor: float, **kwargs: Any):
            super().__init__(**kwargs)
            self.factor = factor

        def call(self, inputs: Any) -> Any:
            return inputs

        def compute_output_shape(self, input_shape: Any) -> Any:
            return input_shape

    def pooling(strides: Any, data_format: str, **kwargs: Any) -> keras.layers.Layer:
        return Unsaved(2.0, **kwargs)

    block = ResnetBlock(6, strides=1, pooling_cls=pooling)
    assert block(images((16, 16))).shape == (2, 16, 16, 6)
    with pytest.raises(NotImplementedError):
        block.get_config()
