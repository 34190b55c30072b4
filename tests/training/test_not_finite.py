"""Steps whose loss or gradients are not finite."""

from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.interrupted_runs import EPOCHS, STEPS, assert_same_run, backups_in, stopped_at, trained
from support.tiny_runs import assert_same_weights, json_of, load

from diffstride_hybrid import DiffStride
from diffstride_hybrid.data.loading import load_datasets
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.training import not_finite
from diffstride_hybrid.training import run as run_module
from diffstride_hybrid.training.loop import TrainingLoop

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("uncompiled")]

SLOW = pytest.mark.slow


@keras.saving.register_keras_serializable(package="tests")
class Overflowing(keras.layers.Layer):
    """Passes its inputs on, and infinity from the fourth training step on, or in it alone."""

    def __init__(self, last: int = 2**30, **kwargs: Any):
        super().__init__(**kwargs)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")
        self.last = last

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "last": self.last}

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training:
            return inputs
        self.calls.assign_add(1.0)
        calls = tf.convert_to_tensor(self.calls)
        return inputs * tf.cast(tf.where((calls >= 4) & (calls <= self.last), np.inf, 1.0), inputs.dtype)


@keras.saving.register_keras_serializable(package="tests")
class WithoutGradient(Overflowing):
    """Passes its inputs on, and a gradient that is not a number where the other passes infinity."""

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        roots = tf.sqrt(tf.where(tf.math.is_inf(super().call(tf.ones_like(inputs), training)), 0.0 * inputs, 1.0))
        return inputs + roots - tf.stop_gradient(roots)


def overflowing(num_output_classes: int, layer_cls: type[Overflowing] = Overflowing, **options: Any) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            keras.layers.Conv2D(4, 3, name="first"),
            DiffStride(2.0, name="learned"),
            keras.layers.BatchNormalization(name="before"),
            layer_cls(name="overflowing", **options),
            keras.layers.BatchNormalization(name="after"),
            keras.layers.GlobalAveragePooling2D(name="average"),
            keras.layers.Dense(num_output_classes, activation="softmax", name="last"),
        ],
        name="net",
    )


@pytest.mark.parametrize("steps_per_execution", [1, pytest.param(6, marks=SLOW)])
def test_a_step_that_is_not_finite_stops_the_run_and_says_where(tmp_path: Path, steps_per_execution: int):
    with pytest.raises(not_finite.NotFiniteError) as error:
        trained(tmp_path, model_cls=overflowing, steps_per_execution=steps_per_execution, backup_every=2)
    message = str(error.value)
    assert message.startswith(
        "Step 4 (step 4 of epoch 1) is not finite, first the outputs of net/overflowing (Overflowing); strides learned "
    )
    assert "train.train.on_not_finite = 'roll_back'" in message
    assert "\n" not in message
    if steps_per_execution == 1:
        assert backups_in(tmp_path) == [2]


def test_a_loss_that_overflows_in_half_precision_stops_the_run_at_once(tmp_path: Path):
    model_cls = partial(overflowing, last=4)
    with pytest.raises(not_finite.NotFiniteError, match=r"^Step 4 .* first the outputs of net/overflowing "):
        trained(tmp_path, model_cls=model_cls, dtype_policy="mixed_float16", backup_every=2)
    assert backups_in(tmp_path) == [2]


def with_an_endless_penalty(num_output_classes: int) -> keras.Model:
    model = overflowing(num_output_classes, last=0)
    dense = keras.layers.Dense(
        num_output_classes, bias_initializer=keras.initializers.Constant(1e20), bias_regularizer="l2", name="last"
    )
    return keras.Sequential([*model.layers[:-1], dense, keras.layers.Softmax()], name="net")


def test_a_loss_that_is_not_finite_stops_the_run_though_its_gradients_are(tmp_path: Path):
    with pytest.raises(not_finite.NotFiniteError, match=r"^Step 1 .* first the loss of finite outputs; "):
        trained(tmp_path, model_cls=with_an_endless_penalty)


@pytest.mark.parametrize("steps_per_execution", [*(pytest.param(count, marks=SLOW) for count in (1, 3, 4)), 6])
def test_a_gradient_that_is_not_finite_is_found_at_its_step(tmp_path: Path, steps_per_execution: int):
    model_cls = partial(overflowing, layer_cls=WithoutGradient, last=4)
    message = r"^Step 4 \(step 4 of epoch 1\) is not finite, first the gradient of net/before/beta; "
    with pytest.raises(not_finite.NotFiniteError, match=message):
        trained(tmp_path, model_cls=model_cls, steps_per_execution=steps_per_execution)


@pytest.mark.parametrize("steps_per_execution", [1, pytest.param(6, marks=SLOW)])
def test_a_gradient_that_is_only_added_up_is_found_at_its_step(tmp_path: Path, steps_per_execution: int):
    """The weights take it in two steps later."""
    model_cls = partial(overflowing, layer_cls=WithoutGradient, last=4)
    accumulating = partial(keras.optimizers.SGD, 0.01, gradient_accumulation_steps=3)
    with pytest.raises(not_finite.NotFiniteError, match=r"^Step 4 .* first the gradient of net/before/beta; "):
        trained(tmp_path, model_cls=model_cls, optimizer_cls=accumulating, steps_per_execution=steps_per_execution)


def test_a_step_that_cannot_be_repeated_stops_the_run_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def first_not_finite(*args: Any) -> str:
        raise RuntimeError("a model of the user's own\nfails here")

    monkeypatch.setattr(not_finite, "first_not_finite", first_not_finite)
    message = "first unknown, because repeating the step failed: a model of the user's own fails here; strides learned"
    with pytest.raises(not_finite.NotFiniteError, match=message):
        trained(tmp_path, model_cls=overflowing)


@SLOW
def test_the_weights_are_those_before_the_step(tmp_path: Path):
    loops: list[TrainingLoop] = []
    make_loop = run_module.make_loop
    with pytest.MonkeyPatch.context() as patch:
        # It passes the batch through the model once more, which moves moving averages.
        patch.setattr(not_finite, "first_not_finite", lambda *args: "something")
        patch.setattr(
            run_module, "make_loop", lambda *args, **options: loops.append(make_loop(*args, **options)) or loops[0]
        )
        with pytest.raises(not_finite.NotFiniteError):
            trained(tmp_path / "not_finite", model_cls=overflowing, steps_per_execution=6)
    trained(tmp_path / "three_steps", model_cls=partial(overflowing, last=0), num_epochs=1, steps_per_epoch=3)
    expected = load(tmp_path / "three_steps")
    assert_same_weights(loops[0].model, expected)


@SLOW
def test_rolling_back_leaves_the_batch_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    def poisoned(images: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.reduce_any(numbers == chosen), np.inf, images)

    datasets = load_datasets("digits", image_size=16, batch_size=64, seed=1)
    seeds = tf.random.experimental.stateless_split(tf.constant([1, 3], tf.int64), 2)
    chosen = tf.random.stateless_uniform([datasets.images_per_step, 2], seeds[0], 0, tf.int64.max, tf.int64)[0, 0]
    load_data_fn = partial(load_datasets, "digits", image_size=16, batch_size=64, augment_fn=poisoned)
    options = {"load_data_fn": load_data_fn, "backup_every": 2}
    with pytest.raises(not_finite.NotFiniteError, match=r"Step 4 .* first the images of the batch; strides "):
        trained(tmp_path / "stops", **options)

    trained(tmp_path / "rolls_back", **options, on_not_finite="roll_back")
    (warning,) = [record.getMessage() for record in caplog.records if "leaving its batch out" in record.getMessage()]
    assert "Going back to step 2" in warning
    assert json_of(tmp_path / "rolls_back" / "summary.json")["steps"] == EPOCHS * STEPS - 1

    stopped_at(9, tmp_path / "stopped", **options, on_not_finite="roll_back")
    trained(tmp_path / "stopped", **options, on_not_finite="roll_back")
    assert_same_run(tmp_path / "stopped", tmp_path / "rolls_back")


@SLOW
def test_two_batches_of_one_execution_are_left_out(tmp_path: Path):
    failing = {2, 4}
    train_steps, left_out = TrainingLoop.train_steps, []

    class Loop(TrainingLoop):
        """Takes the steps of `failing` for not finite, unless their batches are left out."""

        next_step = 0

        def start(self, first_step: int) -> None:
            super().start(first_step)
            self.next_step = first_step

        def train_steps(self, count: int) -> bool:
            steps = range(self.next_step, self.next_step + count)
            finite = next((i for i, step in enumerate(steps) if step in failing), count)
            train_steps(self, finite)
            self.next_step += finite
            return finite == count

        def leave_out_step(self) -> None:
            super().leave_out_step()
            left_out.append(self.next_step)
            self.next_step += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "TrainingLoop", Loop)
        trained(tmp_path, steps_per_execution=6, num_epochs=1, on_not_finite="roll_back")
    assert left_out == [2, 2, 4]
    assert json_of(tmp_path / "summary.json")["steps"] == STEPS - 2


@SLOW
def test_a_run_that_is_never_finite_ends(tmp_path: Path):
    with pytest.raises(not_finite.NotFiniteError, match="10 batches have been left out before"):
        trained(tmp_path, model_cls=overflowing, num_epochs=4, on_not_finite="roll_back")


def test_a_policy_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"train\.train\.on_not_finite must be 'stop' or 'roll_back', got 'hope'"):
        trained(tmp_path, on_not_finite="hope")


def test_gradients_and_weights_that_are_not_finite_are_named():
    model = overflowing(10, last=0)
    images, labels = tf.ones([2, 16, 16, 1]), tf.one_hot([0, 1], 10)
    cross_entropy = keras.losses.CategoricalCrossentropy()

    def root(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        return tf.sqrt(tf.reduce_sum(model.get_layer("last").bias ** 2))

    find = partial(not_finite.first_not_finite, model)
    assert find(cross_entropy, images, labels) == "unknown, because the step was finite when it was repeated"
    assert find(root, images, labels) == "the gradient of net/last/bias"
    assert (
        find(lambda labels, outputs: cross_entropy(labels, outputs) / 0, images, labels) == "the loss of finite outputs"
    )
    diffstride_layers(model)[0].strides.assign([np.nan, 2.0])
    assert find(cross_entropy, images, labels) == "the weights net/learned/strides"
    assert find(cross_entropy, images * np.nan, labels) == "the images of the batch"
