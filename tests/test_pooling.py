import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

import diffstride_hybrid
from diffstride_hybrid import (
    DiffStride,
    FixedSpectralPooling,
    SpatialPooling,
    SpectralPooling,
    StrideConstraint,
    spectral,
)

NOT_POOLINGS = {"FusedBatchNormalization", "ResidualLayer", "Resnet", "ResnetBlock"}
OF_SIGNALS = {"DiffStride1D", "SpectralPooling1D"}  # test_pooling_1d.py has these.
POLICIES = ("float32", "float64", "mixed_float16", "mixed_bfloat16")
SHAPE = (2, 12, 14, 3)


class Case(NamedTuple):
    cls: type[keras.layers.Layer]
    arguments: dict[str, Any]
    pooled: tuple[int, int]
    dynamic: bool = False

    def layer(self, **kwargs: Any) -> keras.layers.Layer:
        return self.cls(**self.arguments, **kwargs)


CASES = {
    "DiffStride": Case(DiffStride, {"strides": (2.5, 1.5)}, (14 - 2, 14), dynamic=True),
    "DiffStride ramp of 2": Case(DiffStride, {"strides": (2.5, 3.0), "smoothness_factor": 2}, (10, 10), dynamic=True),
    "DiffStride fft": Case(DiffStride, {"strides": 3, "smoothness_factor": 1, "method": "fft"}, (6, 8), dynamic=True),
    "DiffStride symmetric": Case(
        DiffStride, {"strides": 3, "smoothness_factor": 1, "mask": "symmetric"}, (5, 7), dynamic=True
    ),
    "DiffStride shared": Case(DiffStride, {"strides": 3.0, "shared_stride": True}, (12, 14), dynamic=True),
    "DiffStride fixed": Case(
        DiffStride, {"strides": (2.5, 3.0), "smoothness_factor": 2, "trainable": False}, (10, 10), dynamic=True
    ),
    "DiffStride uncropped": Case(DiffStride, {"strides": (2.5, 3.0), "cropping": False, "norm": "forward"}, (12, 14)),
    "DiffStride static": Case(
        DiffStride, {"strides": (2.5, 3.0), "smoothness_factor": 2, "static_crop": True, "norm": "ortho"}, (10, 10)
    ),
    "DiffStride static symmetric": Case(
        DiffStride, {"strides": 3, "smoothness_factor": 1, "static_crop": True, "mask": "symmetric"}, (5, 7)
    ),
    "FixedSpectralPooling": Case(FixedSpectralPooling, {"strides": (1.5, 2.5)}, (8, 5)),
    "FixedSpectralPooling fft": Case(FixedSpectralPooling, {"method": "fft", "norm": "ortho"}, (6, 7)),
    "SpectralPooling": Case(SpectralPooling, {"strides": (1.5, 2.5), "norm": "forward"}, (8, 5)),
    "SpectralPooling fft": Case(SpectralPooling, {"output_size": (7, 6), "method": "fft"}, (7, 6)),
    "SpatialPooling": Case(SpatialPooling, {"pool_size": (3, 2), "strides": (2, 3)}, (6, 5)),
    "SpatialPooling fractional": Case(SpatialPooling, {"strides": (1.5, 2.5)}, (8, 6)),
}

EVERY_ARGUMENT = {
    DiffStride: {
        "strides": (3.5, 3.5),
        "smoothness_factor": 1.5,
        "cropping": False,
        "trainable": False,
        "shared_stride": True,
        "lower_limit_stride": 1.25,
        "upper_limit_stride": 5.5,
        "data_format": "channels_first",
        "mask": "symmetric",
        "norm": "ortho",
        "method": "fft",
        "static_crop": True,
    },
    FixedSpectralPooling: {
        "strides": (1.5, 2.5),
        "data_format": "channels_first",
        "norm": "ortho",
        "method": "fft",
    },
    SpectralPooling: {
        "strides": (1.5, 2.5),
        "output_size": (5, 4),
        "data_format": "channels_first",
        "norm": "ortho",
        "method": "fft",
    },
    SpatialPooling: {
        "pool_size": (3, 2),
        "strides": (3, 1),
        "padding": "valid",
        "data_format": "channels_first",
    },
}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_policy = pytest.mark.parametrize("policy", POLICIES)
every_data_format = pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
every_class = pytest.mark.parametrize("cls", EVERY_ARGUMENT)
every_fourier_class = pytest.mark.parametrize("cls", [DiffStride, FixedSpectralPooling, SpectralPooling])


def images(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def in_format(shape: tuple[int | None, ...], data_format: str) -> tuple[int | None, ...]:
    return shape if data_format == "channels_last" else (shape[0], shape[-1], *shape[1:-1])


def model_of(case: Case, **kwargs: Any) -> keras.Sequential:
    """A model around one layer, with strides that training might have left."""
    model = keras.Sequential([keras.Input(SHAPE[1:]), case.layer(**kwargs)])
    for weight in model.weights:
        weight.assign(weight.numpy() + np.linspace(0.25, 0.125, weight.shape[0]))
    return model


def result(model: Callable[..., Any], x: np.ndarray) -> np.ndarray:
    return keras.ops.convert_to_numpy(model(x)).astype("float64")


def test_every_public_pooling_is_held_to_the_contract():
    public = {name: getattr(diffstride_hybrid, name) for name in diffstride_hybrid.__all__}
    layers = {
        name for name, value in public.items() if isinstance(value, type) and issubclass(value, keras.layers.Layer)
    }
    assert layers - NOT_POOLINGS - OF_SIGNALS == {cls.__name__ for cls in EVERY_ARGUMENT}
    assert {case.cls for case in CASES.values()} == set(EVERY_ARGUMENT)


@every_data_format
@pytest.mark.parametrize("static", [True, False])
def test_fractional_sampling_takes_the_samples_at_the_floors_of_whole_strides(data_format: str, static: bool):
    x = images()
    height, width = x.shape[1:3]
    for rows, columns in ((height, width), (height - 1, width - 3), (height // 2, 1), (7, 4)):
        layer = SpatialPooling(strides=(height / rows, width / columns), data_format=data_format)
        expected = x[:, [i * height // rows for i in range(rows)]][:, :, [i * width // columns for i in range(columns)]]
        inputs = x if data_format == "channels_last" else x.transpose(0, 3, 1, 2)
        shape = inputs.shape if static else [None] * 4
        outputs = tf.function(layer.__call__, input_signature=[tf.TensorSpec(shape)])(inputs)
        outputs = outputs if data_format == "channels_last" else np.transpose(outputs, [0, 2, 3, 1])
        np.testing.assert_array_equal(outputs, expected)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.cls is not SpatialPooling])
@every_data_format
def test_constants_give_what_the_layer_gives(name: str, data_format: str):
    x = images() if data_format == "channels_last" else images().transpose(0, 3, 1, 2)
    layer = CASES[name].layer(data_format=data_format)
    layer.build(x.shape)
    for weight in layer.weights:
        weight.assign(weight.numpy() + np.linspace(0.25, 0.125, weight.shape[0]))
    expected = layer(x)
    constants = tf.function(layer.constant_call)
    np.testing.assert_allclose(constants(x), expected, atol=2e-6 * np.abs(expected).max())
    graph = constants.get_concrete_function(tf.TensorSpec([None, *x.shape[1:]])).graph
    operations = {operation.type for operation in graph.get_operations()}
    assert not [name for name in operations if "FFT" in name or "Variable" in name or name in ("Cos", "Where", "Range")]
    assert graph.outputs[0].shape[1:] == expected.shape[1:]
    with pytest.raises(ValueError, match="can only be exported for inputs of a known size"):
        constants.get_concrete_function(tf.TensorSpec([None] * 4))


# --- Shapes ----------------------------------------------------------------------------------------------------------


@every_case
@every_data_format
def test_eager_symbolic_and_computed_shapes_agree(case: Case, data_format: str):
    layer = case.layer(data_format=data_format)
    shape = in_format(SHAPE, data_format)
    symbolic = tuple(layer(keras.Input(shape[1:], batch_size=2)).shape)
    eager = tuple(layer(images(shape)).shape)
    known = in_format((2, *case.pooled, 3), data_format)
    assert eager == known
    assert symbolic == (in_format((2, None, None, 3), data_format) if case.dynamic else known)
    assert tuple(layer.compute_output_shape(shape)) == symbolic
    assert tuple(layer.compute_output_shape((None, *shape[1:]))) == (None, *symbolic[1:])


@every_case
@every_data_format
def test_sizes_may_be_unknown_until_the_call(case: Case, data_format: str):
    shape = in_format((None, None, None, 3), data_format)
    if case.arguments.get("static_crop"):
        layer = case.layer(data_format=data_format)
        layer.build(in_format(SHAPE, data_format))
        computed = layer.compute_output_shape(shape)
        assert computed[0] is None and computed[-1 if data_format == "channels_last" else 1] == 3
        return
    layer = case.layer(data_format=data_format)
    model = keras.Sequential([keras.Input(shape[1:]), layer])
    size = case.arguments.get("output_size") or (None, None)
    assert tuple(layer.compute_output_shape(shape)) == model.output_shape == in_format((None, *size, 3), data_format)
    if data_format == "channels_last":
        np.testing.assert_allclose(model.predict(images(), verbose=0), case.layer()(images()), rtol=1e-5, atol=1e-5)


@every_case
def test_layouts_agree(case: Case):
    x = images()
    y = np.moveaxis(case.layer(data_format="channels_first")(np.moveaxis(x, 3, 1)), 1, 3)
    np.testing.assert_allclose(y, case.layer()(x), rtol=1e-5, atol=1e-5)


@every_class
def test_data_format_follows_keras(cls: type[keras.layers.Layer]):
    keras.config.set_image_data_format("channels_first")
    assert cls().data_format == "channels_first"
    assert cls()(images((1, 3, 12, 14))).shape[1] == 3


# --- Configuration and saving ----------------------------------------------------------------------------------------


@every_class
def test_config_round_trips_every_argument(cls: type[keras.layers.Layer]):
    arguments = EVERY_ARGUMENT[cls]
    signature = inspect.signature(cls).parameters
    assert set(signature) - {"kwargs"} == set(arguments)
    layer = cls(**arguments, dtype="mixed_bfloat16", name="anything")
    config = layer.get_config()
    for name, value in arguments.items():
        assert config[name] == value != signature[name].default
    for copy in (
        cls.from_config(config),
        keras.saving.deserialize_keras_object(json.loads(json.dumps(keras.saving.serialize_keras_object(layer)))),
    ):
        assert type(copy) is cls
        assert copy.get_config() == config
        np.testing.assert_array_equal(result(copy, images((2, 3, 12, 14))), result(layer, images((2, 3, 12, 14))))


@every_class
def test_one_number_serves_both_axes(cls: type[keras.layers.Layer]):
    assert cls(strides=3).get_config()["strides"] == (3, 3)


def test_stride_constraint_round_trips_its_limits():
    constraint = StrideConstraint([1.5, 2.0], 4.0)
    copy = keras.constraints.deserialize(keras.constraints.serialize(constraint))
    assert copy.get_config() == constraint.get_config() == {"lower_limit": [1.5, 2.0], "upper_limit": 4.0}
    np.testing.assert_array_equal(copy(np.array([0.0, 9.0], "float32")), [1.5, 4.0])
    np.testing.assert_array_equal(StrideConstraint()(np.array([0.0, 9.0], "float32")), [1.0, 9.0])


@every_case
@every_policy
def test_a_saved_model_loads_to_the_same_bits(case: Case, policy: str, tmp_path: Path):
    model = model_of(case, dtype=policy)
    expected = result(model, images())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[0]) is case.cls
    assert loaded.layers[0].dtype_policy.name == policy
    np.testing.assert_array_equal(result(loaded, images()), expected)
    assert loaded.output_shape == model.output_shape


def test_saved_models_load_in_a_fresh_process(tmp_path: Path, request: pytest.FixtureRequest):
    expected = {}
    for name, case in CASES.items():
        model = model_of(case)
        model.save(tmp_path / f"{name}.keras")
        expected[name] = result(model, images())
    np.save(tmp_path / "images.npy", images())
    script = """
import pathlib, sys
import keras, numpy as np
import diffstride_hybrid
assert not {"gin", "tensorflow_datasets"} & set(sys.modules), "importing the package must not need gin or TFDS"
folder = pathlib.Path(sys.argv[1])
x = np.load(folder / "images.npy")
results = {}
for path in folder.glob("*.keras"):
    results[path.stem] = keras.ops.convert_to_numpy(keras.saving.load_model(path)(x)).astype("float64")
np.savez(folder / "results.npz", **results)
"""
    subprocess.run(
        [sys.executable, "-c", script, tmp_path], check=True, cwd=request.config.rootpath, env=os.environ.copy()
    )
    results = np.load(tmp_path / "results.npz")
    assert set(results) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(results[name], value, err_msg=name)


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


@every_case
def test_call_assigns_nothing(case: Case):
    model = model_of(case)
    for weight in model.weights:
        weight.assign(tf.ones_like(weight))
    model(images())
    model(images(), training=True)
    for weight in model.weights:
        np.testing.assert_array_equal(weight, np.ones(weight.shape))


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


# --- Static crop -----------------------------------------------------------------------------------------------------


def static_layer(**arguments: Any) -> DiffStride:
    layer = DiffStride((2.5, 3.0), smoothness_factor=2.0, static_crop=True, **arguments)
    layer.build(SHAPE)
    return layer


@pytest.mark.parametrize("mask", ["released", "symmetric"])
def test_refresh_crop_says_whether_the_crop_changed(mask: str):
    layer = static_layer(mask=mask)
    dynamic = DiffStride((2.5, 3.0), smoothness_factor=2.0, mask=mask)
    dynamic.build(SHAPE)
    x = images()
    np.testing.assert_allclose(layer(x), dynamic(x), rtol=1e-5, atol=1e-5)
    assert layer.refresh_crop() is False

    size = layer.compute_output_shape(SHAPE)
    for strides in ([4.0, 6.0], [1.6, 2.0]):
        for either in (layer, dynamic):
            either.strides.assign(strides)
        assert layer(x).shape == layer.compute_output_shape(SHAPE) == size
        assert dynamic(x).shape != size
        assert layer.refresh_crop() is True
        assert layer.refresh_crop() is False
        np.testing.assert_allclose(layer(x), dynamic(x), rtol=1e-5, atol=1e-5)
        assert layer(x).shape == layer.compute_output_shape(SHAPE) != size
        size = layer.compute_output_shape(SHAPE)


def test_a_dynamic_crop_has_nothing_to_refresh():
    layer = DiffStride()
    layer.build(SHAPE)
    layer.strides.assign([5.0, 5.0])
    assert layer.refresh_crop() is False


def test_between_refreshes_the_window_is_cut_at_the_fixed_size():
    layer = static_layer()
    x = tf.constant(images())
    kept = (10, 6)
    assert layer(x).shape == (2, 10, 10, 3)
    layer.strides.assign([3.0, 2.5])
    expected = spectral.diffstride(x, tf.constant([3.0, 2.5]), smoothness_factor=2.0, kept=kept)
    np.testing.assert_array_equal(layer(x), expected)


@pytest.mark.parametrize("method", ["fft", "matmul"])
@pytest.mark.parametrize("mask", ["released", "symmetric"])
def test_xla_compiles_a_static_crop_and_its_gradients(mask: str, method: str):
    layer = static_layer(mask=mask, method=method)

    def gradients(x: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(layer(x) ** 2)
        return [loss, *tape.gradient(loss, [x, layer.strides.value])]

    compiled = tf.function(gradients, jit_compile=True)
    for actual, expected in zip(compiled(tf.constant(images())), gradients(tf.constant(images()))):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_xla_trains_a_model_with_a_static_crop(policy: str):
    keras.config.set_dtype_policy(policy)
    layer = static_layer()
    model = keras.Sequential([keras.Input(SHAPE[1:]), layer, keras.layers.Flatten(), keras.layers.Dense(1)])
    assert model.layers[-1].input.shape == (None, 300)
    model.compile("sgd", "mse", jit_compile=True)
    model.fit(images(), np.zeros([2, 1]), verbose=0)


@keras.saving.register_keras_serializable(package="test_pooling")
class Wrapped(keras.layers.Layer):
    """A layer of a user's own around a pooling."""

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.pooling = DiffStride((2.5, 3.0), smoothness_factor=2.0, static_crop=True)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        self.pooling.build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.pooling(inputs)


@pytest.mark.parametrize("refresh", [True, False], ids=["refreshed", "lagging"])
@pytest.mark.parametrize("nesting", ["model", "model in a model", "layer"])
def test_saving_keeps_the_crop(nesting: str, refresh: bool, tmp_path: Path):
    wrapped = Wrapped() if nesting == "layer" else None
    layer = wrapped.pooling if wrapped else DiffStride((2.5, 3.0), smoothness_factor=2.0, static_crop=True)
    inside = keras.Sequential([keras.Input(SHAPE[1:]), layer]) if nesting == "model in a model" else (wrapped or layer)
    model = keras.Sequential([keras.Input(SHAPE[1:]), inside])
    layer.strides.assign([3.5, 2.0])
    if refresh:
        assert layer.refresh_crop()
    expected = result(model, images())
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(result(loaded, images()), expected)


@pytest.mark.parametrize(
    ("saved", "loaded"), [(True, True), (False, True), (True, False)], ids=["both", "to static", "to dynamic"]
)
def test_weights_alone_load_with_and_without_a_static_crop(saved: bool, loaded: bool, tmp_path: Path):
    model, other = (
        keras.Sequential([keras.Input(SHAPE[1:]), DiffStride((2.5, 3.0), smoothness_factor=2.0, static_crop=static)])
        for static in (saved, loaded)
    )
    model.layers[0].strides.assign([3.5, 2.0])
    model.layers[0].refresh_crop()
    model.save_weights(tmp_path / "model.weights.h5")
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(other(images()), model(images()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mask", ["released", "symmetric"])
@pytest.mark.parametrize("size", [(6, 6), (9, 30)])
def test_a_static_crop_is_fixed_for_each_size_of_the_map(size: tuple[int, int], mask: str):
    layer = static_layer(mask=mask)
    dynamic = DiffStride((2.5, 3.0), smoothness_factor=2.0, mask=mask)
    dynamic.build(SHAPE)
    x = images((1, *size, 3))
    np.testing.assert_allclose(layer(x), dynamic(x), rtol=1e-5, atol=1e-5)
    assert layer.compute_output_shape(x.shape) == dynamic(x).shape


# --- Errors ----------------------------------------------------------------------------------------------------------


@every_class
@pytest.mark.parametrize(
    ("strides", "error", "shown"),
    [
        (0.5, ValueError, "0.5"),
        ((2, 0.5), ValueError, "0.5"),
        (0, ValueError, "0"),
        (-2.0, ValueError, "-2.0"),
        (float("nan"), ValueError, "nan"),
        ((float("nan"), 2), ValueError, "nan"),
        (float("inf"), ValueError, "inf"),
        (True, TypeError, "True"),
        ((2, True), TypeError, "True"),
        ("2", TypeError, "'2'"),
        (("2", 2), TypeError, "'2'"),
        ((2,), TypeError, r"\(2,\)"),
        ((2, 2, 2), TypeError, r"\(2, 2, 2\)"),
        (None, TypeError, "None"),
    ],
)
def test_strides_must_be_one_or_two_finite_numbers_of_at_least_1(
    strides: Any, error: type[Exception], shown: str, cls: type[keras.layers.Layer]
):
    allowed = "finite and at least 1" if error is ValueError else "number"
    with pytest.raises(error, match=rf"strides must be .*{allowed}.*got {shown}"):
        cls(strides=strides)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DiffStride(smoothness_factor=-1), ValueError, "smoothness_factor must be .*at least 0, got -1"),
        (lambda: DiffStride(smoothness_factor=float("nan")), ValueError, "smoothness_factor must be finite.*got nan"),
        (lambda: DiffStride(smoothness_factor="4"), TypeError, "smoothness_factor must be a number, got '4'"),
        (lambda: DiffStride(cropping="yes"), TypeError, "cropping must be True or False, got 'yes'"),
        (lambda: DiffStride(static_crop=1), TypeError, "static_crop must be True or False, got 1"),
        (lambda: DiffStride(shared_stride=None), TypeError, "shared_stride must be True or False, got None"),
        (lambda: DiffStride((2, 3), shared_stride=True), ValueError, r"shared_stride.* one stride.*\(2.0, 3.0\)"),
        (lambda: DiffStride(lower_limit_stride=0.5), ValueError, "lower_limit_stride must be .*at least 1, got 0.5"),
        (lambda: DiffStride(upper_limit_stride=0.5), ValueError, "upper_limit_stride must be .*at least 1, got 0.5"),
        (lambda: DiffStride(upper_limit_stride="3"), TypeError, "upper_limit_stride must be a number, got '3'"),
        (
            lambda: DiffStride(lower_limit_stride=3, upper_limit_stride=2),
            ValueError,
            "lower_limit_stride must not exceed upper_limit_stride, got 3 and 2",
        ),
        (lambda: DiffStride(mask="hard"), ValueError, "mask must be one of 'released', 'symmetric', got 'hard'"),
        (lambda: SpectralPooling(output_size=0), ValueError, "output_size must be at least 1.*got 0"),
        (lambda: SpectralPooling(output_size=(4, 0)), ValueError, r"output_size must be at least 1.*got \(4, 0\)"),
        (lambda: SpectralPooling(output_size=4.5), TypeError, "output_size must be a whole number.*got 4.5"),
        (lambda: SpectralPooling(output_size=True), TypeError, "output_size must be a whole number.*got True"),
        (lambda: SpectralPooling(output_size=(4, 4, 4)), TypeError, r"output_size must be .*got \(4, 4, 4\)"),
        (
            lambda: SpatialPooling(2, strides=1.5),
            ValueError,
            r"whole strides where pool_size is \(2, 2\), got \(1.5, 1.5\)",
        ),
        (lambda: SpatialPooling((1, 2), strides=(2, 2.5)), ValueError, r"whole strides.*got \(2.0, 2.5\)"),
        (lambda: SpatialPooling(strides=0.5), ValueError, "strides must be .*at least 1, got 0.5"),
        (lambda: SpatialPooling(pool_size=0), ValueError, "pool_size must be at least 1.*got 0"),
        (lambda: SpatialPooling(pool_size="big"), TypeError, "pool_size must be a whole number.*got 'big'"),
        (lambda: SpatialPooling(padding="most"), ValueError, "padding.*'same'.*'valid'.*'most'"),
    ],
)
def test_wrong_arguments_are_named(make: Callable[[], keras.layers.Layer], error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        make()


@every_class
def test_unknown_data_format_is_named(cls: type[keras.layers.Layer]):
    with pytest.raises(ValueError, match=r"data_format.* must be one of.*nhwc") as error:
        cls(data_format="nhwc")
    assert {"channels_last", "channels_first"} <= set(re.findall(r"\w+", str(error.value)))


@every_fourier_class
@pytest.mark.parametrize(
    ("argument", "allowed"),
    [("norm", "'backward', 'forward', 'ortho'"), ("method", "'auto', 'fft', 'matmul'")],
)
def test_unknown_options_are_named(cls: type[keras.layers.Layer], argument: str, allowed: str):
    with pytest.raises(ValueError, match=f"{argument} must be one of {allowed}, got 'other'"):
        cls(**{argument: "other"})


@every_fourier_class
@pytest.mark.parametrize("size", [(1, 5), (5, 1)])
def test_a_map_of_one_row_or_column_is_too_small(cls: type[keras.layers.Layer], size: tuple[int, int]):
    for data_format in ("channels_last", "channels_first"):
        shape = in_format((None, *size, 3), data_format)
        with pytest.raises(ValueError, match=rf"{cls.__name__} .*at least 2x2 samples.*\(None, {shape[1]}, {shape[2]}"):
            cls(data_format=data_format).build(shape)


@every_fourier_class
@pytest.mark.parametrize("size", [(1, 5), (5, 1)])
def test_a_map_that_turns_out_too_small_is_refused(cls: type[keras.layers.Layer], size: tuple[int, int]):
    layer = cls()
    layer.build((None, None, None, 3))
    with pytest.raises(ValueError, match=f"{cls.__name__} .*at least 2x2 samples"):
        layer(images((2, *size, 3)))


@every_class
@pytest.mark.parametrize("shape", [(2, 12, 14), (2, 12, 14, 3, 1), (2, 12)])
def test_wrong_rank_is_named(cls: type[keras.layers.Layer], shape: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"(4 dimensions|ndim=4)") as error:
        cls()(images(shape))
    assert str(shape) in str(error.value)
    with pytest.raises(ValueError, match=r"(4 dimensions|ndim=4)"):
        cls()(keras.Input(shape[1:]))


@every_class
@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool"])
def test_integer_images_are_refused_at_once(cls: type[keras.layers.Layer], dtype: str):
    message = f"{cls.__name__} needs floating-point input, got {dtype}.*Rescaling"
    with pytest.raises(TypeError, match=message):
        cls()(np.ones(SHAPE, dtype))
    with pytest.raises(TypeError, match=message):
        cls()(keras.Input(SHAPE[1:], dtype=dtype))


@pytest.mark.parametrize("method", ["fft", "matmul"])
def test_output_size_must_not_exceed_the_map(method: str):
    layer = SpectralPooling(output_size=(12, 15), method=method)
    message = r"output_size must not exceed.*\(12, 15\).*\(12, 14\)"
    with pytest.raises(ValueError, match=message):
        layer.build(SHAPE)
    with pytest.raises(ValueError, match=message):
        SpectralPooling(output_size=(12, 15), method=method)(keras.Input(SHAPE[1:]))
    layer = SpectralPooling(output_size=(12, 15), method=method)
    layer.build((None, None, None, 3))
    with pytest.raises(ValueError, match=message):
        layer(images())


def test_static_crop_needs_a_known_size():
    for shape in [(None, None, None, 3), (None, 12, None, 3)]:
        with pytest.raises(ValueError, match=r"A static crop needs a known height and width, got \((None|12), None"):
            DiffStride(static_crop=True).build(shape)


# --- The crop that XLA asks for --------------------------------------------------------------------------------------


SIZE_IS_KEPT = pytest.warns(UserWarning, match="CropRefresh lets it follow them")


def test_a_crop_is_dynamic_until_xla_compiles_the_layer():
    layer, inputs = DiffStride((2.5, 3.0), smoothness_factor=2.0), tf.constant(images())
    dynamic = layer(inputs)
    assert not layer.crop_is_static and layer.crops == {}
    with SIZE_IS_KEPT:
        compiled = tf.function(layer, jit_compile=True)(inputs)
    np.testing.assert_allclose(compiled, dynamic, rtol=1e-4, atol=1e-5)
    assert layer.crop_is_static and list(layer.crops) == [inputs.shape[1:3]]
    layer.strides.assign([1.5, 1.5])
    assert layer(inputs).shape == dynamic.shape
    assert layer.refresh_crop()
    assert layer(inputs).shape[1] > dynamic.shape[1]


def test_a_crop_that_must_be_dynamic_is_refused_to_xla():
    layer = DiffStride(static_crop=False, name="pool")
    assert not layer.supports_jit
    layer(images())
    with pytest.raises(ValueError, match=r"pool has static_crop=False: XLA and TPUs need a static crop"):
        tf.function(layer, jit_compile=True)(tf.constant(images()))


def test_a_crop_that_was_static_stays_so_in_the_file(tmp_path: Path):
    model = keras.Sequential([keras.Input(SHAPE[1:]), DiffStride((2.5, 3.0), smoothness_factor=2.0)])
    with SIZE_IS_KEPT:
        tf.function(model, jit_compile=True)(tf.constant(images()))
    model.layers[0].strides.assign([1.5, 1.5])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].static_crop is None
    assert loaded.layers[0].crops == model.layers[0].crops != {}
    np.testing.assert_array_equal(loaded(images()), model(images()))


@pytest.mark.parametrize("mask", ["released", pytest.param("symmetric", marks=pytest.mark.slow)])
def test_hysteresis_keeps_a_crop_near_the_edge(mask: str):
    layer = DiffStride(2.5, smoothness_factor=2.0, static_crop=True, mask=mask)
    layer.build((None, 40, 40, 1))

    def crop_at(stride: float, hysteresis: float) -> tuple[int, int]:
        layer.strides.assign([stride, stride])
        layer.refresh_crop(hysteresis)
        return layer.crops[40, 40]

    strides = np.linspace(2.0, 3.0, 201)
    asked = [crop_at(stride, 0.0) for stride in strides]
    edges = [(low, high) for low, high, a, b in zip(strides, strides[1:], asked, asked[1:]) if a != b]
    assert len(edges) >= 3
    for low, high in edges:
        before = crop_at(low, 0.0)
        assert crop_at(high, 0.0) != before
        crop_at(low, 0.0)
        assert all(crop_at(stride, 0.02) == before for stride in (high, low, high * 1.01, low * 0.99))
        assert crop_at(high * 1.025, 0.02)[0] < before[0]
        assert crop_at(high * 1.025, 0.02) == crop_at(high * 1.025, 0.0)
