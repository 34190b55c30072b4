"""Maps of one row or column, and axes that do not pool: networks for EEG and spectrograms."""

from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from diffstride_hybrid import (
    DiffStride,
    DiffStride1D,
    FixedSpectralPooling,
    SpectralPooling,
    SpectralPooling1D,
    macs,
    replace_downsampling,
)

RNG = np.random.default_rng(0)

both_masks = pytest.mark.parametrize("mask", ["released", "symmetric"])
both_engines = pytest.mark.parametrize("method", ["matmul", "fft"])


@both_engines
@both_masks
@pytest.mark.parametrize("static_crop", [False, True])
def test_one_row_is_pooled_as_a_signal(mask: str, method: str, static_crop: bool):
    signals = RNG.normal(size=(2, 60, 3)).astype("float32")
    layer = DiffStride((2.0, 3.1), mask=mask, method=method, static_crop=static_crop)
    signal_layer = DiffStride1D(3.1, mask=mask, method=method)
    np.testing.assert_allclose(layer(signals[:, None])[:, 0], signal_layer(signals), rtol=1e-5, atol=1e-5)


@both_engines
@both_masks
def test_one_column_passes_through(mask: str, method: str):
    """Its window over rows is that of a map of three equal columns."""
    column = RNG.normal(size=(2, 20, 1, 3)).astype("float32")
    options = {"mask": mask, "method": method}
    one = DiffStride((2.2, 2.0), **options)(column)
    several = DiffStride((2.2, 1.0), upper_limit_stride=(None, 1.0), **options)(np.repeat(column, 4, 2))
    assert one.shape[2] == 1
    np.testing.assert_allclose(one[:, :, 0], several[:, :, 1], rtol=1e-4, atol=1e-5)


@both_masks
def test_gradients_of_one_row_reach_the_stride_of_the_other_axis(mask: str):
    images = tf.constant(RNG.normal(size=(2, 1, 40, 3)).astype("float32"))
    layer = DiffStride((2.0, 3.1), mask=mask)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(images) ** 3)
    gradient = tape.gradient(loss, layer.strides.value).numpy()
    assert gradient[0] == 0.0
    assert gradient[1] != 0.0


@both_engines
@both_masks
def test_an_axis_of_the_limit_1_passes_through_and_is_not_learned(mask: str, method: str):
    images = RNG.normal(size=(2, 22, 50, 3)).astype("float32")
    layer = DiffStride((1.0, 2.0), upper_limit_stride=(1.0, None), mask=mask, method=method)
    with tf.GradientTape() as tape:
        outputs = layer(tf.constant(images))
        loss = tf.reduce_sum(outputs**3)
    assert outputs.shape[1] == 22
    assert layer.strides.numpy().tolist() == [1.0, 2.0]
    gradient = tape.gradient(loss, layer.strides.value).numpy()
    assert gradient[0] == 0.0
    assert gradient[1] != 0.0
    signals = images.reshape(-1, 50, 3)
    pooled = DiffStride1D(2.0, mask=mask, method=method)(signals)
    np.testing.assert_allclose(outputs, tf.reshape(pooled, outputs.shape), rtol=1e-4, atol=1e-4)


def test_limits_may_differ_by_axis(tmp_path: Path):
    layer = DiffStride((2.0, 2.0), lower_limit_stride=(1.5, None), upper_limit_stride=[3.0, 2.5])
    model = keras.Sequential([keras.Input((32, 32, 1)), layer])
    for strides, expected in (([1.0, 1.0], [1.5, 32 / 28]), ([9.0, 9.0], [3.0, 2.5])):
        clipped = layer.strides.constraint(tf.constant(strides))
        np.testing.assert_allclose(clipped, expected, rtol=1e-6)
        layer.strides.assign(strides)
        images = RNG.normal(size=(1, 32, 32, 1)).astype("float32")
        np.testing.assert_allclose(layer(images), DiffStride(tuple(expected))(images), atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras").layers[0]
    assert loaded.get_config() == layer.get_config()
    assert (loaded.lower_limit_stride, loaded.upper_limit_stride) == ((1.5, None), (3.0, 2.5))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"upper_limit_stride": (2.0, "a")}, TypeError, "upper_limit_stride must be a number"),
        ({"upper_limit_stride": (2.0, 2.0, 2.0)}, ValueError, r"upper_limit_stride must be one number, or a pair"),
        ({"lower_limit_stride": (1.0, 3.0), "upper_limit_stride": (None, 2.0)}, ValueError, "must not exceed"),
        ({"shared_stride": True, "upper_limit_stride": (1.0, None)}, ValueError, "one limit for both axes"),
    ],
)
def test_limits_that_make_no_sense_are_refused(options: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        DiffStride(2.0, **options)


@pytest.mark.parametrize("pooling_cls", [DiffStride])
def test_a_network_for_eeg_is_swapped(pooling_cls: type):
    """Electrodes x time, as in EEGNet: one convolution takes all electrodes, and poolings act on time alone."""
    signals = keras.Input((22, 256, 1))
    x = keras.layers.Conv2D(4, (1, 32), padding="same")(signals)
    x = keras.layers.AveragePooling2D((1, 2), name="before")(x)
    x = keras.layers.DepthwiseConv2D((22, 1), depth_multiplier=2)(x)
    x = keras.layers.AveragePooling2D((1, 4), name="after")(keras.layers.ELU()(x))
    model = keras.Model(signals, keras.layers.Dense(4)(keras.layers.GlobalAveragePooling2D()(x)))
    swapped = replace_downsampling(model, pooling_cls)
    sizes = macs(swapped).pooling_sizes()
    assert [before[0] for before, _ in sizes.values()] == [after[0] for _, after in sizes.values()] == [22, 1]
    assert all(after[1] < before[1] for before, after in sizes.values())
    layers = [layer for layer in swapped.layers if isinstance(layer, DiffStride)]
    assert [layer.strides.numpy().tolist() for layer in layers] == [[1.0, 2.0], [1.0, 4.0]]
    assert swapped(RNG.normal(size=(2, 22, 256, 1))).shape == (2, 4)


@both_engines
@pytest.mark.parametrize("cls", [SpectralPooling, FixedSpectralPooling])
@pytest.mark.parametrize("axis", [1, 2])
def test_fixed_poolings_let_one_row_or_column_pass_through(cls: type[SpectralPooling], axis: int, method: str):
    """It is one of several equal ones at stride 1."""
    one = RNG.normal(size=(2, 1, 21, 3) if axis == 1 else (2, 21, 1, 3)).astype("float32")
    strides, along = ((2.0, 3.1), (1.0, 3.1)) if axis == 1 else ((3.1, 2.0), (3.1, 1.0))
    pooled = cls(strides, method=method)(one)
    several = cls(along, method=method)(np.repeat(one, 4, axis))
    assert pooled.shape[axis] == 1
    np.testing.assert_allclose(
        pooled[:, 0] if axis == 1 else pooled[:, :, 0], tf.gather(several, 1, axis=axis), atol=1e-5
    )
    np.testing.assert_array_equal(cls(2.0).compute_output_shape(one.shape)[axis], 1)


@pytest.mark.parametrize("cls", [SpectralPooling, FixedSpectralPooling])
def test_fixed_poolings_of_one_row_whose_size_turns_up_late(cls: type[SpectralPooling]):
    row = RNG.normal(size=(2, 1, 21, 3)).astype("float32")
    layer = cls(2.0)
    unknown = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, 3])])
    np.testing.assert_allclose(unknown(row), layer(row), atol=1e-6)


def test_one_row_of_spectral_pooling_is_resampled_as_a_signal():
    row = RNG.normal(size=(2, 1, 40, 3)).astype("float32")
    np.testing.assert_allclose(SpectralPooling((5, 4))(row)[:, 0], SpectralPooling1D(4)(row[:, 0]), atol=1e-5)
