"""Networks that enlarge maps again: what is swapped in them, and with what."""

from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
import scipy.signal
import tensorflow as tf
from support.swapped_models import disturbed, images
from support.unets import (
    UNETS,
    autoencoder,
    convolved,
    encoder_in_a_model,
    pooled_and_upsampled,
    sampled_pyramid,
    strided_and_transposed,
)

from diffstride_hybrid import SpectralPooling, SpectralResizing, macs, replace_downsampling
from diffstride_hybrid.model_tools.exporting import export, load_export
from diffstride_hybrid.model_tools.inspection import diffstride_layers, leaf_layers

layers = keras.layers
Make = Callable[..., keras.Model]
FEW = ("nested",)
every_unet = pytest.mark.parametrize("make", UNETS.values(), ids=UNETS.keys())


def maps_for(model: keras.Model) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype("float32")


def resizings(model: keras.Model) -> list[str]:
    return [layer.name for layer in leaf_layers(model) if isinstance(layer, SpectralResizing)]


@every_unet
def test_a_swapped_unet_gives_what_it_gave_and_every_stride_learns(make: Make):
    model = make()
    swapped = replace_downsampling(model, smoothness_factor=2.0)
    maps = maps_for(model)
    learned = diffstride_layers(swapped)
    for strides in ((2.0, 2.0), (1.4, 2.7)):
        for layer in learned:
            layer.strides.assign(strides)
        with tf.GradientTape() as tape:
            outputs = swapped(maps, training=True)
            loss = tf.reduce_sum(outputs**2)
        assert outputs.shape[1:] == model.output_shape[1:]
        for gradient in tape.gradient(loss, [layer.strides.value for layer in learned]):
            assert np.all(np.isfinite(gradient)) and np.all(gradient.numpy() != 0)
    kinds = (layers.UpSampling2D, layers.Conv2DTranspose)
    kept = [layer for layer in leaf_layers(swapped) if isinstance(layer, kinds)]
    assert not [layer.name for layer in kept if max(getattr(layer, "size", layer.strides)) > 1]


@pytest.mark.parametrize(
    "make", [pytest.param(make, marks=[] if name in FEW else pytest.mark.slow, id=name) for name, make in UNETS.items()]
)
def test_a_swapped_unet_trains_saves_loads_and_exports(make: Make, tmp_path: Path):
    swapped = replace_downsampling(make(), smoothness_factor=2.0)
    maps = maps_for(swapped)
    swapped.compile("sgd", "mse")
    swapped.fit(maps, np.zeros([2, *swapped.output_shape[1:]]), verbose=0)
    expected = np.asarray(swapped(maps, training=False))
    swapped.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(maps, training=False), expected)
    export(swapped, tmp_path / "exported", "saved_model", swapped.input_shape[1:])
    exported = load_export(tmp_path / "exported", "saved_model")(maps)
    np.testing.assert_allclose(exported, expected, atol=1e-5 * np.abs(expected).max())


def test_where_nothing_is_cropped_only_the_interpolation_differs():
    model = disturbed(pooled_and_upsampled())
    swapped = replace_downsampling(model, strides=1.0, smoothness_factor=64.0, keep_max=False)
    without = pooled_and_upsampled(factor=1)
    without.set_weights(model.get_weights())
    expected = np.asarray(without(images(64)))
    largest = np.abs(expected).max()
    assert np.abs(expected - np.asarray(model(images(64)))).max() > 0.01 * largest
    np.testing.assert_allclose(swapped(images(64)), expected, atol=1e-5 * largest)


@pytest.mark.parametrize("make", [make for name, make in UNETS.items() if name != "trimmed"])
def test_at_strides_of_exactly_two_all_sizes_stay(make: Make):
    reports: list[str] = []
    replace_downsampling(make(), SpectralPooling, strides=2.0, report=reports.append)
    rows = [line.split() for line in reports[0].splitlines()[1:-1]]
    assert len(rows) >= 2
    for layer, _, *sizes, _ in rows:
        assert sizes[:3] == sizes[3:], layer


@pytest.mark.parametrize("make", [pooled_and_upsampled, strided_and_transposed])
def test_a_unet_of_any_size_stays_one(make: Make):
    swapped = replace_downsampling(make((None, None, 3)), input_shape=(64, 64, 3))
    assert swapped.input_shape == (None, None, None, 3)
    for rows, columns in ((45, 70), (64, 33)):
        assert swapped(np.zeros([1, rows, columns, 3], "float32")).shape == (1, rows, columns, 3)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
def test_both_data_formats(data_format: str):
    shape = (3, 32, 24) if data_format == "channels_first" else (32, 24, 3)
    inputs = keras.Input(shape)
    x = layers.Conv2D(4, 3, strides=2, padding="same", data_format=data_format)(inputs)
    x = layers.Conv2DTranspose(4, 2, strides=2, data_format=data_format)(x)
    x = layers.Concatenate(axis=1 if data_format == "channels_first" else -1)([x, inputs])
    swapped = replace_downsampling(keras.Model(inputs, x))
    if data_format == "channels_last":
        assert swapped(np.zeros([1, *shape])).shape == (1, 32, 24, 7)
    assert swapped.output_shape in {(None, 7, 32, 24), (None, 32, 24, 7)}


# --- Which map gives the size ---


def test_each_map_takes_the_size_of_the_map_that_it_is_joined_with():
    reports: list[str] = []
    replace_downsampling(pooled_and_upsampled(), smoothness_factor=2.0, report=reports.append)
    rows = [line.split() for line in reports[0].splitlines()[1:5]]
    assert [row[0] for row in rows] == ["down_0", "down_1", "up_1", "up_0"]
    assert rows[2][1:] == ["UpSampling2D", "16x16", "to", "32x32", "21x21", "to", "35x35", "up_1_resizing"]
    assert rows[3][1:] == ["UpSampling2D", "32x32", "to", "64x64", "35x35", "to", "64x64", "up_0_resizing"]


def test_what_is_enlarged_where_no_size_has_changed_stays():
    model = pooled_and_upsampled()
    assert resizings(replace_downsampling(model, include="down_1")) == ["up_1_resizing"]
    assert resizings(replace_downsampling(model, include="down_0")) == ["up_1_resizing", "up_0_resizing"]
    inputs = keras.Input((16, 16, 3))
    larger = layers.Conv2DTranspose(4, 3, strides=2, name="first")(inputs)
    before = keras.Model(inputs, layers.GlobalAveragePooling2D()(layers.MaxPooling2D(2)(larger)))
    assert resizings(replace_downsampling(before)) == []


def test_a_map_of_the_first_size_gives_the_size_of_a_head_that_nothing_is_joined_with():
    swapped = replace_downsampling(strided_and_transposed())
    assert resizings(swapped) == ["up_1_resizing", "up_0_resizing", "head_resizing"]


def test_a_size_given_in_numbers_stays_if_it_is_right():
    swapped = replace_downsampling(sampled_pyramid())
    assert resizings(swapped) == ["context_resizing", "up_resizing"]
    assert type(swapped.get_layer("head")) is layers.Resizing


@pytest.mark.parametrize("as_function", [False, True])
def test_a_size_given_in_numbers_follows_a_map_that_changes(as_function: bool):
    inputs = keras.Input((32, 32, 3))
    half = layers.MaxPooling2D(2)(inputs)
    quarter = layers.MaxPooling2D(2)(half)
    resize = (lambda x: keras.ops.image.resize(x, (16, 16))) if as_function else layers.Resizing(16, 16)
    model = keras.Model(inputs, layers.Add()([resize(quarter), half]))
    swapped = replace_downsampling(model, smoothness_factor=1.0)
    assert len(resizings(swapped)) == 1
    assert swapped(images()).shape == (2, 17, 17, 3)


def test_a_map_of_unchanged_size_follows_the_maps_that_it_is_joined_with():
    inputs = keras.Input((32, 32, 3))
    half = layers.AveragePooling2D(2, name="half")(inputs)
    small = layers.Conv2D(3, 1, name="other")(layers.Resizing(16, 16, name="preview")(inputs))
    swapped = replace_downsampling(keras.Model(inputs, layers.Add()([half, small])), smoothness_factor=1.0)
    assert resizings(swapped) == ["preview_resizing"]


def test_a_padding_for_the_next_convolution_is_no_trim():
    inputs = keras.Input((32, 32, 3))
    x = layers.UpSampling2D(4, name="up")(layers.MaxPooling2D(4)(inputs))
    x = layers.Conv2D(3, 3)(layers.ZeroPadding2D(1, name="padding")(x))
    swapped = replace_downsampling(keras.Model(inputs, layers.Add()([x, inputs])), smoothness_factor=1.0)
    assert "padding" in [layer.name for layer in swapped.layers]
    assert swapped(images()).shape == (2, 32, 32, 3)


def test_convolutions_that_are_padded_by_hand_keep_their_paddings():
    """Each padded map has the size of other padded maps, and none of them is merged."""

    def convolved_by_hand(x: keras.KerasTensor) -> keras.KerasTensor:
        return layers.Conv2D(4, 3)(layers.ZeroPadding2D(1)(x))

    inputs = keras.Input((32, 32, 4))
    full = convolved_by_hand(inputs)
    x = layers.UpSampling2D(4)(layers.AveragePooling2D(4)(full))
    model = keras.Model(inputs, layers.Concatenate()([convolved_by_hand(x), full]))
    swapped = replace_downsampling(model, SpectralPooling)
    paddings = [layer for layer in swapped.layers if isinstance(layer, layers.ZeroPadding2D)]
    assert len(paddings) == 2


def test_a_padding_of_channels_and_a_map_that_is_an_output_are_no_trims():
    inputs = keras.Input((33, 33, 3))
    x = layers.UpSampling2D(2)(layers.AveragePooling2D(2, padding="same")(inputs))
    joined = layers.Concatenate()([layers.Cropping2D(((0, 1), (0, 1)))(x), inputs])
    with pytest.raises(ValueError, match="enlarges a map to 34x34, and no map before it has that size"):
        replace_downsampling(keras.Model(inputs, [x, joined]))
    inputs = keras.Input((32, 32, 3))
    x = keras.ops.pad(layers.UpSampling2D(2)(layers.MaxPooling2D(2)(inputs)), [[0, 0], [0, 0], [0, 0], [0, 2]])
    swapped = replace_downsampling(keras.Model(inputs, layers.Concatenate()([x, inputs])))
    assert swapped.output_shape == (None, 32, 32, 8)


def test_a_transposed_convolution_without_padding_is_trimmed_by_its_kernel():
    inputs = keras.Input((32, 32, 3))
    small = layers.MaxPooling2D(4)(inputs)
    half = layers.MaxPooling2D(2)(inputs)
    x = layers.Cropping2D(((0, 2), (0, 2)))(layers.Conv2DTranspose(3, 4, strides=2, name="up")(small))
    swapped = replace_downsampling(keras.Model(inputs, layers.Add()([x, half])), smoothness_factor=1.0)
    assert resizings(swapped) == ["up_resizing"]
    assert swapped(images()).shape == (2, 17, 17, 3)


# --- Weights ---


@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_a_transposed_convolution_keeps_all_but_the_images_of_the_spectrum(kernel: int):
    """A blob in the middle of the map, enlarged by both; then what is above the old Nyquist frequency is removed."""
    inputs = keras.Input((48, 48, 2))
    x = layers.AveragePooling2D(2)(inputs)
    x = layers.Conv2DTranspose(3, kernel, strides=2, padding="same", name="up")(x)
    model = disturbed(keras.Model(inputs, x))
    swapped = replace_downsampling(model, SpectralPooling)
    rows, columns = np.mgrid[:24, :24]
    blob = np.exp(-((rows - 12.0) ** 2 + (columns - 11.0) ** 2) / 8)[None, :, :, None] * np.array([1.0, -0.7])
    enlarged = scipy.signal.resample(scipy.signal.resample(blob, 48, axis=1), 48, axis=2)
    transposed = np.asarray(model.get_layer("up")(blob.astype("float32")))
    for axis in (1, 2):
        transposed = scipy.signal.resample(scipy.signal.resample(transposed, 24, axis=axis), 48, axis=axis)
    convolution = keras.Model(swapped.get_layer("up_resizing").output, swapped.output)
    inner = (slice(None), slice(12, 36), slice(12, 36))
    np.testing.assert_allclose(convolution(enlarged.astype("float32"))[inner], transposed[inner], atol=2e-3)


def test_a_transposed_convolution_keeps_the_mean_that_it_gives():
    inputs = keras.Input((16, 16, 2))
    x = layers.Conv2DTranspose(3, 4, strides=2, padding="same")(layers.AveragePooling2D(2)(inputs))
    model = disturbed(keras.Model(inputs, x))
    ones = np.ones([1, 16, 16, 2], "float32")
    inner = (slice(None), slice(4, 12), slice(4, 12))
    expected = np.mean(model(ones)[inner], axis=(1, 2))
    np.testing.assert_allclose(np.mean(replace_downsampling(model)(ones)[inner], axis=(1, 2)), expected, atol=1e-5)


@pytest.mark.parametrize("make", [pooled_and_upsampled, strided_and_transposed])
def test_with_its_macs_kept_a_unet_costs_what_it_did(make: Make):
    model = make()
    swapped = replace_downsampling(model, SpectralPooling, strides=2.0, keep_macs=True)
    assert macs(swapped).macs == macs(model).macs
    dear = replace_downsampling(model, SpectralPooling, strides=2.0)
    assert make is pooled_and_upsampled or macs(dear).macs > 2 * macs(model).macs


# --- Nested models, and heads of fixed size ---


@pytest.mark.parametrize("trainable", [True, False])
def test_a_nested_model_that_is_taken_apart_trains_as_before(trainable: bool):
    """Its batch normalization was called with `training=False`, or frozen with the model."""

    def moved(model: keras.Model) -> list[bool]:
        model(images(64) + 3, training=True)
        found = [layer for layer in leaf_layers(model) if isinstance(layer, layers.BatchNormalization)]
        return [bool(np.any(layer.moving_mean.numpy() != 0)) for layer in found]

    model = encoder_in_a_model()
    model.get_layer("encoder").trainable = trainable
    swapped = replace_downsampling(model)
    assert not [layer for layer in swapped.layers if isinstance(layer, keras.Model)]
    assert moved(swapped) == moved(model)
    assert len(swapped.trainable_weights) == len(model.trainable_weights) + len(diffstride_layers(swapped))
    calls = swapped.get_layer("batch_normalization")._inbound_nodes
    assert calls[0].arguments.kwargs["training"] is False


def test_nested_models_may_have_layers_of_one_name():
    def step(width: int) -> keras.Sequential:
        return keras.Sequential([layers.Conv2D(width, 3, strides=2, padding="same", name="same")])

    inputs = keras.Input((32, 32, 3))
    half = step(4)(inputs)
    x = layers.UpSampling2D(4)(step(6)(half))
    swapped = replace_downsampling(keras.Model(inputs, layers.Concatenate()([x, inputs])))
    assert [layer.name for layer in swapped.layers if isinstance(layer, layers.Conv2D)] == ["same", "same_1"]


def test_a_head_of_fixed_size_gets_its_maps_in_the_size_of_before():
    reports: list[str] = []
    swapped = replace_downsampling(autoencoder(), smoothness_factor=2.0, report=reports.append)
    assert type(swapped) is keras.Sequential
    assert resizings(swapped) == ["flat_resizing"]
    assert "flat                            Flatten           8x8 to 8x8          13x13 to 8x8" in reports[0]
    for layer in diffstride_layers(swapped):
        layer.strides.assign([1.3, 3.1])
    assert swapped(images(32)[..., :1]).shape == (2, 32, 32, 1)
    # At strides that give this size anyway, nothing is put before the head.
    assert resizings(replace_downsampling(autoencoder(), SpectralPooling, strides=2.0)) == []


@pytest.mark.parametrize("kind", ["Average", "Max"])
def test_a_pooling_over_the_whole_map_becomes_a_global_one(kind: str):
    pool = getattr(layers, f"{kind}Pooling2D")
    parts = [layers.AveragePooling2D(4), pool(8, name="all"), layers.Flatten(), layers.Dense(3)]
    model = disturbed(keras.Sequential([keras.Input((32, 32, 3)), *parts]))
    swapped = replace_downsampling(model, smoothness_factor=2.0)
    assert type(swapped.get_layer("all")) is getattr(layers, f"Global{kind}Pooling2D")
    assert len(diffstride_layers(swapped)) == 1 and resizings(swapped) == []
    if kind == "Average":
        flat = np.ones([1, 32, 32, 3], "float32")
        np.testing.assert_allclose(swapped(flat), model(flat), atol=1e-5)


def test_a_resizing_that_is_shared_trims_both_maps():
    inputs = keras.Input((33, 33, 3))
    half = layers.AveragePooling2D(2, padding="same")(inputs)
    crop = layers.Resizing(33, 33, name="crop")
    maps = [crop(layers.UpSampling2D(2, name=f"up_{number}")(half)) for number in range(2)]
    swapped = replace_downsampling(keras.Model(inputs, layers.Concatenate()([*maps, inputs])))
    assert resizings(swapped) == ["up_0_resizing", "up_1_resizing"]
    assert "crop" not in [layer.name for layer in swapped.layers]


def test_a_shared_pooling_over_the_whole_map_stays_one_layer():
    inputs = keras.Input((32, 32, 3))
    pool = layers.AveragePooling2D(8, name="all")
    small = layers.MaxPooling2D(4)(inputs)
    swapped = replace_downsampling(keras.Model(inputs, layers.Add()([pool(small), pool(layers.ReLU()(small))])))
    assert [layer.name for layer in swapped.layers].count("all") == 1


def test_positions_stand_one_after_the_other_at_any_size():
    inputs = keras.Input((None, None, 3))
    x = layers.Concatenate()([layers.UpSampling2D(2)(layers.MaxPooling2D(2)(inputs)), inputs])
    pixels = keras.Model(inputs, layers.Reshape((-1, 6), name="pixels")(x))
    swapped = replace_downsampling(pixels, input_shape=(32, 32, 3))
    assert swapped(np.zeros([1, 48, 40, 3], "float32")).shape == (1, 48 * 40, 6)
    steps = keras.Model(inputs, layers.Reshape((-1, 12), name="steps")(x))
    with pytest.raises(ValueError, match=r"Layer steps makes one axis of several, and .* takes images of any size"):
        replace_downsampling(steps, input_shape=(32, 32, 3))


def test_a_window_that_covers_a_small_map_by_chance_makes_no_global_pooling():
    """As in InceptionV3 at its least size: a strided convolution gives the map that the pooled one is joined with."""
    inputs = keras.Input((6, 6, 3))
    x = layers.AveragePooling2D(2)(inputs)
    joined = layers.Concatenate()([layers.MaxPooling2D(3, strides=2)(x), layers.Conv2D(4, 3, strides=2)(x)])
    swapped = replace_downsampling(keras.Model(inputs, layers.GlobalAveragePooling2D()(joined)))
    assert len(diffstride_layers(swapped)) == 2


# --- Refusals ---


def up_to_no_map() -> keras.Model:
    inputs = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3, strides=4, padding="same", name="down")(inputs)
    for number in (1, 0):
        x = layers.UpSampling2D(2, name=f"up_{number}")(x)
    return keras.Model(inputs, layers.Concatenate()([x, inputs]), name="steps")


def shared() -> keras.Model:
    inputs = keras.Input((32, 32, 3))
    up = layers.Conv2DTranspose(3, 2, strides=2, name="shared_up")
    x = layers.Add()([up(layers.MaxPooling2D(2)(inputs)), inputs])
    return keras.Model(inputs, [x, up(inputs)], name="shared")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (up_to_no_map, "Layer up_1 enlarges a map to 16x16, and no map before it has that size. Exclude it"),
        (shared, "Layer shared_up is called several times, and only once on a map that changes its size"),
    ],
    ids=["no map", "shared"],
)
def test_what_cannot_be_paired_is_refused_by_name(make: Make, message: str):
    with pytest.raises(ValueError, match=message) as error:
        replace_downsampling(make())
    assert "\n" not in str(error.value)


def test_an_excluded_layer_keeps_its_factor():
    swapped = replace_downsampling(up_to_no_map(), smoothness_factor=1.0, exclude="up_1")
    assert swapped.get_layer("up_1").size == (2, 2)
    assert swapped(images()).shape == (2, 32, 32, 7)
    with pytest.raises(ValueError, match=r"maps of pooled do not fit together any more at layer concatenate.*Exclude"):
        replace_downsampling(pooled_and_upsampled(), exclude="up_0", smoothness_factor=1.0)


def test_statistics_are_taken_anew_in_a_unet():
    swapped = replace_downsampling(convolved_unet(), calibrate=images(32))
    (first, *_) = [layer for layer in swapped.layers if isinstance(layer, layers.BatchNormalization)]
    assert np.all(first.moving_mean.numpy() != 0)


def test_a_chain_that_enlarges_maps_takes_one_map_and_not_a_list():
    """Keras warns of another structure at each call, and warnings are errors here."""
    parts = [layers.MaxPooling2D(2), layers.UpSampling2D(2), layers.Conv2D(3, 3, padding="same")]
    swapped = replace_downsampling(keras.Sequential([keras.Input((32, 32, 3)), *parts]))
    assert swapped(images()).shape == (2, 32, 32, 3)
    assert isinstance(swapped.input, keras.KerasTensor) and isinstance(swapped.output, keras.KerasTensor)


def convolved_unet() -> keras.Model:
    inputs = keras.Input((32, 32, 3))
    full = convolved(inputs, 4)
    x = layers.UpSampling2D(2)(convolved(layers.MaxPooling2D(2)(full), 4))
    return keras.Model(inputs, layers.Concatenate()([convolved(x, 4), full]))
