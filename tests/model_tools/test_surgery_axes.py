"""Swaps of layers that pool along one axis, of models that hold poolings already, and of bound constructors."""

from functools import partial
from typing import Any

import keras
import numpy as np
import pytest

from diffstride_hybrid import DiffStride, SpectralPooling, SpectralResizing, replace_downsampling
from diffstride_hybrid.model_tools.inspection import diffstride_layers, leaf_layers


def electrodes() -> keras.Model:
    """Pools over time alone."""
    inputs = keras.Input((22, 64, 1))
    x = keras.layers.Conv2D(4, (1, 5), padding="same")(inputs)
    x = keras.layers.AveragePooling2D((1, 2), name="pool")(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, ((None, None), (1.0, None))),
        ({"upper_limit_stride": 4.0}, ((None, None), (1.0, 4.0))),
        ({"upper_limit_stride": (3.0, 5.0)}, ((None, None), (1.0, 5.0))),
        ({"lower_limit_stride": 1.5}, ((1.0, 1.5), (1.0, None))),
        ({"lower_limit_stride": 1.5, "upper_limit_stride": 4.0}, ((1.0, 1.5), (1.0, 4.0))),
    ],
)
def test_an_axis_that_was_not_pooled_stays_so_whatever_the_limits(limits: dict[str, Any], expected: tuple[Any, Any]):
    swapped = replace_downsampling(electrodes(), **limits)
    (layer,) = diffstride_layers(swapped)
    vertical, horizontal = layer.strides.numpy()
    assert (vertical, horizontal) == (1.0, 2.0)
    low, high = (layer.get_config()[f"{name}_limit_stride"] for name in ("lower", "upper"))
    found = tuple((each, each) if each is None else tuple(each) for each in (low, high))
    assert found == expected
    layer.strides.assign([9.0, 2.0])
    assert layer(np.zeros([1, 22, 64, 4], "float32")).shape[1] in (21, 22)


def test_one_stride_for_both_axes_cannot_replace_a_pooling_of_one():
    with pytest.raises(
        ValueError, match=r"Layer pool pools along one axis alone, by \(1\.0, 2\.0\), so .*: exclude it"
    ):
        replace_downsampling(electrodes(), shared_stride=True)


def two_poolings(*behind: keras.layers.Layer) -> keras.Model:
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="first")(inputs)
    x = keras.layers.Conv2D(4, 3, strides=2, padding="same", name="second")(x)
    for layer in (*behind, keras.layers.GlobalAveragePooling2D()):
        x = layer(x)
    return keras.Model(inputs, x)


def test_a_model_that_follows_its_strides_is_not_swapped_again():
    swapped = replace_downsampling(two_poolings(), include="first")
    with pytest.raises(
        ValueError, match=r"second cannot be replaced: the size of its map follows .* first_downsampling"
    ):
        replace_downsampling(swapped)
    swapped = replace_downsampling(two_poolings(), SpectralPooling, include="first")
    again = replace_downsampling(swapped, SpectralPooling)
    names = [layer.name for layer in leaf_layers(again) if isinstance(layer, SpectralPooling)]
    assert names == ["first_downsampling", "second_downsampling"]
    assert again(np.zeros([1, 32, 32, 3], "float32")).shape == (1, 4)


def test_before_a_pooling_that_follows_its_strides_all_is_replaced():
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.AveragePooling2D(2, name="average")(inputs)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(DiffStride(2.0, name="learned")(x)))
    swapped = replace_downsampling(model, SpectralPooling)
    assert [type(layer) for layer in leaf_layers(swapped)][1:3] == [SpectralPooling, DiffStride]


def test_behind_a_fixed_crop_sizes_are_known():
    swapped = replace_downsampling(two_poolings(), include="first", static_crop=True)
    again = replace_downsampling(swapped, static_crop=True)
    assert [layer.name for layer in diffstride_layers(again)] == ["first_downsampling", "second_downsampling"]


def test_what_a_constructor_binds_is_kept():
    made = partial(DiffStride, mask="released", norm="backward", upper_limit_stride=3.0, dtype="float64")
    for layer in diffstride_layers(replace_downsampling(two_poolings(), made)):
        config = layer.get_config()
        assert (config["mask"], config["norm"]) == ("released", "backward")
        assert set(np.ravel(config["upper_limit_stride"])) == {3.0}
        assert layer.compute_dtype == "float32"  # As the replaced layer.
    (layer, *_) = diffstride_layers(
        replace_downsampling(two_poolings(), partial(DiffStride, strides=2.5), norm="ortho")
    )
    assert (layer.initial_strides, layer.norm, layer.mask) == ((2.5, 2.5), "ortho", "symmetric")


class Noted(DiffStride):
    def __init__(self, note: str = "", **kwargs: Any):
        super().__init__(**kwargs)
        self.note = note


class Released(Noted):
    def __init__(self, **kwargs: Any):
        super().__init__(mask="released", **kwargs)


@pytest.mark.parametrize("made", [Noted, Released, partial(Noted, note="mine"), lambda **k: DiffStride(**k)])
def test_what_a_constructor_hands_on_is_set_as_well(made: Any):
    inputs = keras.Input((22, 64, 4))
    model = keras.Model(inputs, keras.layers.AveragePooling2D((1, 4), name="pool")(inputs))
    (layer,) = diffstride_layers(replace_downsampling(model, made))
    config = layer.get_config()
    assert (config["mask"], config["norm"]) == ("released" if made is Released else "symmetric", "forward")
    assert tuple(config["upper_limit_stride"]) == (1.0, None)
    assert layer.initial_strides == (1.0, 4.0)


def test_an_argument_that_the_pooling_does_not_take_is_named():
    with pytest.raises(ValueError, match=r"pooling_cls does not take what is handed on to it: .*DiffStride.*'pooling'"):
        replace_downsampling(two_poolings(), pooling=SpectralPooling)
    with pytest.raises(TypeError, match=r"pooling_cls does not take what is handed on to it: .*'smoothness'"):
        replace_downsampling(
            two_poolings(), lambda strides, data_format, dtype, name: SpectralPooling(strides), smoothness=1.0
        )


def test_a_flatten_takes_the_format_of_the_maps():
    """Keras gives it that of the whole program, whatever the model computes in."""
    inputs = keras.Input((3, 32, 32))
    pool = SpectralPooling(2, data_format="channels_first", name="pool")
    x = keras.layers.MaxPooling2D(2, data_format="channels_first", name="max")(pool(inputs))
    model = keras.Model(inputs, keras.layers.Dense(5)(keras.layers.Flatten()(x)))
    swapped = replace_downsampling(model, DiffStride)
    (resizing,) = (layer for layer in leaf_layers(swapped) if isinstance(layer, SpectralResizing))
    assert (resizing.data_format, resizing.output_size) == ("channels_first", (8, 8))
    assert swapped.get_layer(index=-1).kernel.shape == model.get_layer(index=-1).kernel.shape
