import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from diffstride_hybrid import (
    DiffStride,
    FixedSpectralPooling,
    ResidualLayer,
    Resnet,
    ResnetBlock,
    SpatialPooling,
    SpectralPooling,
    macs,
    resnet18,
    resnet34,
    resnet56,
)
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.models.residual import batch_norm

POOLINGS: dict[str, Any] = {
    "strided": None,
    "DiffStride": DiffStride,
    "DiffStride tuned": partial(DiffStride, smoothness_factor=2.0, mask="symmetric", norm="forward"),
    "DiffStride static": partial(DiffStride, static_crop=True, lower_limit_stride=1.2, shared_stride=True),
    "FixedSpectralPooling": FixedSpectralPooling,
    "SpectralPooling": partial(SpectralPooling, norm="ortho", method="fft"),
    "SpatialPooling": partial(SpatialPooling, pool_size=2),
}
every_pooling = pytest.mark.parametrize("pooling_cls", POOLINGS.values(), ids=POOLINGS.keys())

Normalization = partial(batch_norm, momentum=0.8, epsilon=1e-4)


def images(size: tuple[int, int] = (32, 32), batch: int = 2) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, size=(batch, *size, 3)).astype("float32")


def small(size: tuple[int, int] = (32, 32), **kwargs: Any) -> Resnet:
    model = resnet18(width=4, num_output_classes=10, **kwargs)
    model.build((None, *size, 3))
    return model


def tiny(**kwargs: Any) -> Resnet:
    """Two blocks, of which the second downsamples, for a map of 16x16."""
    options = {"num_output_classes": 10, "id_only": [0], "num_layers": [1, 2], **kwargs}
    return Resnet([4, 4, 6], [1, 1, 2], **options)


def disturb(model: keras.layers.Layer) -> None:
    """Gives every weight but the strides a value that it does not start from, still positive for variances."""
    random = np.random.default_rng(1)
    for weight in model.weights:
        if weight.name != "strides":
            weight.assign(
                weight.numpy() * random.uniform(0.5, 1.5, weight.shape) + random.uniform(0, 0.1, weight.shape)
            )


def policies(model: keras.Model) -> list[str]:
    layers = model._flatten_layers(include_self=False)
    containers = (keras.Model, keras.layers.InputLayer)
    return [layer.dtype_policy.name for layer in layers if not isinstance(layer, containers)]


def numpy_result(model: Callable[..., tf.Tensor], x: np.ndarray) -> np.ndarray:
    return np.asarray(model(x, training=False), "float64")


# --- Architecture ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pooling_cls", "parameters"),
    [(None, 11_179_978), (FixedSpectralPooling, 11_179_978), (DiffStride, 11_179_986)],
)
def test_resnet18_has_the_parameters_of_the_release(pooling_cls: Any, parameters: int):
    model = resnet18(num_output_classes=10, pooling_cls=pooling_cls)
    model.build((None, 32, 32, 3))
    assert model.count_params() == parameters


@pytest.mark.parametrize(
    ("build", "convolutions", "projections"), [(resnet18, 17, 3), (resnet34, 33, 3), (resnet56, 55, 3)]
)
def test_depth_counts_convolutions_and_the_dense_layer(
    build: Callable[..., Resnet], convolutions: int, projections: int
):
    model = build(width=4, num_output_classes=7, pooling_cls=FixedSpectralPooling)
    model.build((None, 32, 32, 3))
    kernels = [weight.path for weight in model.weights if weight.name == "kernel" and len(weight.shape) == 4]
    assert sum("shortcut" in path for path in kernels) == projections
    assert len(kernels) - projections == convolutions
    assert model(images(batch=1)).shape == (1, 7)


@pytest.mark.parametrize(
    ("pooling_cls", "sizes"),
    [
        (DiffStride, (32, 24, 20, 18)),
        (partial(DiffStride, static_crop=True), (32, 24, 20, 18)),
        (partial(DiffStride, mask="symmetric"), (32, 23, 19, 17)),
        (FixedSpectralPooling, (32, 16, 8, 4)),
        (SpectralPooling, (32, 16, 8, 4)),
        (SpatialPooling, (32, 16, 8, 4)),
    ],
)
def test_sizes_of_the_feature_maps(pooling_cls: Any, sizes: tuple[int, ...]):
    pooled = macs(small(pooling_cls=pooling_cls)).pooling_sizes()
    assert [output for _, output in pooled.values()] == [(size, size) for size in sizes]
    assert [path.split("/", 1)[1] for path in pooled] == [
        "pooling",
        "block_2/layer_1/pooling",
        "block_3/layer_1/pooling",
        "block_4/layer_1/pooling",
    ]


@pytest.mark.parametrize(
    "pooling",
    [
        *(pytest.param(pooling, marks=pytest.mark.slow) for pooling in ("strided", "DiffStride static")),
        *("DiffStride", "SpectralPooling"),
    ],
)
def test_a_new_model_trains(pooling: str):
    model = Resnet([4, 6], [1, 2], 10, num_layers=1, pooling_cls=POOLINGS[pooling])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(images((16, 16)), np.array([1, 2]), verbose=0)
    assert len(model.losses) == len([w for w in model.weights if w.name == "kernel"]) + 1
    assert np.all(np.isfinite(model(images((16, 16)))))


@pytest.mark.parametrize("pooling_cls", [None, DiffStride, SpatialPooling])
def test_channels_first_has_the_same_shapes_and_parameters(pooling_cls: Any):
    kwargs = {"pooling_cls": pooling_cls, "head_pooling_cls": SpectralPooling}
    first, last = (small(channels_first=flag, **kwargs) for flag in (True, False))
    assert [w.shape for w in first.weights] == [w.shape for w in last.weights]
    assert first.input_shape == last.input_shape == (None, 32, 32, 3)
    assert first.output_shape == last.output_shape == (None, 10)
    shapes = {
        flag: [layer.output.shape for layer in model.layers if isinstance(layer, ResnetBlock)]
        for flag, model in ((True, first), (False, last))
    }
    assert shapes[True] == [(batch, channels, height, width) for batch, height, width, channels in shapes[False]]


def test_strides_may_differ_by_axis():
    strides = (1, 1, (2, 1), (1.5, 3.0), 2)
    model = small(strides=strides, pooling_cls=FixedSpectralPooling)
    assert [output for _, output in macs(model).pooling_sizes().values()] == [(32, 32), (16, 32), (10, 10), (4, 5)]
    assert small(strides=(1, 1, (2, 1), 1, (1, 2))).layers[4].output.shape[1:3] == (16, 16)


def test_id_only_blocks_do_not_project():
    model = Resnet([4, 4, 4], [1, 2, 2], 10, id_only=[0], num_layers=[1, 2], pooling_cls=FixedSpectralPooling)
    model.build((None, 16, 16, 3))
    assert [len(block.layers) for block in model.layers if isinstance(block, ResnetBlock)] == [1, 2]
    assert [path.split("/", 1)[1] for path in macs(model).pooling_sizes()] == ["pooling", "block_2/layer_1/pooling"]


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16", "float32", "float64"])
def test_the_classifier_is_at_least_float32(dtype: str):
    model = small(dtype=dtype, pooling_cls=DiffStride, head_pooling_cls=SpectralPooling)
    assert set(policies(model)) == ({dtype, "float32"} if "mixed" in dtype else {dtype})
    assert model.layers[-1].dtype_policy.name == ("float32" if "mixed" in dtype else dtype)
    assert model(images()).dtype == ("float64" if dtype == "float64" else "float32")


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


# --- The head --------------------------------------------------------------------------------------------------------


def headed(head_pooling_cls: Any, placement: str = "before_gap") -> Resnet:
    """Its last feature map has 3x5 samples for an image of 6x10."""
    keras.utils.set_random_seed(3)
    model = Resnet([4, 8], [1, 2], 10, num_layers=1, head_pooling_cls=head_pooling_cls, head_placement=placement)
    model.build((None, 6, 10, 3))
    disturb(model)
    return model


@pytest.mark.parametrize("method", ["fft", "matmul"])
@pytest.mark.parametrize(("norm", "factor"), [("forward", 1.0), ("backward", 3 * 5 / (2 * 3)), ("ortho", 2.5**0.5)])
def test_spectral_pooling_straight_before_the_average_only_multiplies(norm: str, factor: float, method: str):
    plain = headed(None)
    pooled = headed(partial(SpectralPooling, output_size=(2, 3), norm=norm, method=method))
    bias = plain.layers[-1].bias.numpy()
    logits = numpy_result(plain, images((6, 10)))
    assert np.abs(logits - bias).max() > 0.1
    np.testing.assert_allclose(
        numpy_result(pooled, images((6, 10))) - bias, factor * (logits - bias), rtol=1e-4, atol=1e-5
    )


def test_spectral_pooling_before_the_activation_acts():
    plain, acting = (headed(cls, "before_activation") for cls in (None, partial(SpectralPooling, norm="forward")))
    difference = numpy_result(acting, images((6, 10))) - numpy_result(plain, images((6, 10)))
    assert np.abs(difference).max() > 1e-3
    names = [layer.name for layer in acting.layers]
    assert names[-5:] == ["head_pooling", "norm", "relu", "average", "classifier"]


def test_spectral_pooling_after_each_block_pools_what_each_gives():
    model = small(strides=(1, 1, 1, 2, 1), head_pooling_cls=SpectralPooling, head_placement="after_each_block")
    order = [layer.name for layer in model.layers]
    assert order[1:9] == [f"{kind}_{i}" for i in range(1, 5) for kind in ("block", "head_pooling")]
    outputs = [output for _, output in macs(model).pooling_sizes().values()]
    assert outputs == [(16, 16), (8, 8), (2, 2), (2, 2)]


@pytest.mark.parametrize(
    ("placement", "poolings", "strided"),
    [
        ("everywhere", ["pooling", "block_2", "block_3", "block_4"], {}),
        ("first_convolution", ["pooling"], {"block_2", "block_3", "block_4"}),
        ("blocks", ["block_2", "block_3", "block_4"], {"conv"}),
    ],
)
def test_poolings_stand_where_they_are_placed(placement: str, poolings: list[str], strided: set[str]):
    model = small(strides=(2, 1, 2, 2, 2), pooling_cls=FixedSpectralPooling, pooling_placement=placement)
    cost = macs(model)
    assert [path.split("/")[1] for path in cost.pooling_sizes()] == poolings
    convolutions = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.Conv2D)]
    assert {layer.path.split("/")[1] for layer in convolutions if layer.strides == (2, 2)} == set(strided)
    assert numpy_result(model, images()).shape == (2, 10)


def test_head_placement_without_a_head_pooling_changes_nothing():
    x = images((6, 10))
    np.testing.assert_array_equal(headed(None, "before_activation")(x), headed(None)(x))


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
