"""What replicas must do together."""

import functools
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.replicas import started_loop, two_cpus

from diffstride_hybrid import DiffStride, Resnet, SpectralPooling
from diffstride_hybrid.common import distribution
from diffstride_hybrid.data.loading import load_datasets
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.models.residual import batch_norm
from diffstride_hybrid.spectral.tensorflow.engines import LEARNED_MAPS, resolve_method
from diffstride_hybrid.training.run import evaluate, train

pytestmark = pytest.mark.long


@pytest.mark.parametrize("batch_size", [8, 50, 64, 1000])
@pytest.mark.parametrize("make_strategy", [tf.distribute.get_strategy, two_cpus], ids=["one", "two"])
def test_evaluation_counts_every_image_once(make_strategy: Any, batch_size: int):
    datasets = load_datasets("digits", image_size=8, batch_size=batch_size, validation_fraction=0.25)
    assert datasets.splits["validation"].size == 359  # A prime number.
    with make_strategy().scope():
        model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")])
        model.build((None, 8, 8, 1))
        results = evaluate(model, keras.losses.CategoricalCrossentropy(), datasets, "validation")
    batches = datasets.evaluation("validation").as_numpy_iterator()
    images, labels, weights = (np.concatenate(parts) for parts in zip(*batches))
    assert weights.sum() == 359
    probabilities = model(images[weights > 0]).numpy().astype("float64")
    labels = labels[weights > 0]
    assert results["accuracy"] == pytest.approx(np.mean(probabilities.argmax(1) == labels.argmax(1)), abs=1e-6)
    assert results["loss"] == pytest.approx(np.mean(-np.log((probabilities * labels).sum(1))), rel=1e-5)


def test_a_batch_must_split_evenly_over_the_replicas():
    datasets = load_datasets("digits", image_size=8, batch_size=25)
    with two_cpus().scope():
        model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
        with pytest.raises(
            ValueError, match=r"data\.load_datasets\.batch_size must be a multiple of the 2 replicas, got 25"
        ):
            evaluate(model, keras.losses.CategoricalCrossentropy(), datasets)


def test_what_several_cpus_cannot_do_is_named(tmp_path: Path):
    small = functools.partial(Resnet, [4, 6], [1, 2], output_activation="softmax", pooling_cls=DiffStride, num_layers=1)
    options = {
        "load_data_fn": functools.partial(load_datasets, "digits", image_size=16, batch_size=64),
        "model_cls": small,
        "optimizer_cls": keras.optimizers.SGD,
        "workdir": str(tmp_path),
    }
    with two_cpus().scope():
        with pytest.raises(ValueError, match=r"train\.train\.jit_compile = True needs one replica"):
            train(**options, jit_compile=True)
        with pytest.raises(ValueError, match=r"train\.train\.dtype_policy = 'float64' needs one replica"):
            train(**options, dtype_policy="float64")
        clipped = {**options, "optimizer_cls": functools.partial(keras.optimizers.SGD, clipnorm=1.0)}
        with pytest.raises(ValueError, match=r"clipnorm needs one replica: Keras would clip .* of each of the 2"):
            train(**clipped)
        averaged = functools.partial(keras.optimizers.SGD, use_ema=True, ema_overwrite_frequency=1)
        with pytest.raises(ValueError, match=r"ema_overwrite_frequency needs one replica: .* variables of 2"):
            train(**{**options, "optimizer_cls": averaged})
        accumulating = functools.partial(keras.optimizers.SGD, gradient_accumulation_steps=2)
        with pytest.raises(ValueError, match=r"gradient_accumulation_steps needs --strategy=one_device"):
            train(**{**options, "optimizer_cls": accumulating})


@pytest.mark.parametrize("training", [True, False])
def test_a_static_crop_follows_strides_that_were_set_before_replicas_trace(training: bool):
    strategy, images = two_cpus(), tf.random.normal([2, 24, 20, 2])
    with strategy.scope():
        model = keras.Sequential([keras.Input((24, 20, 2)), DiffStride(2.0, static_crop=True)])
        model.set_weights([np.array([1.3, 3.1], "float32")])
    outputs = tf.function(lambda: strategy.run(lambda: model(images, training=training)), autograph=False)()
    for of_replica in strategy.experimental_local_results(outputs):
        np.testing.assert_allclose(of_replica, DiffStride((1.3, 3.1))(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("broken", [0, 1])
def test_no_replica_takes_a_step_where_the_gradients_of_one_overflow(broken: int):
    strategy = two_cpus()
    with strategy.scope():
        weight = keras.Variable([1.0, 2.0])
        optimizer = distribution.LossScaleOptimizer(keras.optimizers.SGD(0.5), initial_scale=8.0)
        optimizer.build([weight])

        @tf.function(autograph=False)
        def step(overflows: tf.Tensor) -> None:
            def of_replica() -> None:
                here = tf.distribute.get_replica_context().replica_id_in_sync_group
                gradient = tf.where(overflows & (here == broken), np.inf, 8.0) * tf.ones([2])
                optimizer.apply_gradients([(gradient, weight)])

            strategy.run(of_replica)

        step(tf.constant(True))
        for component in weight.value.values:
            np.testing.assert_array_equal(component.numpy(), [1.0, 2.0])
        scales = [component.numpy() for component in optimizer.dynamic_scale.value.values]
        assert scales == [4.0, 4.0]
        step(tf.constant(False))
        for component in weight.value.values:
            np.testing.assert_array_equal(component.numpy(), [1.0 - 0.5 * 4, 2.0 - 0.5 * 4])


class WithoutGradient(keras.losses.CategoricalCrossentropy):
    """The cross-entropy, whose gradient is no number in some calls."""

    calls, broken = 0, (5, 6, 7)

    def call(self, labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        type(self).calls += 1
        return super().call(labels, outputs) + (self.broken_part(outputs) if self.calls in self.broken else 0.0)

    def broken_part(self, outputs: tf.Tensor) -> tf.Tensor:
        return tf.sqrt(0.0 * outputs[:, 0])


class Infinite(WithoutGradient):
    """The cross-entropy, infinite in some calls, with the gradient that it always has."""

    def broken_part(self, outputs: tf.Tensor) -> tf.Tensor:
        return tf.fill(tf.shape(outputs)[:1], np.inf)


@pytest.mark.parametrize(
    ("loss_cls", "broken", "culprit"),
    [
        (WithoutGradient, (5, 6, 7), "the gradient of "),
        (Infinite, (5, 7), "the loss of finite outputs"),
        (Infinite, (6, 7), "the loss of finite outputs"),
    ],
)
def test_replicas_go_back_together_when_a_step_is_not_finite(
    loss_cls: type[WithoutGradient],
    broken: tuple[int, ...],
    culprit: str,
    tmp_path: Path,
    uncompiled: None,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
):
    """The third step of two replicas, which makes the calls 5 and 6 of the loss; call 7 repeats it to find out."""
    monkeypatch.setattr(loss_cls, "calls", 0)
    monkeypatch.setattr(loss_cls, "broken", broken)
    with two_cpus().scope():
        summary = train(
            functools.partial(load_datasets, "digits", image_size=16, batch_size=32),
            functools.partial(Resnet, [4, 6], [1, 2], output_activation="softmax", num_layers=1),
            functools.partial(keras.optimizers.SGD, 0.01),
            loss_cls,
            num_epochs=1,
            steps_per_epoch=4,
            steps_per_execution=1,
            on_not_finite="roll_back",
            workdir=str(tmp_path),
        )
    (warning,) = [record.getMessage() for record in caplog.records if "leaving its batch out" in record.getMessage()]
    assert warning.startswith("Step 3 (step 3 of epoch 1) is not finite, first " + culprit)
    assert summary["steps"] == 3


@pytest.mark.parametrize("axis", [-1, 1], ids=["fused", "not fused"])
def test_a_layers_moving_averages_stay_the_same_on_all_replicas(axis: int):
    strategy = two_cpus()
    with strategy.scope():
        layer = batch_norm(axis=axis)
        layer.build((None, 4, 4, 4))
        images = tf.random.normal([8, 4, 4, 4])

        @tf.function(autograph=False)
        def step() -> None:
            def of_replica() -> None:
                here = tf.distribute.get_replica_context().replica_id_in_sync_group
                layer(images + tf.cast(here, tf.float32), training=True)

            strategy.run(of_replica)

        step()
    first, second = (component.numpy() for component in layer.moving_mean.value.values)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first.mean(), 0.01 * (images.numpy().mean() + 0.5), rtol=1e-4)


def test_unsynchronised_statistics_stay_the_same_on_all_replicas():
    with two_cpus().scope():
        loop = started_loop(head_pooling_cls=SpectralPooling)
        loop.train_steps(3)
    for variable in loop.model.variables:
        first, second = (component.numpy() for component in variable.value.values)
        np.testing.assert_array_equal(first, second, err_msg=variable.path)
    assert np.abs(loop.model.get_layer("norm").moving_mean.value.values[0].numpy()).max() > 0


def test_what_a_tpu_asks_for_is_chosen_by_itself(monkeypatch: pytest.MonkeyPatch):
    """Two CPUs in the place of a TPU: nothing is compiled, but everything is decided as there."""
    monkeypatch.setattr(tf.distribute, "TPUStrategy", tf.distribute.MirroredStrategy)
    strategy = two_cpus()
    assert distribution.default_dtype_policy(strategy) == "mixed_bfloat16"
    with strategy.scope():
        loop = started_loop(pooling_cls=DiffStride)
        assert loop.jit_compile
        crops = [layer.crops for layer in diffstride_layers(loop.model)]
        assert all(crops)
        loop.train_steps(2)
        assert [layer.crops for layer in diffstride_layers(loop.model)] == crops
    assert resolve_method("auto", LEARNED_MAPS, 2048, 2048, 64) == "fft"
    with strategy.scope():
        assert resolve_method("auto", LEARNED_MAPS, 2048, 2048, 64) == "matmul"
