"""Training and evaluation as plain functions: no flags, no gin.

One explicit loop serves every distribution strategy. Steps run inside a `tf.function`, many to a call, so that Python
and the device never wait for each other within an epoch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import math
import pathlib
import platform
import reprlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf
import tqdm

from diffstride_hybrid import callbacks as recording
from diffstride_hybrid import complexity, figures
from diffstride_hybrid.data import Datasets
from diffstride_hybrid.run_folder import RunFolder

FINAL_MODEL = "final.keras"
BEST_MODEL = "best.keras"


def train(
    load_data_fn: Callable[..., Datasets],
    model_cls: Callable[..., keras.Model],
    optimizer_cls: Callable[..., keras.optimizers.Optimizer],
    loss_cls: Callable[..., keras.losses.Loss] = keras.losses.CategoricalCrossentropy,
    num_epochs: int = 200,
    steps_per_epoch: int | None = None,
    steps_per_execution: int = 8,
    dtype_policy: str = "float32",
    workdir: str = "runs/latest",
    seed: int = 1,
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> dict[str, Any]:
    """Trains a model, and writes and returns what came out.

    A run that was stopped goes on from its last whole epoch when it is started again in the same folder.

    Args:
        load_data_fn: called as `load_data_fn(seed=…)`.
        model_cls: called as `model_cls(num_output_classes=…)`.
        optimizer_cls: called without arguments.
        loss_cls: called without arguments. Takes one-hot labels and the model's outputs.
        num_epochs: how many epochs to train.
        steps_per_epoch: training steps in an epoch; one pass over the training images where None.
        steps_per_execution: training steps in one call of the compiled loop, between two looks at the progress.
        dtype_policy: 'float32', 'mixed_bfloat16', 'mixed_float16' (with loss scaling) or 'float64'.
        workdir: folder of the run.
        seed: of initial weights, order of the data, augmentation and mixup.
        callbacks: more Keras callbacks. Those that record the run are always there.

    Returns:
        What `summary.json` holds: test accuracy and loss, MACs, strides and sizes, parameters, time.

    Raises:
        ValueError: an argument is out of range, or the folder holds a finished run.
        OSError: the folder cannot be written to.
    """
    _check_whole("num_epochs", num_epochs)
    _check_whole("steps_per_execution", steps_per_execution)
    if steps_per_epoch is not None:
        _check_whole("steps_per_epoch", steps_per_epoch)
    for name, maker in (
        ("load_data_fn", load_data_fn),
        ("model_cls", model_cls),
        ("optimizer_cls", optimizer_cls),
        ("loss_cls", loss_cls),
    ):
        if not callable(maker) or isinstance(maker, keras.losses.Loss):
            raise TypeError(f"train.train.{name} must be a class or a function, got {reprlib.repr(maker)}.")
    folder = RunFolder(workdir)
    if folder.is_finished():
        raise ValueError(f"{folder.path} holds a finished run: choose another workdir, or move that one away.")

    keras.utils.set_random_seed(seed)
    with _global_dtype_policy(dtype_policy):
        datasets = load_data_fn(seed=seed)
        strategy = tf.distribute.get_strategy()
        with strategy.scope():
            model = model_cls(num_output_classes=datasets.num_classes)
            model.build((None, *datasets.image_shape))
            optimizer = optimizer_cls()
            if model.compute_dtype == "float16":
                optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
            optimizer.build(model.trainable_variables)
            loss = loss_cls()
        _check_outputs(model, loss)
        loop = TrainingLoop(model, optimizer, loss, datasets, strategy)
        return _run(loop, folder, num_epochs, steps_per_epoch, steps_per_execution, seed, callbacks)


def evaluate(model: keras.Model, loss: keras.losses.Loss, datasets: Datasets, split: str = "test") -> dict[str, float]:
    """Loss, weight decay included, and accuracy of a model on a split, every image counted once.

    Args:
        model: a built model.
        loss: takes one-hot labels and the model's outputs.
        datasets: the data set.
        split: 'train', 'validation' or 'test'.

    Returns:
        `loss` and `accuracy`.

    Raises:
        ValueError: the split has no images.
    """
    if datasets.splits[split].size == 0:
        raise ValueError(f"The {split} split of {datasets.name} has no images.")
    return TrainingLoop(model, None, loss, datasets, tf.distribute.get_strategy()).evaluate(split)


# AutoGraph would read the source files anew when a function is first called, which may be long after the start, and
# compile whatever stands there by then. Nothing here needs it.
_compiled = functools.partial(tf.function, autograph=False, reduce_retracing=True)


def _repeat(count: tf.Tensor, step: Callable[[], Any]) -> None:
    """Runs a step `count` times within a graph."""

    def body(done: tf.Tensor) -> tuple[tf.Tensor]:
        step()
        return (done + 1,)

    tf.while_loop(lambda done: done < count, body, [tf.constant(0)])


class TrainingLoop:
    """The steps of training and evaluation, compiled, and the state that they change.

    Args:
        model: a built model.
        optimizer: a built optimiser, or None where the loop only evaluates.
        loss: takes one-hot labels and the model's outputs.
        datasets: what to train and evaluate on.
        strategy: where to run.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer | None,
        loss: keras.losses.Loss,
        datasets: Datasets,
        strategy: tf.distribute.Strategy,
    ):
        self.model = model
        self.optimizer = optimizer
        self.datasets = datasets
        self._loss = loss
        self._strategy = strategy
        with strategy.scope():
            self._metrics = {"loss": keras.metrics.Mean(), "accuracy": keras.metrics.CategoricalAccuracy()}
        self._train_iterator: Iterator[Any] | None = None
        self._evaluation_batches: dict[str, Any] = {}

    def start(self, first_step: int) -> None:
        """Sets the training data to the batch of a step, counted over all epochs."""
        batches = self._strategy.experimental_distribute_dataset(self.datasets.train(first_step))
        self._train_iterator = iter(batches)

    def train_steps(self, count: int) -> None:
        """Runs training steps; `results` has their loss and accuracy."""
        self._train_steps(self._train_iterator, tf.constant(count))

    def evaluate(self, split: str) -> dict[str, float]:
        """Loss and accuracy on a whole split."""
        if split not in self._evaluation_batches:
            batches = self.datasets.evaluation(split)
            self._evaluation_batches[split] = self._strategy.experimental_distribute_dataset(batches)
        count = math.ceil(self.datasets.splits[split].size / self.datasets.batch_size)
        self.results()
        self._evaluation_steps(iter(self._evaluation_batches[split]), tf.constant(count))
        return self.results()

    def results(self) -> dict[str, float]:
        """Means since the last call."""
        results = {name: float(metric.result()) for name, metric in self._metrics.items()}
        for metric in self._metrics.values():
            metric.reset_state()
        return results

    @_compiled
    def _train_steps(self, batches: Iterator[Any], count: tf.Tensor) -> None:
        _repeat(count, lambda: self._strategy.run(self._train_step, next(batches)))

    @_compiled
    def _evaluation_steps(self, batches: Iterator[Any], count: tf.Tensor) -> None:
        _repeat(count, lambda: self._strategy.run(self._evaluation_step, next(batches)))

    def _train_step(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            outputs = self.model(images, training=True)
            loss = self._total_loss(labels, outputs)
            # The optimiser adds up the gradients of the replicas, each of which holds its share of the batch.
            scaled_loss = self.optimizer.scale_loss(loss / self._strategy.num_replicas_in_sync)
        variables = self.model.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(scaled_loss, variables), variables))
        self._update_metrics(loss, labels, outputs)

    def _evaluation_step(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        outputs = self.model(images, training=False)
        self._update_metrics(self._total_loss(labels, outputs), labels, outputs)

    def _total_loss(self, labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        loss = self._loss(labels, outputs)
        return tf.add_n([loss, *(tf.cast(penalty, loss.dtype) for penalty in self.model.losses)])

    def _update_metrics(self, loss: tf.Tensor, labels: tf.Tensor, outputs: tf.Tensor) -> None:
        self._metrics["loss"].update_state(loss, sample_weight=tf.cast(tf.shape(labels)[0], loss.dtype))
        self._metrics["accuracy"].update_state(labels, outputs)


def _run(
    loop: TrainingLoop,
    folder: RunFolder,
    num_epochs: int,
    steps_per_epoch: int | None,
    steps_per_execution: int,
    seed: int,
    callbacks: Sequence[keras.callbacks.Callback],
) -> dict[str, Any]:
    model, datasets = loop.model, loop.datasets
    steps_per_epoch = steps_per_epoch or datasets.steps_per_epoch
    epochs_done, best_accuracy = tf.Variable(0, dtype=tf.int64), tf.Variable(-1.0)
    # Variables are listed one by one: `tf.train.Checkpoint` does not find all of those of nested Keras models.
    checkpoint = tf.train.Checkpoint(
        model=[variable.value for variable in model.variables],
        optimizer=[variable.value for variable in loop.optimizer.variables],
        epochs_done=epochs_done,
        best_accuracy=best_accuracy,
    )
    manager = tf.train.CheckpointManager(checkpoint, str(folder.backup), max_to_keep=2)
    if manager.latest_checkpoint:
        _restore(checkpoint, manager.latest_checkpoint, folder)
        print(f"resuming {folder.path} after epoch {int(epochs_done)}", flush=True)
    first_epoch = int(epochs_done)

    # The caller's callbacks come first: one that refuses the folder does so before anything in it changes.
    recorders = [recording.MetricsLog(folder), recording.StrideLog(folder, datasets.image_shape)]
    listeners = keras.callbacks.CallbackList([*callbacks, *recorders], model=model, epochs=num_epochs)
    loop.start(first_step=first_epoch * steps_per_epoch)
    listeners.on_train_begin()
    folder.write_json("run.json", _run_record(loop, seed))
    began = time.perf_counter()
    for epoch in range(first_epoch, num_epochs):
        listeners.on_epoch_begin(epoch)
        logs = _train_epoch(loop, epoch, num_epochs, steps_per_epoch, steps_per_execution)
        if datasets.splits["validation"].size:
            logs |= {f"val_{name}": value for name, value in loop.evaluate("validation").items()}
            if logs["val_accuracy"] > float(best_accuracy):
                best_accuracy.assign(logs["val_accuracy"])
                folder.write_model(BEST_MODEL, model)
        listeners.on_epoch_end(epoch, logs)
        epochs_done.assign(epoch + 1)
        manager.save(epoch + 1)
        print(_epoch_line(epoch + 1, num_epochs, logs), flush=True)
    training_seconds = time.perf_counter() - began
    listeners.on_train_end()

    folder.write_model(FINAL_MODEL, model)
    figures.write_figures(folder)
    summary = _summary(loop, num_epochs, training_seconds, float(best_accuracy))
    folder.write_json("summary.json", summary)
    return summary


def _restore(checkpoint: tf.train.Checkpoint, path: str, folder: RunFolder) -> None:
    try:
        checkpoint.restore(path).assert_consumed()
    except (ValueError, AssertionError) as error:
        raise ValueError(f"{folder.path} holds the backup of another model: choose another workdir.") from error


def _train_epoch(
    loop: TrainingLoop, epoch: int, num_epochs: int, steps: int, steps_per_execution: int
) -> dict[str, float]:
    began = time.perf_counter()
    bar = tqdm.tqdm(
        total=steps, desc=f"epoch {epoch + 1}/{num_epochs}", unit="step", leave=False, disable=not sys.stderr.isatty()
    )
    with bar:
        for first in range(0, steps, steps_per_execution):
            count = min(steps_per_execution, steps - first)
            loop.train_steps(count)
            bar.update(count)
    results = loop.results()
    seconds = time.perf_counter() - began
    return {
        **results,
        "step": int(loop.optimizer.iterations),
        "learning_rate": float(loop.optimizer.learning_rate),
        "seconds": round(seconds, 3),
        "images_per_second": round(steps * loop.datasets.images_per_step / seconds, 1),
    }


def _epoch_line(epoch: int, num_epochs: int, logs: dict[str, float]) -> str:
    parts = [f"epoch {epoch}/{num_epochs}", f"loss {logs['loss']:.4f}", f"accuracy {logs['accuracy']:.2%}"]
    if "val_accuracy" in logs:
        parts.append(f"validation {logs['val_accuracy']:.2%}")
    parts += [f"{logs['images_per_second']:,.0f} images/s", f"{logs['seconds']:.1f} s"]
    return "  ".join(parts)


def _run_record(loop: TrainingLoop, seed: int) -> dict[str, Any]:
    model, datasets = loop.model, loop.datasets
    packages = ("diffstride_hybrid", "tensorflow", "keras", "numpy", "tensorflow-datasets")
    return {
        "seed": seed,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "commit": _commit(),
        "command": sys.argv,
        "devices": [device.name for device in tf.config.list_logical_devices()],
        "strategy": type(tf.distribute.get_strategy()).__name__,
        "dtype_policy": model.dtype_policy.name,
        "parameters": model.count_params(),
        "macs": complexity.macs(model, datasets.image_shape).macs,
        "data": {
            "name": datasets.name,
            "image_shape": datasets.image_shape,
            "num_classes": datasets.num_classes,
            "mean": datasets.mean,
            "std": datasets.std,
            "split_sizes": {name: split.size for name, split in datasets.splits.items()},
        },
    }


def _summary(loop: TrainingLoop, num_epochs: int, training_seconds: float, best_accuracy: float) -> dict[str, Any]:
    model, datasets = loop.model, loop.datasets
    test = loop.evaluate("test")
    cost = complexity.macs(model, datasets.image_shape)
    strides = {layer.path: layer.strides.numpy().tolist() for layer in complexity.diffstride_layers(model)}
    return {
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "best_validation_accuracy": best_accuracy if best_accuracy >= 0 else None,
        "epochs": num_epochs,
        "steps": int(loop.optimizer.iterations),
        "training_seconds": round(training_seconds, 1),
        "parameters": model.count_params(),
        "macs": cost.macs,
        "pooling_macs": cost.pooling_macs,
        "poolings": [
            {
                "layer": path.removeprefix(f"{model.name}/"),
                "strides": strides.get(path),
                "input_size": list(input_size),
                "output_size": list(output_size),
            }
            for path, (input_size, output_size) in cost.pooling_sizes().items()
        ],
    }


def _check_whole(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"train.train.{name} must be a whole number of at least 1, got {value!r}.")


def _check_outputs(model: keras.Model, loss: keras.losses.Loss) -> None:
    """Refuses probabilities where the loss takes logits, and logits where it takes probabilities."""
    activation = getattr(model.layers[-1], "activation", None)
    if activation is None or not isinstance(loss, keras.losses.CategoricalCrossentropy):
        return
    takes_logits = loss.get_config()["from_logits"]
    if takes_logits != (activation is keras.activations.linear):
        name = keras.activations.serialize(activation)
        raise ValueError(
            "resnet.Resnet.output_activation must be 'softmax', or None together with "
            f"tf.keras.losses.CategoricalCrossentropy.from_logits = True; got {name!r} and {takes_logits}."
        )


@contextlib.contextmanager
def _global_dtype_policy(name: str) -> Iterator[None]:
    allowed = ("float32", "float64", "mixed_bfloat16", "mixed_float16")
    if name not in allowed:
        raise ValueError(f"train.train.dtype_policy must be one of {', '.join(map(repr, allowed))}, got {name!r}.")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _commit() -> str | None:
    """The commit of the checkout that the package runs from, None where it is installed."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]
    try:
        head, changes = (
            subprocess.run([*git, *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no", "--", "."))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}-dirty" if changes else head


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
