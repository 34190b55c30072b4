"""What keeps a network's accuracy, or its cost, when its downsampling is replaced."""

from collections.abc import Callable

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits
from support.swapped_models import branches, chain, images, nested

from diffstride_hybrid import DiffStride, SpectralPooling, macs, replace_downsampling

layers = keras.layers


def test_a_max_pooling_keeps_its_maximum_and_not_if_asked():
    model = keras.Sequential([keras.Input((32, 32, 3)), layers.MaxPooling2D(2, name="max")])
    pooling = SpectralPooling(2.0, norm="forward")
    kept = pooling(layers.MaxPooling2D(2, strides=1, padding="same")(images()))
    np.testing.assert_allclose(replace_downsampling(model, SpectralPooling)(images()), kept, atol=1e-6)
    dropped = replace_downsampling(model, SpectralPooling, keep_max=False)
    np.testing.assert_allclose(dropped(images()), pooling(images()), atol=1e-6)
    assert [layer.name for layer in dropped.layers] == ["max_downsampling"]


@pytest.mark.parametrize("make", [chain, branches, nested])
def test_with_its_macs_kept_a_model_costs_what_it_did(make: Callable[..., keras.Model]):
    """But for what the poolings cost, and but for convolutions of one image column more at odd sizes."""
    model = make()
    before = macs(model)
    cheap = macs(replace_downsampling(model, SpectralPooling, keep_macs=True))
    dear = macs(replace_downsampling(model, SpectralPooling))
    assert cheap.macs == before.macs < dear.macs
    assert cheap.pooling_sizes() == dear.pooling_sizes() or make is not chain


def test_with_its_macs_kept_the_pooling_comes_before_the_convolution():
    swapped = replace_downsampling(chain(), keep_macs=True)
    names = [layer.name for layer in swapped.layers]
    assert names[:2] == ["stem_downsampling", "stem"]
    assert names[names.index("max") + 1] == "max_downsampling"


@pytest.mark.parametrize("argument", ["keep_max", "keep_macs"])
def test_a_flag_that_is_none_is_refused(argument: str):
    with pytest.raises(TypeError, match=f"{argument} must be True or False, got 'yes'"):
        replace_downsampling(chain(), **{argument: "yes"})


def test_without_batch_normalization_there_is_nothing_to_calibrate():
    model = keras.Sequential([keras.Input((32, 32, 3)), layers.Conv2D(4, 3), layers.MaxPooling2D(2)], name="plain")
    reports: list[str] = []
    with pytest.warns(UserWarning, match="plain has no batch normalization, so `calibrate` changes nothing: train"):
        replace_downsampling(model, calibrate=images(), report=reports.append)
    assert reports[0].splitlines()[-1] == "statistics taken anew: none"


def digits() -> tuple[np.ndarray, np.ndarray]:
    bunch = load_digits()
    return bunch.images[..., None].astype("float32") / 16, bunch.target


def test_a_trained_network_keeps_its_accuracy_right_after_the_swap():
    """Without the maximum and the statistics it loses most of it: 28 to 66 % were measured on digits."""
    keras.utils.set_random_seed(1)
    pixels, labels = digits()
    train, test = slice(0, 1400), slice(1400, None)
    parts: list[layers.Layer] = []
    for width in (16, 32):
        parts += [layers.Conv2D(width, 3, padding="same", use_bias=False), layers.BatchNormalization(), layers.ReLU()]
        parts += [layers.MaxPooling2D(2)]
    head = [layers.GlobalAveragePooling2D(), layers.Dense(10)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *parts, *head])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(pixels[train], labels[train], epochs=25, batch_size=32, verbose=0)

    def accuracy(network: keras.Model) -> float:
        return float(np.mean(np.argmax(network(pixels[test], training=False), -1) == labels[test]))

    before = accuracy(model)
    assert before > 0.9
    for pooling_cls, options in ((SpectralPooling, {}), (DiffStride, {"smoothness_factor": 1.0})):
        plain = replace_downsampling(model, pooling_cls, keep_max=False, **options)
        kept = replace_downsampling(model, pooling_cls, calibrate=pixels[train][:500], **options)
        assert accuracy(plain) < before - 0.1
        assert accuracy(kept) > before - 0.1
