"""The compiled steps of training and evaluation, and the state that they change."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.common import distribution
from diffstride_hybrid.data.datasets import Datasets, Shard
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.model_tools.macs import macs

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
            for layer in diffstride_layers(model):
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
        if any(layer.crop_is_static for layer in diffstride_layers(self.model)):
            macs(self.model, self.datasets.image_shape)

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
        return tuple(tuple(sorted(layer.crops.items())) for layer in diffstride_layers(self.model))

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
