"""The penalty on small strides."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from diffstride_hybrid import DiffStride, DiffStride1D, resnet18
from diffstride_hybrid.model_tools.inspection import diffstride_layers, strides_by_path
from diffstride_hybrid.model_tools.stride_penalty import regularize_strides


# --- The penalty on small strides ------------------------------------------------------------------------------------
def test_the_penalty_is_that_of_the_paper():
    model = resnet18(width=4, num_output_classes=10, pooling_cls=DiffStride, weight_decay=0.0, stride_complexity=0.25)
    model.build((None, 32, 32, 3))
    strides = [[1.5, 1.25], [2.0, 3.0], [1.75, 2.5], [4.0, 2.0]]
    for layer, pair in zip(diffstride_layers(model), strides):
        layer.strides.assign(pair)
    areas = np.cumprod([1 / (vertical * horizontal) for vertical, horizontal in strides])
    assert float(sum(model.losses)) == pytest.approx(0.25 * areas.sum(), rel=1e-6)


def test_the_penalty_follows_the_order_of_the_poolings_in_nested_models():
    inner = keras.Sequential([DiffStride(2.0), keras.layers.Conv2D(3, 1), DiffStride(4.0)])
    model = keras.Sequential([keras.Input((32, 32, 3)), inner, DiffStride((1.5, 1.0))])
    regularize_strides(model, 1.0)
    assert float(sum(model.losses)) == pytest.approx(1 / 4 + 1 / 64 + 1 / 96)


def test_the_penalty_of_a_signal_is_the_share_of_its_length():
    model = keras.Sequential([keras.Input((64, 8)), DiffStride1D(4.0), DiffStride1D(2.0)])
    regularize_strides(model, 1.0)
    assert float(sum(model.losses)) == pytest.approx(1 / 4 + 1 / 8)


def test_the_gradient_of_the_penalty_is_its_finite_difference():
    model = keras.Sequential([keras.Input((24, 24, 2)), DiffStride((2.0, 3.0)), DiffStride(2.5, shared_stride=True)])
    regularize_strides(model, 0.5)
    with tf.GradientTape() as tape:
        loss = tf.add_n(model.losses)
    layers = diffstride_layers(model)
    gradients = tape.gradient(loss, [layer.strides.value for layer in layers])
    for layer, gradient in zip(layers, gradients):
        strides = layer.strides.numpy()
        for i, step in enumerate(np.eye(len(strides)) * 1e-2):
            ends = []
            for sign in (1, -1):
                layer.strides.assign(strides + sign * step)
                ends.append(float(sum(model.losses)))
            layer.strides.assign(strides)
            assert float(gradient[i]) == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=1e-3)
            assert gradient[i] < 0


def test_the_penalty_makes_strides_grow_under_fit_and_is_saved_with_a_resnet(tmp_path: Path):
    model = resnet18(
        width=4, num_output_classes=10, output_activation="softmax", pooling_cls=DiffStride, stride_complexity=30.0
    )
    model.build((None, 16, 16, 1))
    before = [layer.strides.numpy() for layer in diffstride_layers(model)]
    model.compile(keras.optimizers.SGD(0.02), "sparse_categorical_crossentropy", run_eagerly=True)
    model.fit(np.zeros([4, 16, 16, 1], "float32"), np.arange(4), verbose=0)
    after = [layer.strides.numpy() for layer in diffstride_layers(model)]
    assert all((new > old).all() for old, new in zip(before, after))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert float(sum(loaded.losses)) == pytest.approx(float(sum(model.losses)), rel=1e-6)


def test_a_new_head_leaves_the_penalty():
    model = resnet18(width=4, num_output_classes=10, pooling_cls=DiffStride)
    model.build((None, 16, 16, 3))
    regularize_strides(model, 0.1)
    penalties = [layer.strides.regularizer for layer in diffstride_layers(model)]
    model.pop()
    model.add(keras.layers.Dense(5))
    assert None not in penalties
    assert [layer.strides.regularizer for layer in diffstride_layers(model)] == penalties


def test_a_factor_of_zero_adds_no_loss():
    model = keras.Sequential([keras.Input((24, 24, 2)), DiffStride(2.0)])
    regularize_strides(model, 1.0)
    assert len(model.losses) == 1
    regularize_strides(model, 0.0)
    assert model.losses == []


@pytest.mark.parametrize("factor", [-0.1, float("nan"), float("inf"), "much", None])
def test_a_factor_that_is_none_is_refused(factor: Any):
    with pytest.raises((TypeError, ValueError), match=r"factor must be (a number|finite and at least 0), got "):
        regularize_strides(keras.Sequential([keras.Input((8, 8, 2)), DiffStride()]), factor)


def test_a_penalty_on_nothing_is_named():
    with pytest.warns(UserWarning, match="stride complexity of plain acts on nothing: the model has no DiffStride"):
        regularize_strides(keras.Sequential([keras.Input((8, 8, 2)), keras.layers.ReLU()], name="plain"), 0.5)


@pytest.mark.parametrize("frozen", [[], [0], [1], [2], [0, 1], [1, 2], [0, 2]])
def test_frozen_layers_keep_their_terms(frozen: list[int]):
    model = keras.Sequential([keras.Input((64, 64, 2)), DiffStride(2.0), DiffStride((1.5, 2.0)), DiffStride(2.0)])
    for i in frozen:
        model.layers[i].trainable = False
    regularize_strides(model, 1.0)
    expected = 1 / 4 + 1 / 12 + 1 / 48
    assert len(model.losses) == 3 - len(frozen)
    assert float(sum(model.losses)) == pytest.approx(expected)
    model.trainable = False
    assert model.losses == []
    model.trainable = True  # Later changes count too.
    assert float(sum(model.losses)) == pytest.approx(expected)


def test_a_model_without_strides_is_named():
    for use in (lambda model: regularize_strides(model, 0.1), strides_by_path):
        with pytest.raises(ValueError, match="bare must be built, so that its layers have strides"):
            use(keras.Sequential([DiffStride(2.0)], name="bare"))
