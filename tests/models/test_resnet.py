"""The ResNets: sizes, parameters, options."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.resnet_cases import POOLINGS, disturb, images, policies, small

from diffstride_hybrid import (
    DiffStride,
    FixedSpectralPooling,
    Resnet,
    ResnetBlock,
    SpatialPooling,
    SpectralPooling,
    macs,
    resnet18,
    resnet34,
    resnet56,
)
from diffstride_hybrid.layers.fourier_pooling import FourierPooling
from diffstride_hybrid.model_tools.inspection import leaf_layers
from diffstride_hybrid.models.residual import WeightDecay


def numpy_result(model: Callable[..., tf.Tensor], x: np.ndarray) -> np.ndarray:
    return np.asarray(model(x, training=False), "float64")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling_placement": "blocks"}, "pooling_placement of a Resnet act on nothing if pooling_cls is None"),
        (
            {"recompute_pooling": True, "pooling_placement": "blocks"},
            "pooling_placement and recompute_pooling of a Res",
        ),
        ({"head_placement": "before_activation"}, "head_placement of a Resnet act on nothing if head_pooling_cls is N"),
    ],
)
def test_settings_of_poolings_that_there_are_not_are_named(settings: dict[str, Any], message: str):
    with pytest.warns(UserWarning, match=message):
        Resnet([4, 6], [1, 2], 10, num_layers=1, **settings)
    Resnet([4, 6], [1, 2], 10, num_layers=1, pooling_cls=DiffStride, head_pooling_cls=SpectralPooling, **settings)


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
    plain, acting = headed(None), headed(partial(SpectralPooling, norm="forward"), "before_activation")
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
    convolutions = [layer for layer in leaf_layers(model) if isinstance(layer, keras.layers.Conv2D)]
    assert {layer.path.split("/")[1] for layer in convolutions if layer.strides == (2, 2)} == set(strided)
    assert numpy_result(model, images()).shape == (2, 10)


def test_head_placement_without_a_head_pooling_changes_nothing():
    x = images((6, 10))
    with pytest.warns(UserWarning, match="head_placement of a Resnet act on nothing"):
        idle = headed(None, "before_activation")
    np.testing.assert_array_equal(idle(x), headed(None)(x))


# --- Errors ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"strides": (1, 2, 2)}, "filters and strides must .*got 2 filters and 3 strides"),
        ({"num_layers": [2, 2]}, r"num_layers must be one number or one for each of the 1 blocks, got \[2, 2\]"),
        ({"num_layers": 0}, "num_layers must be a whole number of at least 1, got 0"),
        ({"num_layers": [1.5]}, r"num_layers must be a whole number of at least 1, got 1\.5"),
        ({"id_only": [1]}, r"id_only must list blocks by their numbers, counted from 0 to 0, got \[1\]"),
        ({"id_only": 0}, "id_only must list blocks by their numbers, counted from 0 to 0, got 0"),
        ({"head_placement": "end"}, "head_placement must be one of 'before_gap', .*'after_each_block', got 'end'"),
        (
            {"pooling_placement": "stem"},
            "pooling_placement must be one of 'everywhere', 'first_convolution', 'blocks', got 'stem'",
        ),
        ({"stride_complexity": -1.0}, "stride_complexity must be finite and at least 0, got -1.0"),
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


def test_a_block_that_would_change_the_channels_without_projecting_is_named():
    model = Resnet([4, 6], (1, 2), 10, id_only=[0])
    with pytest.raises(ValueError, match=r"project=False .*gets 4 and has filters=6: .* take its block out of id_only"):
        model.build((None, 16, 16, 3))


def test_poolings_know_the_largest_map_and_a_step_holds_products_alone(tmp_path: Path):
    """Maps of unknown size need both engines otherwise, and a graph of twice the size."""
    model = small(pooling_cls=DiffStride, head_pooling_cls=SpectralPooling)
    model.save(tmp_path / "model.keras")
    for each in (model, keras.models.load_model(tmp_path / "model.keras")):
        poolings = [layer for layer in leaf_layers(each) if isinstance(layer, FourierPooling)]
        assert [layer.largest_map for layer in poolings] == [(32, 32)] * 5
        step = tf.function(lambda images, each=each: each(images, training=True), autograph=False)
        graph = step.get_concrete_function(tf.TensorSpec([None, 32, 32, 3])).graph.as_graph_def()
        operations = {node.op for function in graph.library.function for node in function.node_def}
        assert "BatchMatMulV2" in operations
        assert not {operation for operation in operations if "FFT" in operation or "If" in operation}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_weight_decay_and_its_gradient_are_those_of_keras(dtype: str):
    kernel = tf.constant(np.random.default_rng(0).normal(size=(3, 3, 2, 5)), dtype)
    values = []
    for regularizer in (WeightDecay(0.3), keras.regularizers.L2(0.3)):
        with tf.GradientTape() as tape:
            tape.watch(kernel)
            loss = regularizer(kernel)
        values.append((loss, tape.gradient(loss, kernel)))
    for one, other in zip(*values, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-6)
