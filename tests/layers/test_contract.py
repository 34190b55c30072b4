"""What every layer promises: config, dtypes, shapes, data formats, saving."""

import inspect
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.layer_cases import (
    CASES,
    EVERY_ARGUMENT,
    INSTEAD,
    NEEDED,
    SHAPE,
    Case,
    every_case,
    every_class,
    every_policy,
    images,
    in_format,
    model_of,
    result,
)

import diffstride_hybrid
from diffstride_hybrid import DiffStride, SpatialPooling, SpectralResizing, StrideConstraint

NOT_POOLINGS = {"FusedBatchNormalization", "ResidualLayer", "Resnet", "ResnetBlock"}
OF_SIGNALS = {"DiffStride1D", "SpectralPooling1D", "SpectralResizing1D"}  # test_pooling_1d.py has these.

every_data_format = pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])


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


@pytest.mark.parametrize("mask", ["released", "symmetric"])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_without_cropping_the_announced_width_is_that_of_the_call(width: int, mask: str):
    layer, shape = DiffStride(2.0, cropping=False, mask=mask), (2, 12, width, 3)
    assert layer(keras.Input(shape[1:], batch_size=2)).shape == layer(images(shape)).shape


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
    assert cls(**NEEDED.get(cls, {}))(images((1, 3, 12, 14))).shape[1] == 3


# --- Configuration and saving ----------------------------------------------------------------------------------------
@every_class
def test_config_round_trips_every_argument(cls: type[keras.layers.Layer]):
    signature = inspect.signature(cls).parameters
    others = INSTEAD.get(cls, {})
    named = {*EVERY_ARGUMENT[cls], *(name for arguments in others.values() for name in arguments)}
    assert set(signature) - {"kwargs"} == named
    assert_round_trips(cls, EVERY_ARGUMENT[cls])
    for excluded, arguments in others.items():
        remaining = {name: value for name, value in EVERY_ARGUMENT[cls].items() if name != excluded}
        assert_round_trips(cls, remaining | arguments)


def assert_round_trips(cls: type[keras.layers.Layer], arguments: dict[str, Any]):
    signature = inspect.signature(cls).parameters
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
    argument = "scale" if cls is SpectralResizing else "strides"
    assert cls(**{argument: 3}).get_config()[argument] == (3, 3)


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


@pytest.mark.parametrize(
    ("optimizer", "compiled"),
    [
        (keras.optimizers.SGD(0.1, weight_decay=0.1), "eagerly"),
        (keras.optimizers.AdamW(0.1), "graph"),
        (keras.optimizers.Adam(0.1, weight_decay=0.1, gradient_accumulation_steps=2), "jit"),
    ],
    ids=["SGD", "AdamW", "Adam"],
)
def test_decay_of_strides_in_fit_is_told_with_the_cure(optimizer: keras.optimizers.Optimizer, compiled: str):
    def fit(keep: bool) -> list[str]:
        copy = type(optimizer).from_config(optimizer.get_config())
        if keep:
            copy.exclude_from_weight_decay(var_names=["strides"])
        layers = [DiffStride(2.0), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((12, 12, 1)), *layers])
        model.compile(copy, "mse", run_eagerly=compiled == "eagerly", jit_compile=compiled == "jit")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(np.zeros((8, 12, 12, 1)), np.zeros((8, 1)), batch_size=2, verbose=0)
        return [str(warning.message) for warning in caught if "weight decay" in str(warning.message)]

    (message,) = fit(keep=False)
    assert message.startswith(f"The weight decay of {type(optimizer).__name__} shrinks the strides sequential")
    assert "optimizer.exclude_from_weight_decay(var_names=['strides'])" in message
    assert fit(keep=True) == []


def test_decay_of_strides_is_told_of_each_model_and_each_optimizer():
    """Python shows a text once from one line, and a model may be compiled anew."""

    def fitted(*optimizers: str) -> list[str]:
        pools = [DiffStride(1.5), DiffStride(1.5)]
        layers = [*pools, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1)]
        model = keras.Sequential([keras.Input((12, 12, 1)), *layers])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for optimizer in optimizers:
                model.compile(optimizer, "mse")
                for _ in range(2):
                    model.fit(np.zeros((4, 12, 12, 1)), np.zeros((4, 1)), verbose=0)
        texts = [str(warning.message) for warning in caught if "weight decay" in str(warning.message)]
        assert all(pool.strides.path in text for text in texts for pool in pools)
        return texts

    assert len(fitted("adam", "adamw")) == 1
    assert len(fitted("adamw")) == 1
    assert fitted("adam") == []


@keras.saving.register_keras_serializable(package="test_contract")
class Shifted(DiffStride):
    """A layer of a user's own that adds a weight."""

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        super().build(input_shape)
        self.shift = self.add_weight(name="shift", shape=(), initializer="zeros")

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        return super().call(inputs, training) + self.shift


@pytest.mark.parametrize("static_crop", [False, True])
def test_a_subclass_keeps_its_own_weights(static_crop: bool, tmp_path: Path):
    model = keras.Sequential([keras.Input(SHAPE[1:]), Shifted(2.0, static_crop=static_crop)])
    model.layers[0].shift.assign(3.0)
    model.layers[0].strides.assign([1.5, 3.0])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images()), model(images()))
