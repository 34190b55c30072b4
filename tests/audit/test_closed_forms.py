"""The figures of an audit against models and maps whose figures are known in closed form."""

import colorsys
import io

import keras
import numpy as np
import pytest
from PIL import Image

from diffstride_hybrid import DiffStride, SpatialPooling, SpectralPooling, audit
from diffstride_hybrid.audit import corruptions, shifts
from diffstride_hybrid.audit.poolings import PoolingAudit, aliased, audit_poolings, energy_kept, shift_error

ROUNDING = 1e-9
"""Of float32 products, squared."""


def photos(count: int = 8, size: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels)).astype(np.uint8)


def noise_maps(size: int = 32) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(16, size, size, 4)).astype("float32")


def waves(*parts: tuple[float, int], phases: np.ndarray, size: int = 32) -> np.ndarray:
    """Maps of horizontal waves: the sum of (amplitude, frequency), each map with its own phase of every part."""
    x = np.arange(size)
    rows = sum(
        amplitude * np.cos(2 * np.pi * frequency * x / size + phases[:, i, None])
        for i, (amplitude, frequency) in enumerate(parts)
    )
    return np.tile(rows[:, None, :, None], (1, size, 1, 1)).astype("float32")


QUARTERS = np.array([[0.3, 0.3 + k * np.pi / 2] for k in range(40)])
"""Phases that make the product of two waves vanish in the mean over the maps."""


def corrected(coherence: float, count: int = 40) -> float:
    """A squared coherence less the share that chance gives in the mean over so many maps."""
    return (count * coherence - 1) / (count - 1)


def only_pooling(layer: keras.layers.Layer, maps: np.ndarray) -> PoolingAudit:
    model = keras.Sequential([keras.Input(maps.shape[1:]), layer])
    (found,) = audit_poolings(model, maps, seed=0)
    return found


# --- Poolings ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("length", [15, 16, 7])
def test_an_ideal_low_pass_aliases_nothing_and_keeps_what_lies_in_its_band(length: int):
    maps = noise_maps()
    found = only_pooling(SpectralPooling(32 / length, norm="backward"), maps)
    spectrum = np.abs(np.fft.fft2(maps - maps.mean((1, 2), keepdims=True), axes=(1, 2))) ** 2
    frequencies = np.abs(np.fft.fftfreq(32, 1 / 32))
    band = frequencies < length / 2
    in_band = spectrum[:, band][:, :, band].sum() / spectrum.sum()
    assert found.size_after == (length, length)
    assert found.aliased < ROUNDING
    if length % 2:
        assert found.shift_error < ROUNDING
        assert found.energy_kept == pytest.approx(in_band, abs=1e-6)
    else:  # Of the frequency of half the length one of two phases is kept, which shifts turn into the other.
        assert in_band < found.energy_kept < in_band + 0.05
        assert found.shift_error > 0.01


def test_the_strided_identity_aliases_its_folded_energy():
    identity = keras.layers.MaxPooling2D(1, strides=2)
    apart = waves((3.0, 3), (2.0, 12), phases=QUARTERS)  # 12 of 32 is 12 - 16 = -4 of 16.
    found = only_pooling(identity, apart)
    assert found.aliased == pytest.approx(4 / 13, abs=1e-6)
    assert found.energy_kept == pytest.approx(9 / 13, abs=1e-6)


def test_an_alias_that_covers_a_wave_takes_its_share_of_what_is_kept():
    covered = waves((3.0, 4), (2.0, 12), phases=QUARTERS)
    found = only_pooling(keras.layers.MaxPooling2D(1, strides=2), covered)
    assert found.energy_kept == pytest.approx(9 / 13 * corrected(9 / 13), abs=1e-6)


@pytest.mark.parametrize("strides", [2, 1.5, (1, 2)])
def test_spatial_pooling_samples_without_a_filter(strides: float):
    found = only_pooling(SpatialPooling(strides=strides), waves((1.0, 3), (2.0, 12), phases=QUARTERS, size=30))
    whole = only_pooling(SpatialPooling(strides=2), waves((1.0, 3), (2.0, 12), phases=QUARTERS, size=30))
    assert found.size_after == ((15, 15) if strides == 2 else (20, 20) if strides == 1.5 else (30, 15))
    if strides == 1.5:  # Its samples are not evenly spaced, so waves of the band fold too.
        assert 0.5 < found.aliased < 1
    else:
        assert found.aliased == pytest.approx(0.8, abs=1e-6)
        assert found[4:] == pytest.approx(whole[4:], abs=1e-6)


def test_waves_in_the_band_pass_the_strided_identity_whole():
    found = only_pooling(keras.layers.MaxPooling2D(1, strides=2), waves((1.0, 3), (1.0, 7), phases=QUARTERS))
    assert (found.energy_kept, found.aliased, found.shift_error) == pytest.approx((1, 0, 0), abs=1e-6)


def test_the_shift_error_of_an_alias_is_that_of_its_turned_phase():
    """A shift by `d` output samples turns the alias of a wave by `2 pi d` less than the wave itself."""
    maps = waves((1.0, 12), phases=QUARTERS).astype(np.float64)
    distances = np.array([[0.3, 0.1], [0.0, 0.25], [0.2, -0.4]])
    error = shift_error(lambda values: values[:, ::2, ::2], maps, maps[:, ::2, ::2], distances)
    assert error == pytest.approx(np.mean(4 * np.sin(np.pi * distances[:, 1]) ** 2), rel=1e-6)


def test_a_gain_a_delay_and_a_filter_that_can_be_undone_keep_all():
    maps = noise_maps().astype(np.float64)
    filtered = -3 * np.roll(maps, 5, 2) + np.roll(maps, 1, 1)
    assert energy_kept(maps, filtered) == pytest.approx(1, abs=1e-9)
    assert energy_kept(maps, np.random.default_rng(7).normal(size=maps.shape)) < 0.05


def test_chance_keeps_nothing_however_few_the_maps():
    """Without the correction, 32 maps of white noise that another noise explains by chance would keep a 32nd."""
    random = np.random.default_rng(7)
    found = [energy_kept(random.normal(size=(32, 16, 16, 1)), random.normal(size=(32, 16, 16, 1))) for _ in range(5)]
    assert np.mean(found) < 0.6 / 32  # Values below zero are clipped, so the mean is not quite zero.


def test_figures_that_cannot_be_told_are_none():
    constant = np.ones((40, 8, 8, 1))
    assert energy_kept(constant, np.ones((40, 4, 4, 1))) is None
    assert energy_kept(noise_maps()[:7], noise_maps()[:7]) is None  # 28 maps.
    to_one_sample = only_pooling(keras.layers.AveragePooling2D(8), noise_maps(8))
    assert to_one_sample.size_after == (1, 1)
    assert (to_one_sample.aliased, to_one_sample.shift_error) == (None, None)
    smaller_than_a_stride = only_pooling(keras.layers.MaxPooling2D(1, strides=9), noise_maps(8))
    assert smaller_than_a_stride[4:] == (None, None, None)


def test_what_aliases_into_the_mean_counts():
    """The highest frequency, sampled at every second sample, becomes a constant."""
    found = only_pooling(keras.layers.MaxPooling2D(1, strides=2), waves((1.0, 3), (2.0, 16), phases=0 * QUARTERS))
    assert found.aliased == pytest.approx(4 / (4 + 0.5), abs=1e-6)


@pytest.mark.parametrize("size", [32, 33])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_padding_and_odd_sizes_do_not_matter(padding: str, size: int):
    """A wave below the Nyquist frequency passes a strided delta, one above it is aliased, whatever the padding."""
    delta = np.zeros((7, 7, 1, 1))
    delta[3, 3] = 1
    layer = keras.layers.DepthwiseConv2D(7, 2, padding, use_bias=False, depthwise_initializer=lambda *_, **__: delta)
    for frequency, share in ((7, 0), (12, 1)):
        maps = waves((1.0, frequency), phases=QUARTERS)
        maps = np.pad(maps, ((0, 0), (0, size - 32), (0, size - 32), (0, 0)), mode="wrap")
        found = only_pooling(layer, maps)
        assert found.aliased == pytest.approx(share, abs=1e-6)
        if share == 0:
            assert found.shift_error == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("window", "stride"), [(3, 2), (2, 2), (4, 3), (2, 3)])
def test_the_zeros_of_a_padding_are_left_out(window: int, stride: int):
    """Maps go on circularly, so a layer that pads and one that does not are the same."""
    figures = []
    for padding in ("valid", "same"):
        convolution = keras.layers.Conv2D(
            3, window, stride, padding, kernel_initializer=keras.initializers.GlorotNormal(3), bias_initializer="ones"
        )
        for layer in (keras.layers.AveragePooling2D(window, stride, padding), convolution):
            found = only_pooling(layer, noise_maps(24))
            assert found.size_after == layer.compute_output_shape((1, 24, 24, 4))[1:3]
            figures.append([figure or 0.0 for figure in found[4:]])
    assert figures[:2] == pytest.approx(np.array(figures[2:]), abs=1e-5)


def test_a_window_of_the_mean_aliases_as_its_frequency_response_says():
    """The mean of two samples multiplies the frequency `k` of `n` by `cos(pi k / n)`."""
    maps = waves((1.0, 3), (1.0, 12), phases=QUARTERS)
    low, high = (np.cos(np.pi * k / 32) ** 2 for k in (3, 12))
    for padding in ("valid", "same"):
        found = only_pooling(keras.layers.AveragePooling2D((1, 2), padding=padding), maps)
        assert found.aliased == pytest.approx(high / (low + high), abs=1e-6)
    assert aliased(lambda values: values, maps, maps) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("mask", ["released", "symmetric"])
def test_diffstride_does_not_alias(mask: str):
    found = only_pooling(DiffStride(2.0, mask=mask), noise_maps())
    assert found.aliased < ROUNDING
    assert found.shift_error < 0.02


def test_each_call_and_each_kind_of_downsampling_is_listed():
    inputs = keras.Input((16, 16, 2))
    shared = DiffStride(2.0, name="shared")
    x = keras.layers.Concatenate()([shared(inputs), shared(keras.layers.ReLU()(inputs))])
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="conv")(x)
    x = keras.layers.AveragePooling2D(2, name="average")(x)
    x = keras.layers.Conv2D(4, 3, padding="same", name="full")(x)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    found = audit_poolings(model, noise_maps(16)[..., :2], seed=0)
    assert [pooling.layer for pooling in found] == ["shared", "shared, call 2", "conv", "average"]
    assert [pooling.energy_kept is None for pooling in found] == [False, False, True, False]
    assert found[2].size_before == found[0].size_after


# --- Shifts -----------------------------------------------------------------------------------------------------------
def circular_network() -> keras.Model:
    """A convolution over the edges, a rectifier and a mean: any circular shift by whole pixels leaves it unchanged."""
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    for axis in (1, 2):
        first, last = (x[:, :1], x[:, -1:]) if axis == 1 else (x[:, :, :1], x[:, :, -1:])
        x = keras.layers.Concatenate(axis)([last, x, first])
    x = keras.layers.Conv2D(8, 3, activation="relu", kernel_initializer=keras.initializers.GlorotNormal(1))(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


def test_a_circular_network_is_consistent_under_circular_shifts():
    """Its classes are the images themselves: that with the most similar features is the one that was shifted."""
    images = photos(16, 16)
    features = circular_network()
    of_images = features.predict(images, verbose=0)
    kernel, bias = 2 * of_images.T, -(of_images**2).sum(1)
    head = keras.layers.Dense(16)
    model = keras.Sequential([keras.Input((16, 16, 3)), features, head])
    head.kernel.assign(kernel)
    head.bias.assign(bias)
    results = audit(model, images, labels=np.arange(16))
    assert results.accuracy == 1
    assert results.consistency["circular, whole"] == 1
    assert results.consistency["mirrored, whole"] < 1  # Other pixels enter.


def column_of_light(count: int = 4000) -> tuple[keras.Model, np.ndarray]:
    """A network whose class is the brightest column, and images of one bright column at chance."""
    images = np.zeros((count, 4, 16, 1), np.uint8)
    columns = np.random.default_rng(3).integers(0, 16, count)
    images[np.arange(count), :, columns] = 255
    model = keras.Sequential([keras.Input((4, 16, 1)), keras.layers.AveragePooling2D((4, 1)), keras.layers.Flatten()])
    return model, images


def test_a_network_that_sees_places_is_as_consistent_as_two_shifts_are_equal():
    """Of the four shifts by 0 or 1, two different ones go as far to the right in a third of the cases."""
    model, images = column_of_light()
    assert shifts.greatest_shift(4, 16) == 1
    results = audit(model, images, batch_size=512)
    deviation = np.sqrt(1 / 3 * 2 / 3 / (shifts.PAIRS * len(images)))
    assert results.consistency["circular, whole"] == pytest.approx(1 / 3, abs=4 * deviation)
    assert results.worst_case_consistency == results.worst_case_accuracy == 0


def test_fractional_shifts_move_waves_by_their_phase():
    size, distance = 32, np.array([[1.75, -2.5]])
    x = np.arange(size)
    image = 0.5 + 0.2 * np.cos(2 * np.pi * (3 * x[:, None] + 5 * x) / size + 0.4)
    moved = 0.5 + 0.2 * np.cos(2 * np.pi * (3 * (x[:, None] - 1.75) + 5 * (x + 2.5)) / size + 0.4)
    found = shifts.shifted(image[None, ..., None].astype("float32"), distance, "circular")
    assert found[0, ..., 0] == pytest.approx(moved, abs=1e-5)


@pytest.mark.parametrize("boundary, mode", [("circular", "wrap"), ("mirrored", "symmetric")])
def test_whole_and_fractional_shifts_agree_and_fill_in_the_edge(boundary: str, mode: str):
    images = (photos(3, 9) / 255).astype("float32")
    distances = np.array([[1, -3], [0, 2], [-4, 4]])
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode=mode)
    expected = [padded[i, 4 - down : 13 - down, 4 - right : 13 - right] for i, (down, right) in enumerate(distances)]
    assert np.array_equal(shifts.shifted(images, distances, boundary), expected)
    assert shifts.shifted(images, distances + 1e-9, boundary) == pytest.approx(np.stack(expected), abs=1e-5)


# --- Corruptions ------------------------------------------------------------------------------------------------------
def test_noise_has_its_deviation_and_depends_on_the_seed():
    gray = np.full((40, 32, 32, 3), 0.5, "float32")
    for level, deviation in zip(corruptions.SEVERITIES, corruptions.STRENGTHS["noise"]):
        found = corruptions.corruption("noise", level, seed=0)(gray)
        assert found.std() == pytest.approx(deviation, rel=0.02)
        assert np.array_equal(found, corruptions.corruption("noise", level, seed=0)(gray))
        assert not np.array_equal(found, corruptions.corruption("noise", level, seed=1)(gray))


def test_blur_is_the_direct_sum_with_a_gaussian_and_grows_with_the_image():
    images = (photos(2, 64, 1) / 255).astype("float32")
    x = np.arange(-8, 9)
    kernel = np.exp(-(x**2) / (2 * 1.4**2))  # 0.7 pixels of 32 are 1.4 of 64.
    kernel = np.where(np.abs(x) <= int(4 * 1.4 + 0.5), kernel, 0)
    kernel /= kernel.sum()
    padded = np.pad(images[..., 0], ((0, 0), (8, 8), (8, 8)), mode="edge")
    rows = sum(weight * padded[:, i : i + 64] for i, weight in enumerate(kernel))
    both = sum(weight * rows[:, :, i : i + 64] for i, weight in enumerate(kernel))
    found = corruptions.corruption("blur", 3, seed=0)(images)[..., 0]
    assert found == pytest.approx(both, abs=0.5 / 255 + 1e-5)


def test_contrast_brightness_and_jpeg_are_what_their_names_say():
    image = photos(1, 8)[0]
    scaled = (image / 255).astype("float32")[None]
    mean = scaled.mean((1, 2))
    found = {kind: corruptions.corruption(kind, 3, seed=0)(scaled)[0] for kind in corruptions.STRENGTHS}
    assert found["contrast"] == pytest.approx(mean + 0.4 * (scaled[0] - mean), abs=0.51 / 255)
    for pixel, brighter in zip(scaled[0].reshape(-1, 3), found["brightness"].reshape(-1, 3)):
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        expected = colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.15))
        assert brighter == pytest.approx(expected, abs=0.51 / 255)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=58)
    assert np.array_equal((found["jpeg"] * 255).round(), np.asarray(Image.open(file)))


def test_noise_does_not_depend_on_the_batches():
    images = (photos(7, 5) / 255).astype("float32")
    whole, in_parts = (corruptions.corruption("noise", 3, seed=0) for _ in range(2))
    assert np.array_equal(whole(images), np.concatenate([in_parts(images[:3]), in_parts(images[3:])]))


def test_black_becomes_gray_and_large_pixels_are_blocks():
    black = np.zeros((1, 20, 20, 1), "float32")
    assert corruptions.brightness(black, 0.3) == pytest.approx(0.3)
    found = corruptions.pixelate((photos(1, 20, 1) / 255).astype("float32"), 0.5)
    blocks = found.reshape(10, 2, 10, 2)
    assert np.ptp(blocks, (1, 3)).max() == 0


@pytest.mark.parametrize(("channels", "size"), [(1, 32), (2, 16), (3, 8), (3, 32), (4, 16), (1, 4)])
@pytest.mark.parametrize("kind", corruptions.STRENGTHS)
def test_every_corruption_grows_with_its_severity_and_stays_an_image(kind: str, channels: int, size: int):
    smooth = np.cumsum(photos(4, size, channels) / 255.0 - 0.5, 1)
    images = ((smooth - smooth.min()) / np.ptp(smooth)).astype("float32")
    changed = [corruptions.corruption(kind, level, seed=0)(images) for level in corruptions.SEVERITIES]
    assert all(each.shape == images.shape and each.min() >= 0 and each.max() <= 1 for each in changed)
    errors = [np.mean((each - images) ** 2) for each in changed]
    assert errors == sorted(errors) and errors[0] > 0 and errors[-1] > errors[0]


# --- Attacks ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("activation", ["softmax", "linear", "a layer"])
def test_the_attack_on_a_linear_classifier_moves_its_margin_by_the_sum_of_weights(activation: str, policy: str):
    """Two classes whose logits differ by `w x`: the sign method lowers the margin by `strength * sum |w|`."""
    random = np.random.default_rng(0)
    weights = random.normal(size=64).astype("float32")
    images = random.integers(60, 190, (500, 8, 8, 1))
    differences = (images.reshape(500, 64) - 125) / 255 @ weights
    dense = keras.layers.Dense(2, activation=None if activation == "a layer" else activation, dtype=policy)
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            # So sure of its classes that the cross-entropy has no gradient, nor the softmax.
            keras.layers.Rescaling(300 / 255, offset=-300 * 125 / 255, dtype="float32"),
            keras.layers.Flatten(),
            dense,
            *([keras.layers.Softmax(dtype=policy)] if activation == "a layer" else []),
        ]
    )
    dense.kernel.assign(np.stack([np.zeros(64), weights], 1))
    labels = (differences > 0).astype(int)
    results = audit(model, images, labels, batch_size=500)
    for strength in (1, 4):
        expected = np.mean(np.abs(differences) > strength / 255 * np.abs(weights).sum())
        assert results.attacks[f"{strength}/255"] == pytest.approx(expected, abs=(5 if "16" in policy else 1) / 500)
    assert results.accuracy >= (0.99 if "16" in policy else 1)
    assert results.without_gradient == 0
    if activation == "a layer":
        assert "call" not in vars(model.layers[-1])
    else:
        assert dense.activation is getattr(keras.activations, activation)


def test_gradients_below_the_least_float16_number_have_a_sign():
    layers = [keras.layers.Rescaling(1e-3, dtype="mixed_float16"), keras.layers.Flatten(dtype="mixed_float16")]
    head = keras.layers.Dense(2, dtype="mixed_float16")
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers, head])
    head.kernel.assign(1e-5 * np.random.default_rng(0).choice([-1, 1], (64, 2)))
    assert audit(model, photos(8, 8, 1) / 255, value_range=(0, 1)).without_gradient == 0
