from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import scipy.signal
import tensorflow as tf

import diffstride_hybrid
from diffstride_hybrid import DiffStride, DiffStride1D, SpectralPooling1D, SpectralResizing1D, macs
from diffstride_hybrid.model_tools.crop_refresh import refresh_crops
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.runs.logs import stride_row

LAYERS: dict[str, Any] = {
    "DiffStride1D": DiffStride1D,
    "DiffStride1D symmetric": partial(DiffStride1D, 2.5, smoothness_factor=1.5, mask="symmetric", norm="forward"),
    "DiffStride1D hard": partial(DiffStride1D, 3.0, smoothness_factor=0.0, norm="ortho"),
    "DiffStride1D short ramp": partial(DiffStride1D, 2.0, smoothness_factor=0.5),
    "DiffStride1D uncropped": partial(DiffStride1D, 2.0, cropping=False),
    "DiffStride1D static": partial(DiffStride1D, 2.0, static_crop=True),
    "SpectralPooling1D": SpectralPooling1D,
    "SpectralPooling1D sized": partial(SpectralPooling1D, output_size=8, norm="ortho"),
    "SpectralResizing1D": partial(SpectralResizing1D, scale=0.5),
    "SpectralResizing1D longer": partial(SpectralResizing1D, output_size=70, norm="ortho"),
    "SpectralPooling1D odd": partial(SpectralPooling1D, 1.6, norm="forward"),
}
every_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS.keys())
every_method = pytest.mark.parametrize("method", ["fft", "matmul"])
every_length = pytest.mark.parametrize("length", [2, 3, 5, 16, 21, 64])


def signals(length: int, dtype: str = "float64", channels: int = 3) -> np.ndarray:
    return np.random.default_rng(length).normal(size=(2, length, channels)).astype(dtype)


def test_every_public_pooling_of_signals_is_tested_here():
    public = {name for name in diffstride_hybrid.__all__ if name.endswith("1D")}
    assert public == {name.split()[0] for name in LAYERS}


def direct(x: np.ndarray, layer: DiffStride1D) -> np.ndarray:
    """The definition by sums: one-sided spectrum, window, inverse transform."""
    n, r = x.shape[1], layer.smoothness_factor
    stride = max(float(layer.strides.numpy()[0]), n / (n - r) if n > r else 1.0)
    threshold = max(n / stride, 2) / 2 + (layer.mask == "released")
    positions = np.arange(n // 2 + 1)
    weights = np.clip((r + threshold - positions) / r, 0, 1) if r else (positions < threshold).astype(float)
    kept = np.flatnonzero(weights) if layer.cropping else positions
    output = 2 * (len(kept) - 1) if layer.mask == "released" else min(2 * len(kept) - 1, n)
    time = np.arange(n)
    spectrum = [weights[k] * (x * np.exp(-2j * np.pi * k * time / n)[:, None]).sum(1) for k in kept]
    y = np.zeros((x.shape[0], output, x.shape[2]))
    for k, bin in zip(kept, spectrum):
        factor = 1 if k == 0 or 2 * k == output else 2
        wave = np.exp(2j * np.pi * k * np.arange(output) / output)
        y += factor * np.real(wave[:, None] * bin[:, None, :]) / output
    return y * {"backward": 1.0, "forward": output / n, "ortho": np.sqrt(output / n)}[layer.norm]


@every_method
@every_length
@pytest.mark.parametrize("name", [name for name in LAYERS if name.startswith("DiffStride")])
def test_diffstride_is_its_definition(name: str, length: int, method: str):
    layer = LAYERS[name](method=method, dtype="float64")
    outputs = layer(signals(length))
    np.testing.assert_allclose(outputs, direct(signals(length), layer), rtol=1e-6, atol=1e-6)


@every_method
@pytest.mark.parametrize("length", [4, 5, 17, 32])
@pytest.mark.parametrize("output", [2, 3, 4])
def test_spectral_pooling_is_resampling(length: int, output: int, method: str):
    outputs = SpectralPooling1D(output_size=output, norm="forward", method=method, dtype="float64")(signals(length))
    np.testing.assert_allclose(outputs, scipy.signal.resample(signals(length), output, axis=1), atol=1e-12)


@every_method
@pytest.mark.parametrize("mask", ["released", "symmetric"])
@pytest.mark.parametrize("width", [16, 21])
def test_it_is_the_layer_for_maps_along_its_columns(mask: str, width: int, method: str):
    options = {"smoothness_factor": 3.0, "mask": mask, "norm": "forward", "method": method, "dtype": "float64"}
    rows = np.repeat(signals(width)[:, None], 12, axis=1)
    pooled = np.asarray(DiffStride((2.0, 2.5), **options)(rows))
    np.testing.assert_allclose(pooled, np.repeat(pooled[:, :1], pooled.shape[1], 1), atol=1e-12)
    np.testing.assert_allclose(DiffStride1D(2.5, **options)(signals(width)), pooled[:, 0], atol=1e-12)


@every_layer
@pytest.mark.parametrize("policy", ["float32", "float64", "mixed_bfloat16", "mixed_float16"])
def test_data_formats_engines_and_dtypes_agree(make: Any, policy: str):
    x = signals(24, "float32")
    expected = np.asarray(make(dtype="float64")(x))
    tolerance = {"float32": 1e-5, "float64": 1e-9, "mixed_bfloat16": 0.05, "mixed_float16": 0.01}[policy]
    for method in ("fft", "matmul"):
        for data_format in ("channels_last", "channels_first"):
            layer = make(dtype=policy, method=method, data_format=data_format)
            inputs = x if data_format == "channels_last" else x.transpose(0, 2, 1)
            outputs = layer(inputs)
            assert outputs.dtype == layer.compute_dtype
            outputs = np.asarray(tf.cast(outputs, "float64"))
            outputs = outputs if data_format == "channels_last" else outputs.transpose(0, 2, 1)
            np.testing.assert_allclose(outputs, expected, atol=tolerance * np.abs(expected).max())


@every_layer
@every_method
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_gradients_are_finite_differences(make: Any, method: str, data_format: str):
    layer = make(dtype="float64", method=method, data_format=data_format)
    x = signals(14)
    x = tf.constant(x if data_format == "channels_last" else x.transpose(0, 2, 1))
    layer.build(x.shape)
    for weight in layer.trainable_weights:
        weight.assign(weight.numpy() + 0.21)
    upstream = np.random.default_rng(1).normal(size=layer(x).shape)

    def loss(inputs: tf.Tensor) -> tf.Tensor:
        return tf.reduce_sum(layer(inputs) * upstream)

    with tf.GradientTape() as tape:
        tape.watch(x)
        value = loss(x)
    gradients = tape.gradient(value, [x, *[weight.value for weight in layer.trainable_weights]])
    direction = np.random.default_rng(2).normal(size=x.shape)
    slope = (loss(x + 1e-4 * direction) - loss(x - 1e-4 * direction)) / 2e-4
    np.testing.assert_allclose(np.sum(gradients[0] * direction), slope, rtol=1e-6)
    for weight, gradient in zip(layer.trainable_weights, gradients[1:]):
        if getattr(layer, "smoothness_factor", 1) == 0:
            assert not np.any(gradient)
            continue
        before = weight.numpy()
        ends = []
        for step in (2e-3, -2e-3):
            weight.assign(before + step)
            ends.append(loss(x))
        weight.assign(before)
        np.testing.assert_allclose(gradient[0], (ends[0] - ends[1]) / 4e-3, rtol=2e-3, atol=2e-3)


@every_layer
def test_a_model_saves_and_loads_to_the_same_bits(make: Any, tmp_path: Path):
    model = keras.Sequential([keras.Input((20, 3)), make(name="pooling"), keras.layers.Conv1D(4, 3)])
    for weight in model.get_layer("pooling").weights:
        weight.assign(weight.numpy() + 0.6)
    refresh_crops(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("pooling").get_config() == model.get_layer("pooling").get_config()
    x = signals(20, "float32")
    np.testing.assert_array_equal(loaded(x), model(x))
    expected = model.get_layer("pooling").compute_output_shape((2, 20, 3))
    assert expected in {tuple(model.get_layer("pooling")(x).shape), (2, None, 3)}


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_xla_gives_the_same_numbers(data_format: str):
    layer = DiffStride1D(2.0, static_crop=True, data_format=data_format)
    x = tf.constant(signals(16, "float32"))
    x = x if data_format == "channels_last" else tf.transpose(x, [0, 2, 1])
    expected = layer(x)
    compiled = tf.function(lambda inputs: layer(inputs), jit_compile=True)(x)
    np.testing.assert_allclose(compiled, expected, atol=1e-5)


@every_layer
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_constants_give_what_the_layer_gives(make: Any, data_format: str):
    x = signals(21, "float32") if data_format == "channels_last" else signals(21, "float32").transpose(0, 2, 1)
    layer = make(data_format=data_format)
    expected = layer(x)
    outputs = tf.function(layer.constant_call)(x)
    np.testing.assert_allclose(outputs, expected, atol=2e-6 * np.abs(expected).max())


def test_strides_are_learned_within_their_limits_by_fit():
    model = keras.Sequential(
        [
            keras.Input((32, 2)),
            keras.layers.Conv1D(4, 3, padding="same"),
            DiffStride1D(2.0, upper_limit_stride=2.05),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(3),
        ]
    )
    model.compile(keras.optimizers.SGD(0.5), "mse", run_eagerly=True)
    (layer,) = diffstride_layers(model)
    before = layer.strides.numpy()
    model.fit(signals(32, "float32", 2), np.eye(3, dtype="float32")[:2], epochs=3, verbose=0)
    assert layer.strides.shape == (1,)
    assert layer.strides.numpy() != before
    assert 32 / 28 <= layer.strides.numpy() <= 2.05


def test_macs_and_strides_are_recorded():
    model = keras.Sequential([keras.Input((32, 2)), DiffStride1D(2.0, name="one"), SpectralPooling1D(name="two")])
    cost = macs(model)
    assert list(cost.pooling_sizes().values()) == [((1, 32), (1, 24)), ((1, 24), (1, 12))]
    assert cost.pooling_macs == 2 * 32 * 24 + 2 * 24 * 12
    row = stride_row(model, cost)
    assert {name.split("/")[-1]: value for name, value in row.items() if "one" in name} == {
        "vertical_stride": 2.0,
        "horizontal_stride": 2.0,
        "height": 1,
        "width": 24,
    }


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: DiffStride1D((2, 2)), TypeError, r"strides must be one number for signals, got \(2, 2\)"),
        (lambda: DiffStride1D(0.5), ValueError, "strides must be .*at least 1, got 0.5"),
        (lambda: SpectralPooling1D(output_size=(3, 3)), TypeError, r"output_size must be one number.*got \(3, 3\)"),
        (lambda: SpectralPooling1D(output_size=0), ValueError, "output_size must be at least 1"),
        (
            lambda: DiffStride1D()(np.zeros([2, 8, 8, 3], "float32")),
            ValueError,
            r"3 dimensions \(batch, time, channels",
        ),
        (lambda: DiffStride1D()(np.zeros([2, 1, 3], "float32")), ValueError, "at least 1x2 samples"),
        (lambda: SpectralPooling1D(output_size=9)(np.zeros([2, 8, 3], "float32")), ValueError, "not exceed"),
        (lambda: DiffStride1D()(np.zeros([2, 8, 3], "int32")), TypeError, "floating-point"),
    ],
)
def test_mistakes_are_named(make: Any, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        make()
