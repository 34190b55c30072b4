"""Models train, are swapped, counted and calibrated on any backend. `test_backends.py` runs this file."""

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits
from support.swapped_models import branches, chain, images, nested
from support.unets import pooled_and_upsampled, strided_and_transposed

from diffstride_hybrid import (
    CropRefresh,
    DiffStride,
    MacsBudget,
    Resnet,
    SpectralPooling,
    macs,
    recalibrate_normalization,
    refresh_crops,
    regularize_strides,
    replace_downsampling,
)
from diffstride_hybrid.backends import current
from diffstride_hybrid.model_tools.inspection import diffstride_layers, leaf_layers, strides_by_path

layers = keras.layers

SLOW_ON_JAX = [pytest.mark.slow] if keras.backend.backend() == "jax" else []  # It compiles each operation anew.


def digits() -> tuple[np.ndarray, np.ndarray]:
    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    return bunch.images[order, ..., None].astype("float32") / 16, bunch.target[order]


def network(**options: object) -> keras.Sequential:
    parts: list[layers.Layer] = [keras.Input((8, 8, 1))]
    for width in (32, 64):
        parts += [layers.Conv2D(width, 3, padding="same", use_bias=False)]
        parts += [layers.BatchNormalization(momentum=0.9), layers.ReLU()]
        parts += [DiffStride(1.6, smoothness_factor=1.0, mask="symmetric", norm="forward", **options)]
    parts += [layers.Conv2D(64, 3, padding="same", activation="relu"), layers.GlobalAveragePooling2D()]
    return keras.Sequential([*parts, layers.Dense(10)])


@pytest.mark.parametrize(
    ("policy", "epochs"), [pytest.param("float32", 10, marks=pytest.mark.slow), ("mixed_bfloat16", 2)]
)
def test_a_network_learns_digits_and_its_crops_follow_its_strides(policy: str, epochs: int):
    keras.utils.set_random_seed(1)
    keras.config.set_dtype_policy(policy)
    pixels, labels = digits()
    train, test = slice(0, 1400), slice(1400, None)
    try:
        model = network()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * 44)
        model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
        before = strides_by_path(model)
        refresh = CropRefresh()
        history = model.fit(
            pixels[train],
            labels[train],
            32,
            epochs,
            verbose=0,
            callbacks=[refresh],
            validation_data=(pixels[test], labels[test]),
        )
    finally:
        keras.config.set_dtype_policy("float32")
    after = strides_by_path(model)
    assert all(np.any(np.abs(np.subtract(after[path], before[path])) > 0.01) for path in before)
    assert np.all(np.isfinite(history.history["loss"]))
    # What is evaluated has the sizes that the strides ask for, as a new model with the same weights has.
    again = network()
    again.set_weights(model.get_weights())
    if policy == "float32":
        assert history.history["val_accuracy"][-1] > 0.97
        np.testing.assert_allclose(
            model.predict(pixels[test], verbose=0), again.predict(pixels[test], verbose=0), atol=1e-4
        )


def test_the_sizes_of_training_follow_the_strides(monkeypatch: pytest.MonkeyPatch):
    sizes: list[int] = []
    pool_to = DiffStride._pool_to

    def noting(self: DiffStride, kept: object, inputs: object) -> object:
        outputs = pool_to(self, kept, inputs)
        sizes.append(outputs.shape[1])
        return outputs

    class Stretch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
            if batch == 2:
                current.bring_weights_back(self.model)
                diffstride_layers(self.model)[0].strides.assign([4.0, 4.0])

    monkeypatch.setattr(DiffStride, "_pool_to", noting)
    pooling = DiffStride(2.0, smoothness_factor=2.0, mask="symmetric", norm="forward")
    model = keras.Sequential([keras.Input((32, 32, 3)), pooling, layers.GlobalAveragePooling2D()])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    x, y = np.ones([5, 32, 32, 3], "float32"), np.ones([5, 3], "float32")
    model.fit(x, y, batch_size=1, verbose=0, shuffle=False, callbacks=[Stretch(), CropRefresh(every_steps=1)])
    assert sizes[0] == 19 and sizes[-1] == 11


def test_crops_are_fixed_anew_when_strides_have_passed_a_boundary():
    model = network(static_crop=True)
    model.compile("sgd", "mse")
    x, y = np.ones([4, 8, 8, 1], "float32"), np.ones([4, 10], "float32")
    model.fit(x, y, verbose=0)
    first = diffstride_layers(model)[0]
    before = dict(first.crops)
    first.strides.assign([3.9, 3.9])
    assert refresh_crops(model)
    assert first.crops != before
    model.fit(x, y, verbose=0, callbacks=[CropRefresh(every_steps=1)])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_size_that_cannot_follow_is_warned_of():
    if keras.backend.backend() != "jax":
        pytest.skip("only JAX compiles each step")
    model = network()
    model.compile("sgd", "mse")
    with pytest.warns(UserWarning, match="its output keeps the size that its strides ask for now. The callback"):
        model.fit(np.ones([4, 8, 8, 1], "float32"), np.ones([4, 10], "float32"), verbose=0)


SWAPPED = (nested, chain, branches, pooled_and_upsampled, strided_and_transposed)


@pytest.mark.parametrize("make", [pytest.param(make, marks=SLOW_ON_JAX) for make in SWAPPED])
def test_models_are_swapped(make: object):
    model = make()
    x = images(model.input_shape[1])
    fixed = replace_downsampling(model, SpectralPooling, strides=2.0)
    assert tuple(fixed(x).shape) == tuple(model(x).shape)
    reports: list[str] = []
    has_statistics = any(isinstance(layer, layers.BatchNormalization) for layer in leaf_layers(model))
    calibrate = x if has_statistics else None
    swapped = replace_downsampling(model, smoothness_factor=2.0, calibrate=calibrate, report=reports.append)
    assert ("statistics taken anew: " in reports[0]) == has_statistics
    for layer in diffstride_layers(swapped):
        layer.strides.assign([1.4, 2.7])
    assert tuple(swapped(x).shape) == tuple(model(x).shape)


def test_a_small_unet_is_swapped():
    inputs = keras.Input((8, 8, 3))
    x = layers.UpSampling2D(2)(layers.MaxPooling2D(2)(inputs))
    model = keras.Model(inputs, layers.Concatenate()([x, inputs]))
    swapped = replace_downsampling(model, smoothness_factor=1.0)
    (learned,) = diffstride_layers(swapped)
    learned.strides.assign([1.4, 2.7])
    assert tuple(swapped(images(8)).shape) == (2, 8, 8, 6)


def test_statistics_are_taken_anew():
    parts = [keras.Input((8, 8, 1)), layers.Rescaling(4.0, offset=1.0), layers.BatchNormalization(name="norm")]
    model = keras.Sequential(parts)
    pixels = np.random.default_rng(0).normal(size=(200, 8, 8, 1)).astype("float32")
    assert recalibrate_normalization(model, pixels) == ["norm"]
    values = keras.ops.convert_to_numpy(model.layers[1].moving_variance)
    np.testing.assert_allclose(values, [16 * pixels.var()], rtol=1e-4)


def test_cost_and_penalty():
    model = keras.Sequential([keras.Input((24, 24, 2)), layers.Conv2D(3, 3, padding="same"), DiffStride((2.0, 4.0))])
    assert macs(model).macs == 24 * 24 * 3 * 9 * 2
    regularize_strides(model, 0.5)
    (loss,) = model.losses
    assert keras.ops.convert_to_numpy(loss) == pytest.approx(0.0625)


def test_a_resnet_trains_a_step():
    model = Resnet([4, 8], [1, 2], 10, num_layers=1, pooling_cls=DiffStride, head_pooling_cls=SpectralPooling)
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    losses = model.fit(images(16), np.array([0, 1]), verbose=0, callbacks=[CropRefresh()]).history["loss"]
    assert np.all(np.isfinite(losses))


FAMILIES = {
    "VGG16": 64,
    "ResNet50": 64,
    "MobileNet": 64,
    "MobileNetV2": 64,
    "MobileNetV3Small": 64,
    "DenseNet121": 64,
    "EfficientNetB0": 64,
    "Xception": 71,
    "InceptionV3": 75,
    "ConvNeXtTiny": 64,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_models_of_keras_applications_are_swapped(name: str):
    size = FAMILIES[name]
    make = getattr(keras.applications, name)
    model = make(weights=None, include_top=False, pooling="avg", input_shape=(size, size, 3))
    swapped = replace_downsampling(model, smoothness_factor=2.0)
    assert diffstride_layers(swapped)
    x = np.random.default_rng(0).uniform(0, 255, (1, size, size, 3)).astype("float32")
    assert tuple(swapped(x).shape) == tuple(model(x).shape)


def test_a_budget_of_macs_is_met_before_each_validation():
    counts: list[int] = []

    class Count(keras.callbacks.Callback):
        def on_test_begin(self, logs: object = None) -> None:
            counts.append(macs(self.model).macs)

    model = keras.Sequential([keras.Input((16, 16, 1)), DiffStride(1.5, smoothness_factor=1.0)])
    model.add(layers.Conv2D(4, 3, padding="same"))
    model.add(DiffStride(1.5, smoothness_factor=1.0))
    model.add(layers.Conv2D(4, 3, padding="same"))
    model.add(layers.GlobalAveragePooling2D())
    model.compile("adam", "mse")
    start = macs(model).macs
    x, y = np.ones([4, 16, 16, 1], "float32"), np.ones([4, 4], "float32")
    callbacks = [MacsBudget(0.5, epoch=2), CropRefresh(), Count()]
    model.fit(x, y, batch_size=2, epochs=3, verbose=0, callbacks=callbacks, validation_data=(x, y))
    np.testing.assert_allclose(counts[1:], 0.5 * start, rtol=0.03)
    assert macs(model).macs == counts[-1]
    again = keras.models.clone_model(model)
    again.set_weights(model.get_weights())
    assert macs(again).macs == counts[-1]
