from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.swapped_models import branches, chain, disturbed, images, nested, padded

from diffstride_hybrid import FixedSpectralPooling, SpectralPooling, macs, replace_downsampling
from diffstride_hybrid.model_tools.inspection import diffstride_layers, leaf_layers

layers = keras.layers


MODELS = {"Sequential": chain, "branches": branches, "nested": nested, "padded": padded}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())


@every_model
@pytest.mark.parametrize("options", [{}, {"keep_max": False}, {"keep_macs": True}], ids=["max", "no max", "macs"])
def test_where_nothing_is_cropped_a_model_equals_the_one_without_downsampling(
    options: dict[str, bool], make: Callable[..., keras.Model]
):
    model = disturbed(make())
    swapped = replace_downsampling(model, strides=1.0, smoothness_factor=64.0, **options)
    unstrided = make(downsamples=False, **options)
    unstrided.set_weights(model.get_weights())
    assert np.abs(np.asarray(unstrided(images())) - np.asarray(model(images()))).max() > 1e-3
    np.testing.assert_allclose(swapped(images()), unstrided(images()), atol=1e-5)


@every_model
def test_a_swapped_model_trains_saves_and_loads(make: Callable[..., keras.Model], tmp_path: Path):
    swapped = replace_downsampling(make(), smoothness_factor=2.0)
    learned = diffstride_layers(swapped)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(swapped(images(), training=True) ** 2)
    for gradient in tape.gradient(loss, [layer.strides.value for layer in learned]):
        assert np.all(gradient.numpy() != 0)
    swapped.compile("sgd", "mse", run_eagerly=True)
    swapped.fit(images(), np.zeros([2, 4]), verbose=0)
    swapped.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images()), swapped(images()))


@every_model
def test_the_model_itself_is_left_as_it_was(make: Callable[..., keras.Model]):
    model = disturbed(make())
    config, outputs = model.get_config(), model(images()).numpy()
    swapped = replace_downsampling(model)
    assert not set(map(id, leaf_layers(swapped))) & set(map(id, leaf_layers(model)))
    for weight in swapped.weights:
        weight.assign(tf.zeros_like(weight))
    np.testing.assert_array_equal(model(images()), outputs)
    assert model.get_config() == config


def test_what_is_replaced_and_with_what():
    swapped = replace_downsampling(chain())
    assert type(swapped) is keras.Sequential
    assert [layer.name for layer in swapped.layers] == [
        "stem_padding",
        "stem",
        "stem_downsampling",
        "batch_normalization",
        "re_lu",
        "max",
        "max_downsampling",
        "separable_padding",
        "separable",
        "separable_downsampling",
        "average_downsampling",
        "global_average_pooling2d",
        "classifier",
    ]
    assert swapped.get_layer("stem").strides == swapped.get_layer("separable").strides == (1, 1)
    for layer in diffstride_layers(swapped):
        assert (layer.mask, layer.norm, layer.initial_strides) == ("symmetric", "forward", (2.0, 2.0))


def test_branches_that_meet_share_a_pooling_and_agree_whatever_the_strides():
    swapped = replace_downsampling(branches())
    learned = diffstride_layers(swapped)
    assert len(learned) == 2
    assert {layer.name for layer in learned} & {"depthwise_downsampling", "shortcut_downsampling"}
    for strides in ((1.3, 2.7), (3.1, 1.9)):
        for layer in learned:
            layer.strides.assign(strides)
        assert swapped(images()).shape == (2, 4)


def test_a_layer_may_downsample_maps_of_several_sizes():
    pool = layers.MaxPooling2D(2, name="pool")
    inputs = keras.Input((32, 32, 3))
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(pool(layers.Conv2D(4, 3)(pool(inputs)))))
    learned = diffstride_layers(replace_downsampling(model))
    assert [layer.name for layer in learned] == ["pool_downsampling", "pool_downsampling_1"]


def test_maps_of_another_data_format_have_a_pooling_of_their_own():
    inputs = keras.Input((16, 16, 16))
    pooled = [layers.MaxPooling2D(2, data_format=each)(inputs) for each in ("channels_last", "channels_first")]
    swapped = replace_downsampling(keras.Model(inputs, pooled), smoothness_factor=1.0)
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 16)).astype("float32")
    assert [output.shape for output in swapped(x)] == [(2, 9, 9, 16), (2, 16, 9, 9)]


def test_a_layer_of_several_models_stays_one_layer():
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    inner = keras.Sequential([keras.Input((32, 32, 3)), shared])
    inputs = keras.Input((32, 32, 3))
    swapped = replace_downsampling(keras.Model(inputs, layers.MaxPooling2D(2)(shared(inner(inputs)))))
    assert len(swapped.trainable_weights) == 3


def test_an_adapted_normalization_stays_adapted():
    normalization = layers.Normalization()
    normalization.adapt(3 * images() + 7)
    model = keras.Sequential([keras.Input((32, 32, 3)), normalization, layers.MaxPooling2D(2)])
    copy = replace_downsampling(model).layers[0]
    np.testing.assert_array_equal(copy(images()), normalization(images()))


def test_functions_that_are_not_registered_are_copied_and_so_is_what_was_compiled_with_them():
    def clipped(x: tf.Tensor) -> tf.Tensor:
        return tf.clip_by_value(x, 0, 1)

    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, strides=2, activation=clipped)(inputs)
    model = keras.Model(inputs, layers.Lambda(lambda x: 2 * x, dtype="bfloat16")(x))
    model.compile("sgd", lambda labels, outputs: tf.reduce_sum(outputs))
    swapped = replace_downsampling(model)
    (convolution,) = [layer for layer in swapped.layers if isinstance(layer, layers.Conv2D)]
    assert convolution.activation is clipped
    assert swapped.layers[-1].compute_dtype == "bfloat16"
    assert not swapped.compiled


class Block(layers.Layer):
    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.convolution = layers.Conv2D(3, 3, strides=2, name="convolution")

    def call(self, inputs: Any) -> Any:
        return self.convolution(inputs)


def test_the_report_names_what_keeps_its_strides():
    reports: list[str] = []
    replace_downsampling(model_of(layers.MaxPooling2D(2), Block(name="block")), report=reports.append)
    assert "keeping their strides: block/convolution\n" in reports[0]


@pytest.mark.parametrize(
    ("selection", "replaced"),
    [
        ({"include": "stem"}, {"stem"}),
        ({"include": ["stem", "max"]}, {"stem", "max"}),
        ({"include": lambda layer: "pool" in type(layer).__name__.lower()}, {"max", "average"}),
        ({"exclude": "stem"}, {"max", "separable", "average"}),
        ({"include": ["stem", "max"], "exclude": lambda layer: layer.name == "max"}, {"stem"}),
    ],
    ids=["name", "names", "predicate", "all but a name", "names but a predicate"],
)
def test_layers_are_selected_by_name_or_by_a_predicate(selection: dict[str, Any], replaced: set[str]):
    swapped = replace_downsampling(chain(), **selection)
    assert {layer.name.removesuffix("_downsampling") for layer in diffstride_layers(swapped)} == replaced
    kept = {"stem", "separable"} - replaced
    assert all(swapped.get_layer(name).strides == (2, 2) for name in kept)


@pytest.mark.parametrize("pooling_cls", [FixedSpectralPooling, SpectralPooling])
def test_other_poolings_serve_as_well(pooling_cls: type[keras.layers.Layer]):
    swapped = replace_downsampling(chain(), pooling_cls, norm="backward")
    poolings = [layer for layer in swapped.layers if type(layer) is pooling_cls]
    assert len(poolings) == 4
    assert {layer.norm for layer in poolings} == {"backward"}
    assert [size for _, size in macs(swapped).pooling_sizes().values()] == [(16, 16), (8, 8), (4, 4), (2, 2)]


def test_the_report_has_sizes_and_macs():
    reports: list[str] = []
    model = chain()
    swapped = replace_downsampling(model, smoothness_factor=1.0, report=reports.append)
    head, *rows, total = reports[0].splitlines()
    assert head.split() == ["layer", "kind", "before", "after", "pooling"]
    assert rows[0].split() == ["stem", "Conv2D", "32x32", "to", "16x16", "32x32", "to", "17x17", "stem_downsampling"]
    assert len(rows) == 4
    assert total.startswith(
        f"{macs(model).macs / 1e9:.3f} G MACs an image before, {macs(swapped).macs / 1e9:.3f} G after"
    )


def test_a_model_of_any_size_needs_one():
    inputs = keras.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.MaxPooling2D(2)(layers.Conv2D(4, 3)(inputs)))
    model = keras.Model(inputs, x, name="free")
    with pytest.raises(ValueError, match=r"free needs input_shape=\(height, width, channels\).*None"):
        replace_downsampling(model)
    assert replace_downsampling(model, input_shape=(24, 24, 3))(images(24)).shape == (2, 4)


class Own(keras.Model):
    def __init__(self):
        super().__init__(name="own")
        self.pool = layers.MaxPooling2D(2)

    def call(self, inputs: Any) -> Any:
        return self.pool(inputs)


class Unconfigured(keras.layers.Layer):
    def __init__(self, function: Callable[[Any], Any], **kwargs: Any):
        super().__init__(**kwargs)
        self.function = function

    def call(self, inputs: Any) -> Any:
        return self.function(inputs)


class Unclonable(keras.layers.Layer):
    def __init__(self, something: int, **kwargs: Any):
        super().__init__(**kwargs)

    def call(self, inputs: Any) -> Any:
        return inputs

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name}


def model_of(*parts: keras.layers.Layer) -> keras.Model:
    return keras.Sequential([keras.Input((16, 16, 3)), *parts], name="parts")


def unequal_branches() -> keras.Model:
    inputs = keras.Input((16, 16, 3))
    once = layers.MaxPooling2D(4)(inputs)
    twice = layers.MaxPooling2D(2)(layers.MaxPooling2D(2)(inputs))
    return keras.Model(inputs, layers.Add()([once, twice]), name="unequal")


def branches_equal_by_chance() -> keras.Model:
    """Of 28 samples a stride of 4 keeps 9, and two strides of 2 keep 15 and 9, with the options of the test."""
    inputs = keras.Input((28, 28, 3))
    once = layers.MaxPooling2D(4)(inputs)
    twice = layers.MaxPooling2D(2)(layers.MaxPooling2D(2)(inputs))
    return keras.Model(inputs, layers.Add()([once, twice]), name="chance")


def test_branches_that_agree_by_chance_are_refused():
    model = branches_equal_by_chance()
    with pytest.raises(ValueError, match="The maps of chance do not fit together any more at layer add"):
        replace_downsampling(model, smoothness_factor=1.0)
    swapped = replace_downsampling(model, SpectralPooling)  # Its strides stay as they are.
    assert swapped(np.ones([1, 28, 28, 3])).shape == (1, 7, 7, 3)


@pytest.mark.parametrize("pooling", [layers.AveragePooling2D, layers.MaxPooling2D])
def test_a_pooling_of_the_whole_map_at_stride_1_becomes_a_global_one(pooling: type[keras.layers.Layer]):
    parts = [layers.MaxPooling2D(2), pooling(8, strides=1, name="head"), layers.Conv2D(5, 1)]
    model = keras.Sequential([keras.Input((16, 16, 3)), *parts])
    swapped = replace_downsampling(model)
    assert isinstance(swapped.layers[-2], layers.GlobalMaxPooling2D | layers.GlobalAveragePooling2D)
    assert isinstance(swapped.layers[-2], layers.GlobalMaxPooling2D) == (pooling is layers.MaxPooling2D)
    assert swapped(images()[:, :16, :16]).shape[1:] == model.output_shape[1:] == (1, 1, 5)
    assert replace_downsampling(model, exclude="head").get_layer("head").strides == (1, 1)


def branch_in_a_model() -> keras.Model:
    inputs = keras.Input((16, 16, 3))
    inner = keras.Sequential([keras.Input((16, 16, 3)), layers.MaxPooling2D(2)], name="inner")
    return keras.Model(inputs, layers.Add()([inner(inputs), layers.MaxPooling2D(2, name="outer")(inputs)]), name="two")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Own, "own must be a functional or Sequential model: what a Own calls in code of its own"),
        (lambda: keras.Sequential([layers.MaxPooling2D(2)], name="unbuilt"), "unbuilt must be built"),
        (lambda: model_of(layers.Conv2D(4, 3), layers.MaxPooling2D(2, strides=1)), "parts has no layer to replace"),
        (
            lambda: model_of(layers.MaxPooling2D(2), layers.Permute((2, 3, 1)), layers.Dense(4, name="features")),
            "Layer features cannot follow a map of another size: .*Exclude what is before it",
        ),
        (
            lambda: model_of(layers.MaxPooling2D(2), Unclonable(3, name="mine")),
            "Layer mine cannot be copied: .*something",
        ),
        (
            lambda: model_of(layers.MaxPooling2D(2), Unconfigured(lambda x: x, name="mine")),
            "Layer mine cannot be copied: .*must override `get_config",
        ),
        (
            lambda: model_of(Block(name="block")),
            "parts has no layer to replace: .*These keep theirs: .*block/convolution",
        ),
        (branch_in_a_model, "Layer outer of two would share max_pooling2d.*_downsampling with inner"),
        (
            unequal_branches,
            "The maps of unequal do not fit together any more at layer add.*: .*Exclude some of its layers",
        ),
        (
            lambda: keras.Model([a := keras.Input((8, 8, 3)), b := keras.Input((8, 8, 3))], a + b, name="two"),
            "two must have one input, got 2",
        ),
    ],
    ids=[
        "subclassed",
        "unbuilt",
        "nothing",
        "over rows",
        "custom",
        "unconfigured",
        "inside",
        "nested",
        "unequal",
        "two inputs",
    ],
)
def test_what_cannot_be_done_is_refused_with_its_reason(make: Callable[[], keras.Model], message: str):
    with pytest.raises(ValueError, match=message) as error:
        replace_downsampling(make())
    assert "\n" not in str(error.value)


def test_a_model_of_signals_is_told_from_one_of_images():
    signals = [keras.Input((4000, 1)), layers.Conv1D(4, 3, strides=4), layers.MaxPooling1D(2)]
    with pytest.raises(ValueError, match=r"heard takes \(4000, 1\) and no images of .*: for signals, put DiffStride1D"):
        replace_downsampling(keras.Sequential(signals, name="heard"))
    with pytest.raises(ValueError, match=r"flat takes \(8,\) and no images of .*swapped\.$"):
        replace_downsampling(keras.Sequential([keras.Input((8,)), layers.Dense(3)], name="flat"))


def test_a_report_that_is_no_function_is_refused_at_once():
    with pytest.raises(TypeError, match="report must be a function such as print, got True"):
        replace_downsampling(chain(), report=True)


def test_a_selection_of_the_wrong_kind_is_named():
    with pytest.raises(ValueError, match="chain has no layer stme, which include selects"):
        replace_downsampling(chain(), include=["stme", "max"])
    with pytest.raises(TypeError, match=r"exclude must be a name, names or a function of a layer, got \[3\]"):
        replace_downsampling(chain(), exclude=[3])


FAMILIES: dict[str, tuple[str, int]] = {
    "VGG16": ("VGG16", 64),
    "ResNet50": ("ResNet50", 64),
    "ResNet50V2": ("ResNet50V2", 64),
    "MobileNet": ("MobileNet", 64),
    "MobileNetV2": ("MobileNetV2", 64),
    "MobileNetV3Small": ("MobileNetV3Small", 64),
    "DenseNet121": ("DenseNet121", 64),
    "EfficientNetB0": ("EfficientNetB0", 64),
    "Xception": ("Xception", 71),
    "InceptionV3": ("InceptionV3", 75),
    "NASNetMobile": ("NASNetMobile", 64),
    "ConvNeXtTiny": ("ConvNeXtTiny", 64),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), FAMILIES.values(), ids=FAMILIES.keys())
def test_models_of_keras_applications_are_swapped(name: str, size: int, tmp_path: Path):
    make = getattr(keras.applications, name)
    model = make(weights=None, include_top=False, pooling="avg", input_shape=(size, size, 3))
    swapped = replace_downsampling(model, smoothness_factor=2.0)
    learned = diffstride_layers(swapped)
    assert learned
    downsampling = (layers.Conv2D, layers.DepthwiseConv2D, layers.SeparableConv2D, layers.MaxPooling2D)
    downsampling += (layers.AveragePooling2D,)
    of_those = [layer for layer in leaf_layers(swapped) if isinstance(layer, downsampling)]
    assert not [layer.name for layer in of_those if max(layer.strides) > 1]
    x = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3)).astype("float32")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(swapped(x, training=True) ** 2)
    for layer, gradient in zip(learned, tape.gradient(loss, [layer.strides.value for layer in learned])):
        assert gradient is not None and np.all(np.isfinite(gradient)) and np.any(gradient.numpy() != 0), layer.name
    swapped.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x, training=False), swapped(x, training=False))
