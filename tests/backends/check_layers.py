"""The layers give the numbers of the release and of SciPy on any backend. `test_backends.py` runs this file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import scipy.signal
from gradients import called, output_and_gradients
from support import numpy_reference

import diffstride_hybrid
from diffstride_hybrid import (
    DiffStride,
    DiffStride1D,
    FixedSpectralPooling,
    SpatialPooling,
    SpectralPooling,
    SpectralPooling1D,
    SpectralResizing,
    StrideConstraint,
    refresh_crops,
)
from diffstride_hybrid.spectral.matrices import waves

RELEASE = np.load(Path(__file__).parents[1] / "reference" / "reference_layers.npz")
CASES = {case["key"]: case for case in json.loads(bytes(RELEASE["meta"]))}
SLOW_ON_JAX = [pytest.mark.slow] if keras.backend.backend() == "jax" else []  # It compiles each operation anew.
ON_TENSORFLOW = keras.backend.backend() == "tensorflow"  # Its average pooling has no channels_first on a CPU.
RANDOM = np.random.default_rng(0)

on_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="is about JAX")


def assert_close(actual: Any, expected: Any, share: float) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(actual), expected, rtol=0, atol=share * np.abs(expected).max()
    )


def maps(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype("float32")


def in_format(data_format: str, x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if data_format == "channels_first" else x


def test_no_other_backend_is_imported():
    """Beside those that Keras itself looks for."""
    code = "import sys, keras; before = set(sys.modules); import diffstride_hybrid; print(*set(sys.modules) - before)"
    added = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "diffstride_hybrid" in added
    assert not {"tensorflow", "jax", "torch"} & set(added)


@pytest.mark.slow
@on_jax
def test_a_frozen_model_is_exported_by_jax():
    import jax

    model = keras.Sequential([keras.Input((12, 12, 3)), DiffStride(2.0), keras.layers.GlobalMaxPooling2D()])
    model.trainable = False
    images = maps(2, 12, 12, 3)
    exported = jax.export.export(jax.jit(lambda x: model(x, training=False)))(
        jax.ShapeDtypeStruct(images.shape, "float32")
    )
    again = jax.export.deserialize(exported.serialize())
    assert_close(again.call(images), keras.ops.convert_to_numpy(model(images)), 1e-6)


@pytest.mark.parametrize("static_crop", [None, True])
def test_a_stateless_call_has_the_size_that_its_strides_ask_for(static_crop: bool | None):
    images, strides = keras.ops.convert_to_tensor(maps(2, 16, 16, 3)), (4.0, 3.2)
    layer = DiffStride(2.0, static_crop=static_crop)
    layer.build(images.shape)
    outputs, _ = layer.stateless_call([keras.ops.convert_to_tensor(strides)], [], images)
    assert outputs.shape == DiffStride(strides)(images).shape


@on_jax
def test_compiled_functions_of_a_frozen_layer_are_outdated_by_new_strides():
    """They do not compare their crop with the strides, so that they can be exported."""
    images = maps(2, 16, 16, 3)
    model = keras.Sequential([keras.Input(images.shape[1:]), DiffStride(2.0), keras.layers.GlobalMaxPooling2D()])
    model.trainable = False
    model.predict(images, verbose=0)
    with pytest.warns(UserWarning, match=r"have changed since a graph was traced.*refresh_crops"):
        model.set_weights([np.array([4.0, 3.2], "float32")])
    assert refresh_crops(model)
    np.testing.assert_allclose(model.predict(images, verbose=0), model(images), rtol=1e-5)


@on_jax
def test_a_batch_of_strides_is_warned_of():
    """Each member is cut to the size of the layer's own strides."""
    import jax

    layer, images = DiffStride(2.0), keras.ops.convert_to_tensor(maps(2, 16, 16, 3))
    layer.build(images.shape)
    strides = keras.ops.convert_to_tensor([[2.0, 2.0], [4.0, 3.2]])
    with pytest.warns(UserWarning, match="have changed since a graph was traced"):
        jax.block_until_ready(jax.vmap(lambda each: layer.stateless_call([each], [], images)[0])(strides))


@on_jax
def test_a_gradient_is_taken_at_the_size_that_its_strides_ask_for():
    import jax

    layer, images = DiffStride(2.0), maps(2, 16, 16, 3)
    layer.build(images.shape)
    others = [weight.value for weight in layer.non_trainable_variables]

    def loss(trained: list[Any]) -> Any:
        outputs, _ = layer.stateless_call(trained, others, images)
        return keras.ops.sum(outputs**2)

    for strides in ([4.0, 3.2], [1.5, 1.5]):
        trained = [keras.ops.convert_to_tensor(strides)]
        assert float(jax.value_and_grad(loss)(trained)[0]) == pytest.approx(float(loss(trained)), rel=1e-5)
        assert float(jax.jvp(loss, [trained], [trained])[0]) == pytest.approx(float(loss(trained)), rel=1e-5)
    layer.strides.assign(strides)
    compiled = jax.jit(jax.value_and_grad(loss))(trained)[0]
    assert float(compiled) == pytest.approx(float(loss(trained)), rel=1e-5)


@pytest.mark.parametrize("length", [23_171, 46_341, 160_000, 3_000_001])
def test_waves_of_long_axes_are_exact(length: int):
    """Their products exceed int32, and JAX has no int64."""
    frequencies, samples = RANDOM.integers(0, length, (2, 50, 1))
    samples = np.append(samples[:, 0], [0, 1, length - 1])
    quarters = np.array([[[0]], [[1]]])
    found = waves(
        keras.ops.convert_to_tensor(frequencies, "int32"),
        keras.ops.convert_to_tensor(samples, "int32"),
        length,
        quarters,
        "float32",
        most=length,
    )
    angles = 2 * np.pi / length * (frequencies * samples % length) - np.pi / 2 * quarters
    np.testing.assert_allclose(keras.ops.convert_to_numpy(found), np.cos(angles), atol=2e-6)


@pytest.mark.slow
def test_an_audit_gives_the_figures_of_closed_forms():
    """An ideal low pass, and the attack on a linear classifier, whose margin falls by `strength * sum |w|`."""
    low_pass = [SpectralPooling(15 / 7, norm="forward"), keras.layers.Flatten()]
    images = RANDOM.integers(60, 190, (40, 15, 15, 3))
    model = keras.Sequential([keras.Input((15, 15, 3)), *low_pass, keras.layers.Dense(2)])
    (pooling,) = diffstride_hybrid.audit(model, images, batch_size=16).poolings
    assert pooling.aliased < 1e-9 and pooling.shift_error < 1e-9
    assert pooling.energy_kept == pytest.approx(48 / 224, abs=0.02)

    weights = RANDOM.normal(size=675).astype("float32")
    linear = keras.Sequential([keras.Input((15, 15, 3)), keras.layers.Flatten(), keras.layers.Dense(2)])
    linear.layers[-1].kernel.assign(np.stack([np.zeros(675), weights], 1))
    margins = images.reshape(40, 675) @ weights
    results = diffstride_hybrid.audit(linear, images, labels=(margins > 0).astype(int))
    assert results.accuracy == 1
    for strength in (1, 4):
        expected = np.mean(np.abs(margins) > strength * np.abs(weights).sum())
        assert results.attacks[f"{strength}/255"] == pytest.approx(expected, abs=1 / 40)


@pytest.mark.parametrize("data_format", ["channels_last", pytest.param("channels_first", marks=SLOW_ON_JAX)])
@pytest.mark.parametrize("key", CASES)
def test_layers_match_the_released_code(key: str, data_format: str):
    """Outputs and gradients, in both data formats: the recorded maps are turned into the other one."""
    case = CASES[key]
    recorded = case["config"]["data_format"]
    if ON_TENSORFLOW and case["layer"] == "SpatialPooling":
        data_format = recorded
    config = {**case["config"], "data_format": data_format}

    def turned(x: np.ndarray) -> np.ndarray:
        if recorded == data_format or x.ndim != 4:
            return x
        return np.ascontiguousarray(np.moveaxis(x, *((1, -1) if recorded == "channels_first" else (-1, 1))))

    layer = getattr(diffstride_hybrid, case["layer"])(**config)
    x, upstream, y, dx = (turned(RELEASE[f"{key}/{name}"]) for name in ("x", "g", "y", "dx"))
    layer.build(x.shape)
    if case["layer"] == "DiffStride":
        layer.strides.assign(RELEASE[f"{key}/strides"])
    outputs, gradients = output_and_gradients(layer, x, upstream)
    assert_close(outputs, y, 1e-5)
    assert_close(gradients[0], dx, 1e-5)
    assert (f"{key}/dstrides" in RELEASE) == (len(gradients) == 2)
    if len(gradients) == 2:
        assert_close(gradients[1], RELEASE[f"{key}/dstrides"], 1e-5)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("size", [(7, 8), (12, 11), (1, 5), (30, 40)])
def test_poolings_and_resizings_equal_scipy(size: tuple[int, int], data_format: str):
    x = maps(2, 13, 16, 3)
    expected = scipy.signal.resample(scipy.signal.resample(x, size[0], axis=1), size[1], axis=2)
    layers = [SpectralResizing(size, data_format=data_format)]
    if 1 < size[0] <= 13 and size[1] <= 16:
        layers.append(SpectralPooling(output_size=size, norm="forward", data_format=data_format))
    for layer in layers:
        assert_close(called(layer, in_format(data_format, x)), in_format(data_format, expected), 2e-6)


@pytest.mark.parametrize("pool", [(3, 2), (1, 4), (6, 5)])
def test_averages_count_what_lies_in_the_map(pool: tuple[int, int]):
    x, strides = maps(2, 7, 10, 3), (2, 3)
    expected = np.zeros([2, 4, 4, 3])
    for row in range(4):
        for column in range(4):
            part = x
            for axis, place, length in ((1, row, 7), (2, column, 10)):
                stride, size = strides[axis - 1], pool[axis - 1]
                first = place * stride - max(3 * stride + size - length, 0) // 2
                part = np.take(part, range(max(first, 0), min(first + size, length)), axis)
            expected[:, row, column] = part.mean((1, 2))
    assert_close(called(SpatialPooling(pool, strides), x), expected, 2e-6)


def test_signals():
    x = maps(2, 64, 3)
    assert_close(called(SpectralPooling1D(2.0, norm="forward"), x), scipy.signal.resample(x, 32, axis=1), 2e-6)
    rows = DiffStride((1.0, 3.0), upper_limit_stride=(1.0, None))
    assert_close(called(DiffStride1D(3.0), x), keras.ops.convert_to_numpy(called(rows, x[:, None]))[:, 0], 2e-6)


@pytest.mark.parametrize("mask", ["released", "symmetric"])
@pytest.mark.parametrize("norm", ["backward", "forward"])
def test_both_masks_equal_direct_sums(norm: str, mask: str):
    x = maps(1, 15, 12, 2)
    layer = DiffStride((2.3, 1.7), smoothness_factor=2.0, mask=mask, norm=norm)
    assert_close(called(layer, x), numpy_reference.diffstride(x, (2.3, 1.7), 2.0, mask=mask, norm=norm), 1e-5)


@pytest.mark.parametrize("mask", ["released", pytest.param("symmetric", marks=SLOW_ON_JAX)])
def test_the_gradient_to_the_strides_is_that_of_finite_differences(mask: str):
    """At strides that keep the size of the output, where a stride that is a whole number makes ties in the window."""
    x, step = maps(1, 20, 24, 2), 2e-3
    layer = DiffStride((2.21, 1.83), smoothness_factor=3.0, mask=mask, static_crop=True)
    upstream = np.ones_like(keras.ops.convert_to_numpy(layer(x)))
    upstream *= RANDOM.normal(size=upstream.shape).astype("float32")
    strides = keras.ops.convert_to_numpy(layer.strides)
    _, (_, gradient) = output_and_gradients(layer, x, upstream)

    def loss(offset: list[float]) -> float:
        layer.strides.assign(strides + np.array(offset, "float32"))
        return float(np.sum(keras.ops.convert_to_numpy(layer(x)).astype("float64") * upstream))

    for axis in range(2):
        offset = [step * (axis == 0), step * (axis == 1)]
        numeric = (loss(offset) - loss([-each for each in offset])) / (2 * step)
        np.testing.assert_allclose(gradient[axis], numeric, rtol=2e-2, atol=2e-2)


def test_the_size_follows_the_strides():
    layer = DiffStride(2.0, smoothness_factor=2.0)
    x = maps(1, 16, 16, 1)
    before = layer(x).shape[1:3]
    layer.strides.assign([4.0, 4.0])
    assert layer(x).shape[1:3] != before
    assert layer(x).shape[1:3] == DiffStride(4.0, smoothness_factor=2.0)(x).shape[1:3]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=SLOW_ON_JAX)])
def test_half_precision(policy: str):
    x = maps(2, 12, 14, 3)
    for layer_cls, arguments in (
        (DiffStride, {"strides": (2.5, 1.5)}),
        (DiffStride, {"strides": 3.0, "mask": "symmetric"}),
        (FixedSpectralPooling, {}),
        (SpectralPooling, {}),
        (SpectralResizing, {"scale": 1.5}),
        (SpatialPooling, {"strides": 1.5}),
    ):
        outputs = called(layer_cls(**arguments, dtype=policy), x)
        assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix("mixed_")
        expected = keras.ops.convert_to_numpy(called(layer_cls(**arguments), x))
        assert_close(keras.ops.cast(outputs, "float32"), expected, 0.03)


def test_a_constraint_keeps_strides_between_their_limits():
    values = keras.ops.convert_to_numpy(StrideConstraint([1.5, 2.0], 4.0)(np.array([0.0, 9.0], "float32")))
    assert values.tolist() == [1.5, 4.0]


def test_what_is_refused():
    with pytest.raises(TypeError, match="DiffStride needs floating-point input, got int"):
        DiffStride()(np.ones([1, 8, 8, 1], "int32"))
    with pytest.raises(ValueError, match=r"output_size must not exceed the feature map, got \(4, 4\)"):
        SpectralPooling(output_size=4)(maps(1, 3, 8, 1))
    if not ON_TENSORFLOW:
        with pytest.raises(ValueError, match="method='fft' needs Keras with TensorFlow, and it runs on"):
            DiffStride(method="fft")(maps(1, 8, 8, 1))
