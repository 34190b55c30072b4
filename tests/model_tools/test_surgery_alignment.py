"""What runs at stride 1 in a swapped model stays where it was, so that branches that meet still show the same place."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import scipy.signal
from support.swapped_models import disturbed

from diffstride_hybrid import SpectralPooling, replace_downsampling
from diffstride_hybrid.model_tools.alignment import Zeros, zeros_at_stride_one, zeros_behind_resizing
from diffstride_hybrid.model_tools.inspection import leaf_layers

layers = keras.layers
RNG = np.random.default_rng(0)
PADDINGS = [(0, 0), (0, 1), (1, 0), (1, 1)]
BOTH = ["valid", "same"]


def maps(*shape: int) -> np.ndarray:
    """Without values below 0, over which the zeros around a map would win in a max pooling."""
    return RNG.uniform(size=(2, *shape)).astype("float32")


def with_zeros(x: np.ndarray, zeros: tuple[Zeros, Zeros], axis: int = 1) -> np.ndarray:
    widths = [(0, 0)] * 4
    widths[axis], widths[axis + 1] = zeros
    return np.pad(x, widths)


def assert_equal_as_far_as_both_go(every: Any, found: Any, stride: int, axis: int = 1) -> None:
    at_stride = np.asarray(every).take(range(0, every.shape[axis], stride), axis)
    at_stride = at_stride.take(range(0, every.shape[axis + 1], stride), axis + 1)
    rows, columns = (min(at_stride.shape[each], found.shape[each]) for each in (axis, axis + 1))
    assert rows >= found.shape[axis] - 1 and columns >= found.shape[axis + 1] - 1
    keep = tuple(slice(n) for n in (rows, columns))
    index = (slice(None), *keep) if axis == 1 else (slice(None), slice(None), *keep)
    np.testing.assert_allclose(at_stride[index], np.asarray(found)[index], atol=1e-5)


# --- The arithmetic ---


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("window", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", [layers.Conv2D, layers.DepthwiseConv2D, layers.MaxPooling2D])
def test_a_layer_at_stride_one_gives_what_it_gave_with_strides(kind: type, window: int, stride: int):
    arguments = (2, window) if kind is layers.Conv2D else (window,)
    for length, padding, padded in itertools.product((9, 10, 11, 12), BOTH, PADDINGS):
        x = maps(length, length + 1, 2)
        outer = with_zeros(x, (padded, padded))
        strided = kind(*arguments, strides=stride, padding=padding)
        found = strided(outer)
        copy = kind(*arguments, strides=1, padding="valid")
        copy.build(x.shape)
        copy.set_weights(strided.get_weights())
        zeros = [zeros_at_stride_one(window, stride, each, padding, padded[0]) for each in outer.shape[1:3]]
        if padded[0] < window:
            assert_equal_as_far_as_both_go(copy(with_zeros(x, zeros)), found, stride)
        assert [sum(each) for each in zeros] == [window - 1, window - 1]


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("window", [2, 3, 4, 5])
def test_a_transposed_convolution_is_a_turned_kernel_on_a_map_with_zeros_between(window: int, stride: int):
    for length, padding, cropped in itertools.product((4, 5), BOTH, PADDINGS):
        x = maps(length, length, 2)
        transposed = layers.Conv2DTranspose(3, window, strides=stride, padding=padding, use_bias=False)
        whole = transposed(x)
        found = layers.Cropping2D((cropped, cropped))(whole)
        zeros = zeros_behind_resizing(window, stride, (length, whole.shape[1]), padding, cropped[0])
        stuffed = np.zeros([2, length * stride, length * stride, 2], "float32")
        stuffed[:, ::stride, ::stride] = x
        kernel = transposed.get_weights()[0][::-1, ::-1].transpose(0, 1, 3, 2)
        copy = layers.Conv2D(3, window, use_bias=False)
        copy.build((None, window, window, 2))
        copy.set_weights([kernel])
        cut = max((length - 1) * stride + window - whole.shape[1], 0) // 2 if padding == "same" else 0
        if cut + cropped[0] < window:
            expected = copy(with_zeros(stuffed, (zeros, zeros)))
            n = min(expected.shape[1], found.shape[1])
            np.testing.assert_allclose(expected[:, :n, :n], found[:, :n, :n], atol=1e-5)
        assert sum(zeros) == window - 1 and min(zeros) >= 0


# --- Layers of a model ---


def outputs_of(model: keras.Model, name: str, x: np.ndarray) -> np.ndarray:
    return np.asarray(keras.Model(model.inputs[0], model.get_layer(name).output)(x))


def paddings(model: keras.Model) -> list[str]:
    return [layer.name for layer in leaf_layers(model) if isinstance(layer, layers.ZeroPadding2D)]


KINDS: dict[str, Callable[..., layers.Layer]] = {
    "Conv2D": lambda window, **options: layers.Conv2D(3, window, **options),
    "DepthwiseConv2D": layers.DepthwiseConv2D,
    "SeparableConv2D": lambda window, **options: layers.SeparableConv2D(3, window, **options),
    "MaxPooling2D": layers.MaxPooling2D,
}


def cases() -> Iterator[tuple[int, int, str, Any]]:
    yield from itertools.product((16, 17), (1, 2, 3, 4, 5), BOTH, [None, ((1, 1), (1, 1)), ((0, 1), (1, 0))])


@pytest.mark.parametrize("as_function", [False, True])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_the_copy_of_a_layer_lies_where_the_layer_lay(kind: Callable[..., layers.Layer], as_function: bool):
    for length, window, padding, padded in cases():
        if (padded and window == 1) or (as_function and (not padded or window == 5)):
            continue
        inputs = x = keras.Input((length, length + 3, 2))
        if padded:
            x = keras.ops.pad(x, [(0, 0), *padded, (0, 0)]) if as_function else layers.ZeroPadding2D(padded)(x)
        model = disturbed(keras.Model(inputs, kind(window, strides=2, padding=padding, name="down")(x)))
        swapped = replace_downsampling(model, SpectralPooling)
        image = maps(*model.input_shape[1:])
        assert_equal_as_far_as_both_go(outputs_of(swapped, "down", image), np.asarray(model(image)), 2)
        assert swapped.get_layer("down").padding == ("valid" if paddings(swapped) else "same")


def test_maps_with_their_channels_first():
    """TensorFlow convolves those on a GPU alone, so it is the maximum that is compared."""
    inputs = keras.Input((2, 16, 17))
    options = {"data_format": "channels_first"}
    x = layers.ZeroPadding2D(((0, 1), (1, 1)), **options)(inputs)
    x = layers.MaxPooling2D(3, strides=2, name="down", **options)(x)
    model = keras.Model(inputs, layers.Conv2D(3, 3, strides=2, padding="same", name="convolution", **options)(x))
    swapped = replace_downsampling(model, SpectralPooling)
    assert paddings(swapped) == ["down_padding", "convolution_padding"]
    assert [swapped.get_layer(name).padding for name in paddings(swapped)] == [((0, 2), (1, 1)), ((0, 2), (1, 1))]


def blob(size: int, width: float = 3.5, channels: int = 2) -> np.ndarray:
    """A map whose frequencies halve without loss, and that is 0 at its borders."""
    rows, columns = np.mgrid[:size, :size] - size / 2
    spot = np.exp(-((rows - 2) ** 2 + (columns + 1) ** 2) / (2 * width**2))
    return (spot[None, :, :, None] * np.linspace(1, 2, channels)).astype("float32")


@pytest.mark.parametrize("window", [3, 4, 7])
def test_the_branches_of_a_residual_block_still_meet(window: int):
    """Written by hand, with a convolution of 1x1 beside one whose windows begin on the samples that it keeps."""
    inputs = keras.Input((48, 48, 2))
    main = layers.Conv2D(4, window, strides=2, padding="same", use_bias=False)(inputs)
    shortcut = layers.Conv2D(4, 1, strides=2, use_bias=False)(inputs)
    model = disturbed(keras.Model(inputs, layers.Add()([main, shortcut])))
    swapped = replace_downsampling(model, SpectralPooling)
    expected = np.asarray(model(blob(48)))
    np.testing.assert_allclose(swapped(blob(48)), expected, atol=2e-3 * np.abs(expected).max())


def without_images(x: np.ndarray) -> np.ndarray:
    """What a transposed convolution leaves above the Nyquist frequency of before is removed."""
    for axis in (1, 2):
        x = scipy.signal.resample(scipy.signal.resample(x, x.shape[axis] // 2, axis=axis), x.shape[axis], axis=axis)
    return x


@pytest.mark.parametrize("crop", [(0, 0), (1, 0), (0, 1)])
@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_a_decoder_lies_on_its_skip_where_it_lay(kernel: int, crop: tuple[int, int]):
    size = 48 - sum(crop)
    inputs = keras.Input((size, size, 2))
    x = layers.MaxPooling2D(2, padding="same")(inputs)
    x = layers.Conv2DTranspose(2, kernel, strides=2, padding="same", use_bias=False, name="up")(x)
    x = layers.Cropping2D((crop, crop))(x) if sum(crop) else x
    model = keras.Model(inputs, layers.Subtract()([x, inputs]))
    taps = {2: [1, 1], 3: [0.5, 1, 0.5], 4: [0.25, 0.75, 0.75, 0.25], 5: [0.125, 0.5, 0.75, 0.5, 0.125]}[kernel]
    model.get_layer("up").set_weights([np.einsum("i,j,kl->ijkl", taps, taps, np.eye(2))])
    swapped = replace_downsampling(model, SpectralPooling)
    image = blob(size, width=6.0)
    expected, found = (without_images(np.asarray(each(image)) + image) for each in (model, swapped))
    errors = {
        shift: np.abs(np.roll(found, shift, axis=(1, 2)) - expected)[:, 4:-4, 4:-4].mean()
        for shift in itertools.product((-1, 0, 1), repeat=2)
    }
    assert min(errors, key=errors.get) == (0, 0), errors
    assert errors[0, 0] < 0.5 * min(error for shift, error in errors.items() if shift != (0, 0))


def test_a_layer_of_several_maps_is_padded_at_each_call():
    shared = layers.Conv2D(2, 3, strides=2, padding="same", use_bias=False, name="shared")
    inputs = keras.Input((34, 33, 2))
    outputs = [shared(inputs), shared(layers.Cropping2D(((1, 0), (0, 1)))(inputs))]
    model = disturbed(keras.Model(inputs, outputs))
    swapped = replace_downsampling(model, SpectralPooling)
    assert [swapped.get_layer(name).padding for name in paddings(swapped)] == [((0, 2), (1, 1)), ((1, 1), (0, 2))]
    assert swapped.get_layer("shared").padding == "valid"
    image = maps(34, 33, 2)
    poolings = [layer for layer in swapped.layers if isinstance(layer, SpectralPooling)]
    copies = keras.Model(swapped.inputs[0], [pooling.input for pooling in poolings])
    for every, found in zip(copies(image), model(image)):
        assert_equal_as_far_as_both_go(every, found, 2)


def shared_by_models(first: int) -> keras.Model:
    """A convolution of two nested models that take maps of even and of odd size."""
    shared = layers.Conv2D(2, 3, strides=2, padding="same", use_bias=False, name="shared")
    inputs = keras.Input((34, 34, 2))
    x = inputs if first == 34 else layers.Cropping2D(((1, 0), (1, 0)))(inputs)
    for number in range(2):
        inner = keras.Input(x.shape[1:])
        x = keras.Model(inner, shared(inner), name=f"inner_{number}")(x)
        x = layers.Cropping2D(((1, 0), (1, 0)))(x) if first == 34 and number == 0 else x
        x = layers.Cropping2D(((0, 1), (0, 1)))(x) if first == 33 and number == 0 else x
    return keras.Model(inputs, x, name="both")


def test_a_layer_of_several_models_is_refused_if_they_do_not_agree():
    swapped = replace_downsampling(shared_by_models(34), SpectralPooling)
    assert swapped(maps(34, 34, 2)).shape == (2, 8, 8, 2)
    with pytest.raises(ValueError, match="Layer shared of inner_1 is a layer of another model too"):
        replace_downsampling(shared_by_models(33), SpectralPooling)


def test_on_the_smaller_map_windows_stay_centered():
    inputs = keras.Input((32, 32, 2))
    x = layers.Conv2D(2, 3, strides=2, padding="same", name="down")(inputs)
    x = layers.Conv2DTranspose(2, 3, strides=2, padding="same", name="up")(x)
    model = keras.Model(inputs, layers.Add()([x, inputs]))
    swapped = replace_downsampling(model, SpectralPooling, keep_macs=True)
    assert [swapped.get_layer(name).padding for name in ("down", "up")] == ["same", "same"]
    assert paddings(swapped) == []
