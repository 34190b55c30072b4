"""Training and evaluation as plain functions: no flags, no gin.

One explicit loop serves every distribution strategy. Steps run inside a `tf.function`, many to a call, so that Python
and the device never wait for each other within an epoch.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
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
from absl import logging

from diffstride_hybrid import callbacks as recording
from diffstride_hybrid import complexity, diagnosis, distribution, figures, model_card, stopping
from diffstride_hybrid.backups import Backups
from diffstride_hybrid.data import Datasets, Shard
from diffstride_hybrid.errors import is_whole, one_line
from diffstride_hybrid.run_folder import RunFolder

FINAL_MODEL = "final.keras"
BEST_MODEL = "best.keras"

MOST_LEFT_OUT = 10
"""How many batches whose step is not finite a run leaves out, before it takes itself for broken."""


def train(
    load_data_fn: Callable[..., Datasets],
    model_cls: Callable[..., keras.Model],
    optimizer_cls: Callable[..., keras.optimizers.Optimizer],
    loss_cls: Callable[..., keras.losses.Loss] = keras.losses.CategoricalCrossentropy,
    num_epochs: int = 200,
    steps_per_epoch: int | None = None,
    steps_per_execution: int = 8,
    dtype_policy: str = "auto",
    jit_compile: bool = False,
    crop_refresh_steps: int | None = None,
    backup_every: int | None = None,
    on_not_finite: str = "stop",
    workdir: str = "runs/latest",
    seed: int = 1,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    check_folder: Callable[[RunFolder], None] | None = None,
) -> dict[str, Any]:
    """Trains a model where `tf.distribute.get_strategy()` says, and writes and returns what came out.

    A run that was stopped goes on from its last backup when it is started again in the same folder, and ends as it
    would have ended. Where several machines train, each calls this function, and one of them writes; all must be able
    to read the folder.

    Args:
        load_data_fn: called as `load_data_fn(seed=…)`.
        model_cls: called as `model_cls(num_output_classes=…)`.
        optimizer_cls: called without arguments.
        loss_cls: called without arguments. Takes one-hot labels and the model's outputs.
        num_epochs: how many epochs to train.
        steps_per_epoch: training steps in an epoch; one pass over the training images where None.
        steps_per_execution: training steps in one call of the compiled loop, between two looks at the progress.
        dtype_policy: 'float32', 'mixed_bfloat16', 'mixed_float16' (with loss scaling), 'float64', or 'auto' for what
            `distribution.default_dtype_policy` gives.
        jit_compile: whether XLA compiles the steps. On a TPU it always does.
        crop_refresh_steps: training steps between two looks at whether the static crops of `DiffStride` still are what
            the strides ask for, rounded up to whole executions. An epoch where None. Crops are static on a TPU, with
            `jit_compile`, and where a layer has `static_crop=True`.
        backup_every: training steps between two backups within an epoch, rounded up to whole executions. Where None
            there is one at the end of each epoch alone.
        on_not_finite: what to do when the loss or a gradient is not finite: 'stop' the run, or 'roll_back' to the last
            backup and go on without the batch, up to `MOST_LEFT_OUT` times.
        workdir: folder of the run.
        seed: of initial weights, order of the data, augmentation and mixup.
        callbacks: more Keras callbacks. Those that record the run are always there.
        check_folder: called once data, model and optimiser are made, before anything in the folder is read or changed.
            It raises where the run must not go on there.

    Returns:
        What `summary.json` holds: test accuracy and loss, MACs, strides and sizes, parameters, time.

    Raises:
        ValueError: an argument is out of range, or the folder holds a finished run.
        OSError: the folder cannot be written to, another process trains there, or all its backups are damaged.
        NotFiniteError: the loss or a gradient is not finite.
        Stopped: the process got SIGTERM or SIGINT. The state is on the disk.
    """
    _check_whole("num_epochs", num_epochs)
    _check_whole("steps_per_execution", steps_per_execution)
    for name, value in (
        ("steps_per_epoch", steps_per_epoch),
        ("crop_refresh_steps", crop_refresh_steps),
        ("backup_every", backup_every),
    ):
        if value is not None:
            _check_whole(name, value)
    if on_not_finite not in ("stop", "roll_back"):
        raise ValueError(f"train.train.on_not_finite must be 'stop' or 'roll_back', got {on_not_finite!r}.")
    if not isinstance(jit_compile, bool):
        raise TypeError(f"train.train.jit_compile must be True or False, got {jit_compile!r}.")
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
    strategy = tf.distribute.get_strategy()
    advice = f"Start all of them again: training in {folder.path} goes on from its last backup."
    with (
        folder.locked(),
        stopping.noting_signals() as request,
        _global_dtype_policy(_resolved_policy(dtype_policy, strategy, folder)),
        distribution.naming_lost_workers(strategy, advice),
    ):
        datasets = load_data_fn(seed=seed)
        loop = make_loop(datasets, model_cls, optimizer_cls, loss_cls, jit_compile=jit_compile)
        steps_per_epoch = steps_per_epoch or datasets.steps_per_epoch
        loop.start(0)  # Here what augmentation is bound to is read, and so becomes part of the config.
        if check_folder is not None:
            check_folder(folder)
        run = _Run(loop, folder, num_epochs, steps_per_epoch, steps_per_execution, backup_every, on_not_finite, request)
        run.resume()
        own = [recording.CropRefresh(crop_refresh_steps or steps_per_epoch, input_shape=datasets.image_shape)]
        if folder.writes:
            own += [
                recording.MetricsLog(folder, datasets.image_shape),
                recording.StrideLog(folder, datasets.image_shape),
            ]
        listeners = keras.callbacks.CallbackList(
            [*callbacks, *own], model=loop.model, epochs=num_epochs, steps=steps_per_epoch
        )
        listeners.on_train_begin()
        folder.write_json("run.json", _run_record(loop, seed))
        request.can_wait = True
        run.train(listeners)
        listeners.on_train_end()
        folder.write_model(FINAL_MODEL, loop.model)
        summary = _summary(loop, num_epochs, run.progress)
        if folder.writes:
            figures.write_figures(folder)
            model_card.write_model_card(folder, summary)
        folder.write_json("summary.json", summary)
        # The others must not leave while the chief writes: it would take them for dead.
        distribution.wait_for_all_workers(strategy)
        return summary


def make_loop(
    datasets: Datasets,
    model_cls: Callable[..., keras.Model],
    optimizer_cls: Callable[..., keras.optimizers.Optimizer],
    loss_cls: Callable[..., keras.losses.Loss],
    jit_compile: bool = False,
) -> TrainingLoop:
    """Builds a model and its optimiser under the current strategy and dtype policy, and the loop that trains them.

    Args:
        datasets: what to train on.
        model_cls: see `train`.
        optimizer_cls: see `train`.
        loss_cls: see `train`.
        jit_compile: see `train`.

    Returns:
        The loop.

    Raises:
        ValueError: the loss does not take what the model gives, its smoothing of the labels is out of range, or a layer
            or the strategy cannot be compiled.
    """
    strategy = tf.distribute.get_strategy()
    with strategy.scope():
        model = model_cls(num_output_classes=datasets.num_classes)
        model.build((None, *datasets.image_shape))
        optimizer = optimizer_cls()
        if model.compute_dtype == "float16":
            optimizer = distribution.LossScaleOptimizer(optimizer)
        optimizer.build(model.trainable_variables)
        loss = loss_cls()
    _check_loss(loss, model)
    return TrainingLoop(model, optimizer, loss, datasets, strategy, jit_compile)


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


def _repeat(count: tf.Tensor, step: Callable[[], None]) -> None:
    """Runs a step `count` times within a graph."""

    def body(done: tf.Tensor) -> tuple[tf.Tensor]:
        step()
        return (done + 1,)

    tf.while_loop(lambda done: done < count, body, [tf.constant(0)])


def _metrics() -> dict[str, keras.metrics.Metric]:
    return {"loss": keras.metrics.Mean(), "accuracy": keras.metrics.CategoricalAccuracy()}


class TrainingLoop:
    """The steps of training and evaluation, compiled, and the state that they change.

    Args:
        model: a built model.
        optimizer: a built optimiser, or None where the loop only evaluates.
        loss: takes one-hot labels and the model's outputs.
        datasets: what to train and evaluate on.
        strategy: where to run.
        jit_compile: whether XLA compiles the steps.

    Raises:
        ValueError: a batch cannot be split evenly over the replicas, or `jit_compile` is not possible with them.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer | None,
        loss: keras.losses.Loss,
        datasets: Datasets,
        strategy: tf.distribute.Strategy,
        jit_compile: bool = False,
    ):
        replicas, on_tpu = strategy.num_replicas_in_sync, distribution.is_tpu(strategy)
        if datasets.batch_size % replicas:
            raise ValueError(
                f"data.load_datasets.batch_size must be a multiple of the {replicas} replicas, got "
                f"{datasets.batch_size}."
            )
        if jit_compile and replicas > 1 and not on_tpu and not tf.config.list_physical_devices("GPU"):
            raise ValueError(
                f"train.train.jit_compile = True needs one replica, or GPUs, or a TPU: TensorFlow cannot add up the "
                f"gradients of {replicas} CPUs within compiled code."
            )
        if replicas > 1 and model.compute_dtype == "float64":
            raise ValueError(
                "train.train.dtype_policy = 'float64' needs one replica: strides stay float32, and TensorFlow adds up "
                "the gradients of replicas in one precision only."
            )
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        clips = [name for name in ("clipnorm", "global_clipnorm", "clipvalue") if getattr(inner, name, None)]
        if replicas > 1 and clips:
            raise ValueError(
                f"{clips[0]} needs one replica: Keras would clip the gradients of each of the {replicas} by themselves."
            )
        self.model = model
        self.optimizer = optimizer
        self.datasets = datasets
        self._loss = loss
        self.strategy = strategy
        self.jit_compile = jit_compile or on_tpu
        if self.jit_compile:
            for layer in complexity.diffstride_layers(model):
                layer.fix_crop()
        self.settle_crops()
        with strategy.scope():
            self._metrics, self._evaluation_metrics = _metrics(), _metrics()
            # Of the current execution, up to the first that was not finite.
            self._finite_steps, self._all_finite = (
                tf.Variable(value, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA, name=name)
                for name, value in (("finite_steps", 0), ("all_finite", True))
            )
        self.finite_steps = 0  # Of the last call of `train_steps`, before the first that was not finite.
        self._traces = 0
        self._next_step = 0
        self._train_iterator: Iterator[Any] | None = None
        self._evaluation_batches: dict[str, Any] = {}

    @property
    def retraces(self) -> int:
        """How often the training step was traced again, because a static crop had changed."""
        return max(0, self._traces - 1)

    def start(self, first_step: int) -> None:
        """Sets the training data to the batch of a step, counted over all epochs."""
        self._next_step = first_step
        self._train_iterator = iter(self._distributed(functools.partial(self.datasets.train, first_step)))

    def train_steps(self, count: int) -> bool:
        """Runs training steps; `results` has their loss and accuracy.

        Returns:
            Whether all was finite. Where not, `finite_steps` says how many steps were before the first that was not,
            and weights, optimiser and metrics are those after them: as from before the call, and these steps again.
        """
        first, state = self._next_step, [tf.convert_to_tensor(variable.value) for variable in self._state()]
        self.finite_steps = self._run_steps(count)
        if self.finite_steps == count and self._weights_are_finite():
            return True
        # A gradient that is not finite shows in the weights after it, or in the loss of the next step. To look at all
        # gradients of every step would cost a tenth of it on a TPU, as its compiler estimates.
        self.finite_steps = min(self.finite_steps, count - 1)
        while True:
            for variable, value in zip(self._state(), state, strict=True):
                variable.assign(value)
            self.start(first)
            self._run_steps(self.finite_steps)
            if self.finite_steps == 0 or self._weights_are_finite():
                return False
            self.finite_steps -= 1

    def _run_steps(self, count: int) -> int:
        """Runs training steps and returns how many had a finite loss before the first that had not."""
        self._finite_steps.assign(0)
        self._all_finite.assign(True)
        with self.datasets.naming_damage():
            self._train_steps(self._train_iterator, tf.constant(count), self._crops())
        self._next_step += count
        return int(self._finite_steps.numpy())

    def _weights_are_finite(self) -> bool:
        weights = self.model.trainable_variables
        return bool(tf.reduce_all([tf.reduce_all(tf.math.is_finite(weight.value)) for weight in weights]))

    def _state(self) -> list[keras.Variable]:
        return [*self.model.variables, *self.optimizer.variables, *self._metric_variables()]

    def metric_state(self) -> list[float]:
        """What loss and accuracy of the training steps since the last reset are made of."""
        return [float(variable.numpy()) for variable in self._metric_variables()]

    def set_metric_state(self, state: Sequence[float]) -> None:
        """Goes on with what `metric_state` gave."""
        for variable, value in zip(self._metric_variables(), state, strict=True):
            variable.assign(value)

    def _metric_variables(self) -> list[keras.Variable]:
        return [variable for metric in self._metrics.values() for variable in metric.variables]

    def leave_out_step(self) -> None:
        """Goes past the batch of the next step."""
        next(self._train_iterator)
        self._next_step += 1

    def batch(self, step: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The images and labels of a training step, counted over all epochs."""
        return next(iter(self.datasets.train(step)))

    def evaluate(
        self, split: str, steps_per_execution: int | None = None, after_execution: Callable[[], None] | None = None
    ) -> dict[str, float]:
        """Loss and accuracy on a whole split.

        Args:
            split: 'train', 'validation' or 'test'.
            steps_per_execution: steps between two calls of `after_execution`, all where None.
            after_execution: called now and then.

        Returns:
            `loss` and `accuracy`.
        """
        if split not in self._evaluation_batches:
            # Endless, so that TensorFlow need not ask all machines in each step whether they have data left.
            self._evaluation_batches[split] = self._distributed(
                lambda shard: self.datasets.evaluation(split, shard).repeat()
            )
        steps, batches = self.datasets.evaluation_steps(split), iter(self._evaluation_batches[split])
        _reset(self._evaluation_metrics)
        for first in range(0, steps, steps_per_execution or steps):
            count = min(steps_per_execution or steps, steps - first)
            with self.datasets.naming_damage():
                self._evaluation_steps(batches, tf.constant(count), self._crops())
            if after_execution is not None:
                after_execution()
        return _values(self._evaluation_metrics)

    def settle_crops(self) -> None:
        """Has static crops met all their sizes before a step is traced, as a replica cannot read the strides."""
        if any(layer.crop_is_static for layer in complexity.diffstride_layers(self.model)):
            complexity.macs(self.model, self.datasets.image_shape)

    def _distributed(self, batches_of: Callable[[Shard], tf.data.Dataset]) -> Any:
        """The batches of every machine and replica, each of which has an equal share."""

        def batches_of_worker(context: tf.distribute.InputContext) -> tf.data.Dataset:
            shard = Shard(context.input_pipeline_id, context.num_input_pipelines)
            batches = batches_of(shard=shard)
            if context.num_input_pipelines == context.num_replicas_in_sync:
                return batches
            size = context.get_per_replica_batch_size(self.datasets.batch_size)
            return batches.rebatch(size, drop_remainder=True)

        return self.strategy.distribute_datasets_from_function(batches_of_worker)

    def _crops(self) -> tuple[Any, ...]:
        """What, beside shapes, a traced step depends on."""
        return tuple(tuple(sorted(layer.crops.items())) for layer in complexity.diffstride_layers(self.model))

    def results(self, reset: bool = True) -> dict[str, float]:
        """Loss and accuracy of the training steps, means since the last reset."""
        results = _values(self._metrics)
        if reset:
            _reset(self._metrics)
        return results

    @_compiled
    def _train_steps(self, batches: Iterator[Any], count: tf.Tensor, crops: tuple[Any, ...]) -> None:
        del crops  # TensorFlow traces anew where they differ.
        self._traces += 1
        step = self.compiled(self.train_step)
        _repeat(count, lambda: self.strategy.run(step, next(batches)))

    @_compiled
    def _evaluation_steps(self, batches: Iterator[Any], count: tf.Tensor, crops: tuple[Any, ...]) -> None:
        del crops
        step = self.compiled(self.evaluation_step)
        _repeat(count, lambda: self.strategy.run(step, next(batches)))

    def compiled(self, step: Callable[..., None]) -> Callable[..., None]:
        """A replica's step, compiled by XLA where this loop does so. It is good for the present crops."""
        if not self.jit_compile or distribution.is_tpu(self.strategy):
            return step
        return tf.function(step, autograph=False, jit_compile=True)

    def train_step(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        """What one replica computes in a training step: forward, backward, optimiser and metrics."""
        with tf.GradientTape() as tape:
            outputs = self.model(images, training=True)
            loss = self._loss(labels, outputs)
            penalties = self._penalties(loss.dtype)
            # Gradients are added up over the replicas. Keras has divided the loss by their number, not the penalties.
            total = loss + penalties / self.strategy.num_replicas_in_sync
            scaled_loss = self.optimizer.scale_loss(total)
        variables = self.model.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(scaled_loss, variables), variables))
        finite = self._all_finite & distribution.on_all_replicas(tf.math.is_finite(total))
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            # It leaves a step out where gradients overflow, and halves its scale. Below 1 it is not the scale's doing.
            finite &= tf.convert_to_tensor(self.optimizer.dynamic_scale) >= 1.0
        self._all_finite.assign(finite)
        self._finite_steps.assign_add(tf.cast(finite, tf.int32))
        self._update_metrics(self._metrics, loss, penalties, labels, outputs, tf.ones_like(labels[:, 0]))

    def total_loss(self, labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """The loss with the regularisers."""
        loss = self._loss(labels, outputs)
        return loss + self._penalties(loss.dtype)

    def evaluation_step(self, images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> None:
        """What one replica computes in a step of evaluation."""
        outputs = self.model(images, training=False)
        # Keras divides by the size of the batch, in which images of weight 0 count as well.
        share = tf.reduce_sum(weights) / tf.cast(tf.size(weights), weights.dtype)
        loss = self._loss(labels, outputs, sample_weight=tf.math.divide_no_nan(weights, share))
        penalties = self._penalties(loss.dtype)
        self._update_metrics(self._evaluation_metrics, loss, penalties, labels, outputs, weights)

    def _penalties(self, dtype: tf.DType) -> tf.Tensor:
        """The regularisers, which do not depend on the images."""
        return tf.add_n([tf.zeros([], dtype), *(tf.cast(penalty, dtype) for penalty in self.model.losses)])

    def _update_metrics(
        self,
        metrics: dict[str, keras.metrics.Metric],
        loss: tf.Tensor,
        penalties: tf.Tensor,
        labels: tf.Tensor,
        outputs: tf.Tensor,
        weights: tf.Tensor,
    ) -> None:
        loss = loss * self.strategy.num_replicas_in_sync + penalties
        metrics["loss"].update_state(loss, sample_weight=tf.reduce_sum(weights))
        metrics["accuracy"].update_state(labels, outputs, sample_weight=weights)


def _values(metrics: dict[str, keras.metrics.Metric]) -> dict[str, float]:
    return {name: float(metric.result()) for name, metric in metrics.items()}


def _reset(metrics: dict[str, keras.metrics.Metric]) -> None:
    for metric in metrics.values():
        metric.reset_state()


class _Progress(tf.train.experimental.PythonState):
    """How far a run has come, as its backup holds it beside the variables: numbers, and the model's static crops.

    Attributes:
        epochs_done: whole epochs, with their validation and their rows.
        steps_done: of the epoch after those.
        epoch_seconds: spent on these steps.
        best_accuracy: on the validation images.
        training_seconds: of all sittings, up to the last `tick`.
        metrics: what the loss and accuracy of the epoch are made of so far, at the last `note_metrics`.
        left_out: steps, counted over all epochs, whose batches are not trained on.
    """

    def __init__(self, loop: TrainingLoop):
        super().__init__()
        self.epochs_done = 0
        self.steps_done = 0
        self.epoch_seconds = 0.0
        self.best_accuracy: float | None = None
        self.training_seconds = 0.0
        self.metrics: list[float] = []
        self.left_out: list[int] = []
        self._loop = loop
        self._retraces_before = 0
        self._ticked = time.perf_counter()

    @property
    def retraces(self) -> int:
        """Of all sittings."""
        return self._retraces_before + self._loop.retraces

    def tick(self) -> None:
        """Counts the time since the last tick as training."""
        now = time.perf_counter()
        self.training_seconds += now - self._ticked
        self._ticked = now

    def note_metrics(self) -> None:
        """Reads the metrics, which with several workers all of them must do together."""
        self.metrics = self._loop.metric_state() if self.steps_done else []

    def serialize(self) -> str:
        layers = complexity.diffstride_layers(self._loop.model)
        state = {
            "epochs_done": self.epochs_done,
            "steps_done": self.steps_done,
            "epoch_seconds": self.epoch_seconds,
            "best_accuracy": self.best_accuracy,
            "training_seconds": self.training_seconds,
            "metrics": self.metrics,
            "left_out": self.left_out,
            "retraces": self.retraces,
            "crops": [list(layer.crops.items()) for layer in layers],
        }
        return json.dumps(state)

    def deserialize(self, string_value: str) -> None:
        state = json.loads(string_value)
        for name in ("epochs_done", "steps_done", "epoch_seconds", "best_accuracy", "training_seconds", "metrics"):
            setattr(self, name, state[name])
        self._loop.results()
        if self.metrics:
            self._loop.set_metric_state(self.metrics)
        self.left_out = sorted({*self.left_out, *state["left_out"]})
        self._retraces_before = state["retraces"] - self._loop.retraces
        for layer, crops in zip(complexity.diffstride_layers(self._loop.model), state["crops"]):
            if layer.crop_is_static:
                layer.crops = {tuple(size): tuple(kept) for size, kept in crops}
        self._loop.settle_crops()


class _Run:
    """One sitting of a run: epochs, backups within and after them, and what to do when something comes between.

    Args:
        loop: what trains.
        folder: of the run.
        num_epochs: see `train`.
        steps_per_epoch: see `train`.
        steps_per_execution: see `train`.
        backup_every: see `train`.
        on_not_finite: see `train`.
        request: whether the process was asked to end.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        folder: RunFolder,
        num_epochs: int,
        steps_per_epoch: int,
        steps_per_execution: int,
        backup_every: int | None,
        on_not_finite: str,
        request: stopping.StopRequest,
    ):
        self.progress = _Progress(loop)
        self._loop = loop
        self._folder = folder
        self._num_epochs = num_epochs
        self._steps_per_epoch = steps_per_epoch
        self._steps_per_execution = steps_per_execution
        self._backup_every = backup_every
        self._rolls_back = on_not_finite == "roll_back"
        self._request = request
        # Variables are listed one by one: `tf.train.Checkpoint` does not find all of those of nested Keras models.
        state = [*loop.model.variables, *loop.optimizer.variables]
        checkpoint = tf.train.Checkpoint(variables=[variable.value for variable in state], progress=self.progress)
        self._backups = Backups(folder.backup, checkpoint)

    @property
    def step(self) -> int:
        """The next step, counted over all epochs."""
        return self.progress.epochs_done * self._steps_per_epoch + self.progress.steps_done

    def resume(self) -> None:
        """Goes on from the last backup, where there is one."""
        if self._folder.writes:
            self._folder.tidy()
            self._backups.tidy()
        restored = self._backups.restore()
        if self._folder.writes:
            for name in ("metrics.csv", "strides.csv"):
                self._folder.check_epoch_rows(name, self.progress.epochs_done)
        if restored is None:
            if self._rolls_back:
                self._save()  # What to go back to in the first epoch.
        elif self._folder.writes:
            within = f" and {self.progress.steps_done:,} steps" if self.progress.steps_done else ""
            print(f"resuming {self._folder.path} after epoch {self.progress.epochs_done}{within}", flush=True)
        _check_workers_agree(self._loop, self.step)
        if self.step:
            self._loop.start(self.step)

    def train(self, listeners: keras.callbacks.CallbackList) -> None:
        """Trains all epochs that are left."""
        progress = self.progress
        progress.tick()
        while progress.epochs_done < self._num_epochs:
            epoch = progress.epochs_done
            listeners.on_epoch_begin(epoch)
            self._train_epoch(listeners)
            logs = self._training_logs()
            if self._loop.datasets.splits["validation"].size:
                validation = self._loop.evaluate("validation", self._steps_per_execution, self._leave_if_asked)
                logs |= {f"val_{name}": value for name, value in validation.items()}
                if progress.best_accuracy is None or logs["val_accuracy"] > progress.best_accuracy:
                    progress.best_accuracy = logs["val_accuracy"]
                    self._folder.write_model(BEST_MODEL, self._loop.model)
            listeners.on_epoch_end(epoch, logs)
            self._loop.results()
            progress.epochs_done, progress.steps_done, progress.epoch_seconds = epoch + 1, 0, 0.0
            self._save()
            if self._folder.writes:
                print(_epoch_line(epoch + 1, self._num_epochs, logs), flush=True)
            if progress.epochs_done < self._num_epochs:
                self._leave_if_asked(saved=True)

    def _train_epoch(self, listeners: keras.callbacks.CallbackList) -> None:
        progress = self.progress
        bar = tqdm.tqdm(
            total=self._steps_per_epoch,
            initial=progress.steps_done,
            desc=f"epoch {progress.epochs_done + 1}/{self._num_epochs}",
            unit="step",
            leave=False,
            disable=not (self._folder.writes and sys.stderr.isatty()),
        )
        with bar:
            while progress.steps_done < self._steps_per_epoch:
                began, first, step = time.perf_counter(), progress.steps_done, self.step
                count = min(self._steps_per_execution, self._steps_per_epoch - first)
                listeners.on_train_batch_begin(first)
                failed = self._train_steps(step, count)
                if failed is not None:
                    self._not_finite(failed)
                    bar.reset()
                    bar.update(progress.steps_done)
                    continue
                progress.steps_done += count
                progress.epoch_seconds += time.perf_counter() - began
                listeners.on_train_batch_end(progress.steps_done - 1)
                bar.update(count)
                self._leave_if_asked()
                every = self._backup_every
                # At the end of the epoch there is one anyway.
                if (
                    every is not None
                    and self.step // every > step // every
                    and progress.steps_done < self._steps_per_epoch
                ):
                    self._save()

    def _train_steps(self, step: int, count: int) -> int | None:
        """Trains some steps but for those left out; returns the first that was not finite, None where all were."""
        last = step + count
        for left_out in (*(other for other in self.progress.left_out if step <= other < last), last):
            if left_out > step and not self._loop.train_steps(left_out - step):
                return step + self._loop.finite_steps
            if left_out < last:
                self._loop.leave_out_step()
            step = left_out + 1
        return None

    def _training_logs(self) -> dict[str, float]:
        loop, seconds = self._loop, self.progress.epoch_seconds
        return {
            **loop.results(reset=False),
            "step": int(keras.ops.convert_to_numpy(loop.optimizer.iterations)),
            "learning_rate": keras.ops.convert_to_numpy(loop.optimizer.learning_rate).item(),
            "seconds": round(seconds, 3),
            "images_per_second": round(self._steps_per_epoch * loop.datasets.images_per_step / seconds, 1),
        }

    def _not_finite(self, step: int) -> None:
        """Says what happened, and ends the run or goes back to the last backup without the step's batch."""
        loop = self._loop
        images, labels = loop.batch(step)
        epoch, within = divmod(step, self._steps_per_epoch)
        try:
            first = diagnosis.first_not_finite(loop.model, loop.total_loss, images, labels)
        except Exception as error:  # Whatever a model of the user's own does, it must not keep the run from going back.
            first = f"what cannot be told as the step cannot be repeated: {one_line(error)}"
        happened = (
            f"Step {step + 1:,} (step {within + 1:,} of epoch {epoch + 1}) is not finite, first {first}; "
            f"{diagnosis.strides_in_words(loop.model)}."
        )
        if not self._rolls_back:
            raise diagnosis.NotFiniteError(
                f"{happened} {self._folder.backup} has the state before, if there is one. Lower the learning rate, or "
                "bind train.train.on_not_finite = 'roll_back' to go back to it and leave such batches out."
            )
        if len(self.progress.left_out) == MOST_LEFT_OUT:
            raise diagnosis.NotFiniteError(f"{happened} {MOST_LEFT_OUT} batches have been left out before.")
        self.progress.left_out = sorted([*self.progress.left_out, step])
        self._backups.restore()
        loop.start(self.step)
        logging.warning("%s Going back to step %d and leaving its batch out.", happened, self.step)

    def _leave_if_asked(self, saved: bool = False) -> None:
        """Ends the sitting after a signal to this process or to another worker, with its state on the disk."""
        strategy, name = self._loop.strategy, self._request.signal_name
        if not distribution.sum_over_replicas(strategy, int(name is not None)):
            return
        if not saved:
            self._save()
        distribution.wait_for_all_workers(strategy)
        raise stopping.Stopped(
            f"stopped by {name or 'a signal to another worker'} after {self.step:,} steps: start the same command "
            f"again to go on in {self._folder.path}."
        )

    def _save(self) -> None:
        self.progress.tick()
        self.progress.note_metrics()
        if self._folder.writes:
            self._backups.save(self.step)


def _check_workers_agree(loop: TrainingLoop, next_step: int) -> None:
    """Raises where not every worker found the same backup."""
    replicas = loop.strategy.num_replicas_in_sync
    if distribution.sum_over_replicas(loop.strategy, next_step) != replicas * next_step:
        raise ValueError("The workers do not find the same backup: the workdir must be one folder that all can read.")


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
        "strategy": distribution.strategy_name(loop.strategy),
        "replicas": loop.strategy.num_replicas_in_sync,
        "workers": distribution.worker_count(loop.strategy),
        "jit_compile": loop.jit_compile,
        "dtype_policy": model.dtype_policy.name,
        "parameters": model.count_params(),
        "macs": complexity.macs(model, datasets.image_shape).macs,
        "data": {
            "name": datasets.name,
            "image_shape": datasets.image_shape,
            "class_names": datasets.class_names,
            "mean": datasets.mean,
            "std": datasets.std,
            "split_sizes": {name: split.size for name, split in datasets.splits.items()},
        },
    }


def _summary(loop: TrainingLoop, num_epochs: int, progress: _Progress) -> dict[str, Any]:
    model, datasets = loop.model, loop.datasets
    test = loop.evaluate("test")
    cost = complexity.macs(model, datasets.image_shape)
    strides = complexity.strides_by_path(model)
    return {
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "best_validation_accuracy": progress.best_accuracy,
        "epochs": num_epochs,
        "steps": keras.ops.convert_to_numpy(loop.optimizer.iterations).item(),
        "training_seconds": round(progress.training_seconds, 1),
        "retraces": progress.retraces,
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
    if not is_whole(value, least=1):
        raise ValueError(f"train.train.{name} must be a whole number of at least 1, got {value!r}.")


def _check_loss(loss: keras.losses.Loss, model: keras.Model) -> None:
    """Refuses what Keras would compute nonsense of: such smoothing, and logits for probabilities or the reverse."""
    if not isinstance(loss, keras.losses.CategoricalCrossentropy):
        return
    smoothing, takes_logits = (loss.get_config()[name] for name in ("label_smoothing", "from_logits"))
    if not isinstance(smoothing, (int, float)) or not 0 <= smoothing < 1:
        raise ValueError(
            "tf.keras.losses.CategoricalCrossentropy.label_smoothing must be at least 0 and below 1, got "
            f"{smoothing!r}."
        )
    activation = getattr(model.layers[-1], "activation", None)
    if activation is None:
        return
    if takes_logits != (activation is keras.activations.linear):
        name = keras.activations.serialize(activation)
        raise ValueError(
            "resnet.Resnet.output_activation must be 'softmax', or None together with "
            f"tf.keras.losses.CategoricalCrossentropy.from_logits = True; got {name!r} and {takes_logits}."
        )


def _resolved_policy(name: str, strategy: tf.distribute.Strategy, folder: RunFolder) -> str:
    """What 'auto' stands for: what the run began with, or else what the devices compute natively."""
    allowed = ("auto", "float32", "float64", "mixed_bfloat16", "mixed_float16")
    if name not in allowed:
        raise ValueError(f"train.train.dtype_policy must be one of {', '.join(map(repr, allowed))}, got {name!r}.")
    if name != "auto":
        return name
    if folder.has_begun():
        return folder.read_json("run.json")["dtype_policy"]
    return distribution.default_dtype_policy(strategy)


@contextlib.contextmanager
def _global_dtype_policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _commit() -> str | None:
    """The commit of the checkout that the package runs from, None where it is installed."""
    package = pathlib.Path(__file__).parent
    changed = ("status", "--porcelain", "--untracked-files=no", "--", ".", "../gin_configs")
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(package), *command], capture_output=True, text=True, check=True).stdout
            for command in (("rev-parse", "HEAD"), changed)
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head.strip()}-dirty" if changes.strip() else head.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
