"""A static crop follows its strides whichever way they arrive, or the user is told."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from diffstride_hybrid import CropRefresh, DiffStride, DiffStride1D, refresh_crops

IMAGES = np.random.default_rng(0).normal(size=(4, 24, 20, 2)).astype("float32")
NEW = [1.3, 3.1]
"""Strides that ask for another size than the initial ones on both axes."""


CHANGED = r"strides of .* have changed since .*refresh_crops"


def told(jit_compile: bool) -> AbstractContextManager[Any]:
    """XLA has no errors of its own."""
    if jit_compile:
        return pytest.warns(UserWarning, match=CHANGED)
    return pytest.raises(tf.errors.InvalidArgumentError, match=CHANGED)


def make(strides: float | tuple[float, float] = 2.0, **options: object) -> keras.Model:
    pooling = DiffStride(strides, **{"static_crop": True, "smoothness_factor": 2.0} | options)
    return keras.Sequential([keras.Input(IMAGES.shape[1:]), pooling, keras.layers.GlobalMaxPooling2D()])


def moved() -> keras.Model:
    """A model whose strides have the new values, which arrived by training or otherwise."""
    model = make()
    model.layers[0].strides.assign(NEW)
    return model


def expected() -> np.ndarray:
    return make(tuple(NEW))(IMAGES).numpy()


def by_set_weights(model: keras.Model, source: keras.Model, folder: Path) -> None:
    model.set_weights(source.get_weights())


def by_assign(model: keras.Model, source: keras.Model, folder: Path) -> None:
    for weight, other in zip(model.weights, source.weights, strict=True):
        weight.assign(other)


def by_assign_of_the_tensorflow_variables(model: keras.Model, source: keras.Model, folder: Path) -> None:
    for weight, other in zip(model.weights, source.weights, strict=True):
        weight.value.assign(other.value)


def by_weights_file(model: keras.Model, source: keras.Model, folder: Path) -> None:
    source.compile()  # The file of a model that was never compiled does not fit one that was.
    source.save_weights(folder / "a.weights.h5")
    model.load_weights(folder / "a.weights.h5")


def by_legacy_file(model: keras.Model, source: keras.Model, folder: Path) -> None:
    source.save(folder / "a.h5")
    model.load_weights(folder / "a.h5")


def by_checkpoint(model: keras.Model, source: keras.Model, folder: Path) -> None:
    source.compile()
    path = tf.train.Checkpoint(model=source).save(folder / "checkpoint")
    tf.train.Checkpoint(model=model).restore(path).assert_existing_objects_matched()


def by_average(model: keras.Model, source: keras.Model, folder: Path) -> None:
    """As SwapEMAWeights and `finalize_variable_values` do."""
    optimizer = keras.optimizers.SGD(0.1, use_ema=True)
    optimizer.build(model.trainable_variables)
    for average, other in zip(optimizer._model_variables_moving_average, source.trainable_variables, strict=True):
        average.assign(other)
    optimizer.finalize_variable_values(model.trainable_variables)


def by_optimizer(model: keras.Model, source: keras.Model, folder: Path) -> None:
    pairs = list(zip(model.trainable_variables, source.trainable_variables, strict=True))
    keras.optimizers.SGD(1.0).apply([weight.value - other.value for weight, other in pairs], [one for one, _ in pairs])


Way = Callable[[keras.Model, keras.Model, Path], None]

WAYS = [
    by_set_weights,
    by_assign,
    by_assign_of_the_tensorflow_variables,
    by_weights_file,
    by_legacy_file,
    by_checkpoint,
    by_average,
    by_optimizer,
]

every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)

# One way that Keras does not see and one by an operation of TensorFlow. All of them end in the same variable.
WITH_XLA = (by_assign_of_the_tensorflow_variables, by_checkpoint)
every_way_compiled = pytest.mark.parametrize(
    ("way", "jit_compile"),
    [pytest.param(way, False, id=f"plain-{way.__name__}") for way in WAYS]
    + [
        pytest.param(way, True, id=f"XLA-{way.__name__}", marks=[] if way in WITH_XLA else [pytest.mark.slow])
        for way in WAYS
    ],
)


@every_way
def test_an_eager_call_follows(way: Way, tmp_path: Path):
    model = make()
    model(IMAGES)
    way(model, moved(), tmp_path)
    np.testing.assert_allclose(model(IMAGES), expected(), rtol=1e-6)
    assert model.layers[0].crops == make(tuple(NEW)).layers[0].crops


@every_way_compiled
def test_what_is_traced_afterwards_follows(way: Way, jit_compile: bool, tmp_path: Path):
    model = make()
    way(model, moved(), tmp_path)
    model.compile(jit_compile=jit_compile)
    np.testing.assert_allclose(model.predict(IMAGES, verbose=0), expected(), rtol=1e-5)


@every_way_compiled
def test_what_was_traced_before_refuses_until_it_is_traced_anew(way: Way, jit_compile: bool, tmp_path: Path):
    model = make()
    model.compile(jit_compile=jit_compile)
    model.predict(IMAGES, verbose=0)
    way(model, moved(), tmp_path)
    with told(jit_compile):
        model.predict(IMAGES, verbose=0)
    assert refresh_crops(model)
    np.testing.assert_allclose(model.predict(IMAGES, verbose=0), expected(), rtol=1e-5)
    assert not refresh_crops(model)


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_what_xla_evaluates_warns_until_it_is_traced_anew(steps_per_execution: int):
    """`fit` evaluates too, and must not end a training whose user has no `CropRefresh`."""
    targets = np.zeros((4, 2), "float32")
    model = make()
    model.compile(loss="mse", jit_compile=True, steps_per_execution=steps_per_execution)
    model.evaluate(IMAGES, targets, batch_size=1, verbose=0)
    by_assign(model, moved(), Path())
    with pytest.warns(UserWarning, match=CHANGED):
        model.evaluate(IMAGES, targets, batch_size=1, verbose=0)
    assert refresh_crops(model)
    right = float(np.mean(np.square(expected())))
    assert model.evaluate(IMAGES, targets, batch_size=1, verbose=0) == pytest.approx(right, rel=1e-5)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["plain", "XLA"])
def test_a_function_of_ones_own_refuses_when_strides_have_changed(jit_compile: bool):
    model = make()
    outputs = tf.function(lambda images: model(images), jit_compile=jit_compile)
    outputs(IMAGES)
    by_assign(model, moved(), Path())
    with told(jit_compile):
        outputs(IMAGES)
    assert refresh_crops(model)
    again = tf.function(lambda images: model(images), jit_compile=jit_compile)
    np.testing.assert_allclose(again(IMAGES), expected(), rtol=1e-5)


def test_strides_that_ask_for_the_same_size_need_no_new_trace():
    model = make(2.1)
    model.predict(IMAGES, verbose=0)
    model.layers[0].strides.assign([2.11, 2.09])
    np.testing.assert_allclose(model.predict(IMAGES, verbose=0), make((2.11, 2.09))(IMAGES), rtol=1e-6)


def random_model(random: np.random.Generator, strides: list[tuple[float, float]]) -> keras.Model:
    """One or two poolings with convolutions between, of random options. A generator of the same seed makes the same."""
    layers: list[keras.layers.Layer] = [keras.Input(IMAGES.shape[1:])]
    keras.utils.set_random_seed(int(random.integers(1000)))
    for pair in strides:
        layers.append(keras.layers.Conv2D(int(random.integers(2, 5)), 3, padding="same"))
        options = {
            "smoothness_factor": float(random.choice([0.5, 2.0, 4.0])),
            "mask": str(random.choice(["released", "symmetric"])),
            "norm": str(random.choice(["forward", "backward"])),
            "method": str(random.choice(["auto", "fft"])),
        }
        layers.append(DiffStride(pair, static_crop=True, **options))
    return keras.Sequential([*layers, keras.layers.GlobalMaxPooling2D()])


def check_random_model(seed: int, folder: Path) -> None:
    """Strides move into a model by a random way. What it computes is that of a model built at them, or it is told."""
    random = np.random.default_rng(seed)
    count, way, jit_compile, traced = random.integers(1, 3), random.choice(WAYS), bool(seed % 2), random.random() < 0.5
    start, end = ([tuple(pair) for pair in random.uniform(1.2, 3.5, (count, 2))] for _ in range(2))
    model, source = (random_model(np.random.default_rng(seed), strides) for strides in (start, end))
    model.compile(jit_compile=jit_compile)
    if traced:
        model.predict(IMAGES, verbose=0)
    way(model, source, folder)
    # An optimizer keeps strides within limits that follow from the sizes at which the model was built.
    arrived = [tuple(layer.strides.numpy().tolist()) for layer in model.layers[1::2]]
    other = random_model(np.random.default_rng(seed), arrived)
    other.set_weights(model.get_weights())
    right = other(IMAGES)
    same_sizes = [layer.crops for layer in model.layers[1::2]] == [
        layer.crops for layer in random_model(np.random.default_rng(seed), start).layers[1::2]
    ]
    if traced and not same_sizes:
        with told(jit_compile):
            model.predict(IMAGES, verbose=0)
        assert refresh_crops(model)
    np.testing.assert_allclose(model.predict(IMAGES, verbose=0), right, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(model(IMAGES), right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_strides_move_into_random_models(seed: int, tmp_path: Path):
    check_random_model(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 220))
def test_strides_move_into_many_random_models(seed: int, tmp_path: Path):
    check_random_model(seed, tmp_path)


def test_a_clone_follows():
    model = moved()
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(clone.predict(IMAGES, verbose=0), expected(), rtol=1e-6)


def test_signals_follow():
    signals = IMAGES.reshape(4, -1, 2)
    model = keras.Sequential([keras.Input(signals.shape[1:]), DiffStride1D(2.0, static_crop=True)])
    model(signals)
    model.layers[0].strides.assign([3.3])
    right = keras.Sequential([keras.Input(signals.shape[1:]), DiffStride1D(3.3, static_crop=True)])
    np.testing.assert_array_equal(model(signals), right(signals))


@pytest.mark.slow
def test_a_stopped_fit_gives_its_best_figures_again_to_the_bit():
    """EarlyStopping brings back the strides of the best epoch, which asked for another size than the last ones."""
    random = np.random.default_rng(1)
    images = random.normal(size=(64, 24, 20, 2)).astype("float32")
    labels = random.integers(0, 3, 64)
    pooling = DiffStride((2.0, 2.0), smoothness_factor=2.0)
    model = keras.Sequential(
        [
            keras.Input(images.shape[1:]),
            keras.layers.Conv2D(4, 3, padding="same"),
            pooling,
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.1), "sparse_categorical_crossentropy", jit_compile=True)
    sizes = []
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: sizes.append(pooling.strides.numpy()))
    stop = keras.callbacks.EarlyStopping("val_loss", patience=3, restore_best_weights=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history = model.fit(
            images[:32],
            labels[:32],
            batch_size=16,
            epochs=12,
            verbose=0,
            validation_data=(images[32:], labels[32:]),
            callbacks=[CropRefresh(), note, stop],
        ).history["val_loss"]
    best = int(np.argmin(history))
    assert np.abs(sizes[best] - sizes[-1]).max() > 0.1
    np.testing.assert_array_equal(pooling.strides, sizes[best])
    assert model.evaluate(images[32:], labels[32:], verbose=0) == history[best]


def test_a_fit_that_ended_by_an_error_leaves_no_crop_behind():
    class Stop(Exception):
        pass

    def stop(batch: int, logs: Any) -> None:
        by_assign(model, moved(), Path())
        raise Stop

    model = make()
    model.compile("sgd", "mse")
    callbacks = [CropRefresh(), keras.callbacks.LambdaCallback(on_train_batch_end=stop)]
    with pytest.raises(Stop):
        model.fit(IMAGES, np.zeros((4, 2)), verbose=0, callbacks=callbacks)
    np.testing.assert_allclose(model(IMAGES), expected(), rtol=1e-6)
    np.testing.assert_allclose(model.predict(IMAGES, verbose=0), expected(), rtol=1e-6)
    model.fit(IMAGES, np.zeros((4, 2)), verbose=0, callbacks=[CropRefresh()])


def test_a_model_of_unknown_sizes_is_refreshed_by_the_sizes_met():
    class Subclassed(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.pooling = DiffStride(2.0, static_crop=True)

        def call(self, inputs: tf.Tensor) -> tf.Tensor:
            return self.pooling(inputs)

    model = Subclassed()
    model(IMAGES)
    model.pooling.strides.assign(NEW)
    assert refresh_crops(model)
    assert not refresh_crops(model)
    assert model(IMAGES).shape[1:3] == DiffStride(NEW)(IMAGES).shape[1:3]


@pytest.mark.parametrize("jit_compile", [False, True], ids=["plain", "XLA"])
def test_a_model_of_several_inputs_trains_with_refreshes(jit_compile: bool):
    image, numbers = keras.Input((24, 20, 2), name="image"), keras.Input((5,), name="numbers", dtype="int32")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(DiffStride(2.0, static_crop=True)(image)))
    x = keras.layers.Concatenate()([x, keras.layers.Flatten()(keras.layers.Embedding(9, 2)(numbers))])
    model = keras.Model({"image": image, "numbers": numbers}, keras.layers.Dense(1)(x))
    model.compile("adam", "mse", jit_compile=jit_compile)
    inputs = {"image": IMAGES, "numbers": np.zeros((4, 5), "int32")}
    history = model.fit(inputs, np.zeros((4, 1)), epochs=2, verbose=0, callbacks=[CropRefresh()])
    assert len(history.history["loss"]) == 2
