"""The compiled steps of training and evaluation, and the state that they change."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.common import distribution
from diffstride_hybrid.data.datasets import Datasets
from diffstride_hybrid.model_tools.crop_refresh import held_crops, refresh_crops
from diffstride_hybrid.model_tools.inspection import diffstride_layers, strides_by_path
from diffstride_hybrid.model_tools.macs import ModelCost, macs
from diffstride_hybrid.training.batches import Batches
from diffstride_hybrid.training.checks import check_replicas
from diffstride_hybrid.training.metrics import Metrics
from diffstride_hybrid.training.not_finite import FiniteSteps

# AutoGraph reads the source files when a function is first called. That may be long after the start, and the files may
# have changed by then. Nothing here needs it.
_compiled = functools.partial(tf.function, autograph=False, reduce_retracing=True)


def _repeat(count: tf.Tensor, step: Callable[[], None]) -> None:
    """Runs a step `count` times within a graph."""

    def body(done: tf.Tensor) -> tuple[tf.Tensor]:
        step()
        return (done + 1,)

    tf.while_loop(lambda done: done < count, body, [tf.constant(0)])


class TrainingLoop:
    """The steps of training and evaluation, compiled, and the state that they change.

    Args:
        model: a built model.
        optimizer: a built optimizer; None for a loop that only evaluates.
        loss: takes one-hot labels and the model's outputs.
        datasets: the data set to train and evaluate on.
        strategy: says which devices compute.
        jit_compile: whether XLA compiles the steps. On a TPU it always does.

    Attributes:
        model: the model.
        optimizer: the optimizer.
        datasets: the data set.
        strategy: the strategy.
        jit_compile: whether XLA compiles the steps.
        metrics: loss and accuracy of the training steps.
        finite_steps: of the last call of `train_steps`, the number of steps before the first one that is not finite.

    Raises:
        ValueError: a batch cannot be split evenly over the replicas, or the replicas cannot do what is asked.
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
        check_replicas(strategy, datasets.batch_size, model, optimizer, jit_compile)
        self.model = model
        self.optimizer = optimizer
        self.datasets = datasets
        self.strategy = strategy
        self.jit_compile = jit_compile or distribution.is_tpu(strategy)
        self.finite_steps = 0
        self._loss = loss
        self._batches = Batches(datasets, strategy)
        self._traces = 0
        self._counted: tuple[Any, ModelCost] | None = None
        if self.jit_compile:
            for layer in diffstride_layers(model):
                layer.fix_crop()
        for layer in diffstride_layers(model):
            layer.crop.follow()
        self.settle_crops()
        with strategy.scope():
            self.metrics, self._evaluation_metrics = Metrics(), Metrics()
            self._finite = FiniteSteps()

    @property
    def retraces(self) -> int:
        """How often the training step was traced again because a static crop had changed."""
        return max(0, self._traces - 1)

    def settle_crops(self) -> None:
        """Fixes the static crops for all sizes of maps before a step is traced: a replica cannot read the strides."""
        if any(layer.crop_is_static for layer in diffstride_layers(self.model)):
            macs(self.model, self.datasets.image_shape)

    def cost(self) -> ModelCost:
        """The model's cost at its present strides and crops.

        It is counted anew only if they have changed since the last call, as counting runs the model.
        """
        if self._counted is None or self._counted[0] != self._sizes():
            cost = macs(self.model, self.datasets.image_shape)
            self._counted = self._sizes(), cost  # Counting may fix crops.
        return self._counted[1]

    def _sizes(self) -> tuple[Any, ...]:
        """What the sizes of the maps depend on."""
        return strides_by_path(self.model), self._crops()

    def _follow_strides(self) -> None:
        """Settles crops anew that belong to other strides than the present ones and are not held."""
        moved = [layer.crop.follow() for layer in diffstride_layers(self.model)]
        if any(moved):
            self.settle_crops()

    def finalize_weights(self) -> None:
        """Gives the weights the values that the optimizer ends with: their moving averages if it has `use_ema`.

        Keras averages the weights of a step before it applies their constraints.
        """
        weights = self.model.trainable_variables
        self.optimizer.finalize_variable_values(weights)
        for weight in weights:
            if weight.constraint is not None:
                weight.assign(weight.constraint(weight))

    @contextlib.contextmanager
    def following_crops(self) -> Iterator[None]:
        """A context in which weights may be exchanged. If strides were, static crops follow them at its end."""
        before = strides_by_path(self.model)
        yield
        if strides_by_path(self.model) != before:
            refresh_crops(self.model, self.datasets.image_shape)

    def start(self, first_step: int) -> None:
        """Sets the training data to the batch of a step.

        Args:
            first_step: the step, counted over all epochs.
        """
        self._batches.start(first_step)

    def leave_out_step(self) -> None:
        """Goes past the batch of the next training step."""
        self._batches.leave_out()

    def batch(self, step: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The images and labels of a training step.

        Args:
            step: counted over all epochs.

        Returns:
            Images of shape (batch, height, width, channels) and one-hot labels of shape (batch, classes).
        """
        return next(iter(self.datasets.training(step)))

    def train_steps(self, count: int) -> bool:
        """Runs training steps; `metrics` adds up their loss and accuracy.

        Args:
            count: of the steps.

        Returns:
            Whether loss and gradients of all steps were finite. If not, `finite_steps` is the number of steps before
            the first one that was not, and weights, optimizer and metrics are as after these steps.
        """
        first, state = self._batches.next_step, [tf.convert_to_tensor(variable.value) for variable in self._state()]
        self.finite_steps = self._run_steps(count)
        if self.finite_steps == count and self._weights_are_finite():
            return True
        # A gradient that is not finite shows in the weights after its step, or in the loss of the next step. Checking
        # every gradient of every step would cost a tenth of the step on a TPU, as the TPU's compiler estimates.
        self.finite_steps = min(self.finite_steps, count - 1)
        while True:
            for variable, value in zip(self._state(), state, strict=True):
                variable.assign(value)
            self.start(first)
            self._run_steps(self.finite_steps)
            if self.finite_steps == 0 or self._weights_are_finite():
                return False
            self.finite_steps -= 1

    def evaluate(
        self, split: str, steps_per_execution: int | None = None, after_execution: Callable[[], None] | None = None
    ) -> dict[str, float]:
        """Loss and accuracy on a whole split, every image counted once.

        Args:
            split: 'train', 'validation' or 'test'.
            steps_per_execution: steps between two calls of `after_execution`; None for all steps.
            after_execution: called after each execution.

        Returns:
            `loss` and `accuracy`.
        """
        steps, batches = self.datasets.evaluation_steps(split), self._batches.evaluation(split)
        self._evaluation_metrics.reset()
        self._follow_strides()
        with held_crops(self.model):
            for first in range(0, steps, steps_per_execution or steps):
                count = min(steps_per_execution or steps, steps - first)
                with self.datasets.naming_damage():
                    self._evaluation_steps(batches, tf.constant(count), self._crops())
                if after_execution is not None:
                    after_execution()
        return self._evaluation_metrics.values()

    def results(self, reset: bool = True) -> dict[str, float]:
        """Loss and accuracy of the training steps since the last reset.

        Args:
            reset: whether to start anew afterwards.

        Returns:
            `loss` and `accuracy`.
        """
        values = self.metrics.values()
        if reset:
            self.metrics.reset()
        return values

    def compiled(self, step: Callable[..., None]) -> Callable[..., None]:
        """A step of one replica, compiled by XLA if this loop compiles its steps. It is valid for the present crops.

        Args:
            step: `train_step` or `evaluation_step`.

        Returns:
            A function with the arguments of `step`.
        """
        if not self.jit_compile or distribution.is_tpu(self.strategy):
            return step
        return tf.function(step, autograph=False, jit_compile=True)

    def train_step(self, images: tf.Tensor, labels: tf.Tensor) -> None:
        """One replica's training step: forward, backward, update of weights and metrics.

        Args:
            images: the replica's share, of shape (batch, height, width, channels).
            labels: one-hot, of shape (batch, classes).
        """
        with tf.GradientTape() as tape:
            outputs = self.model(images, training=True)
            loss = self._loss(labels, outputs)
            penalties = self._penalties(loss.dtype)
            # The gradients of the replicas are added up. Keras divides the loss by the number of replicas, but not the
            # penalties.
            total = loss + penalties / self.strategy.num_replicas_in_sync
            scaled_loss = self.optimizer.scale_loss(total)
        variables = self.model.trainable_variables
        self.optimizer.apply_gradients(zip(tape.gradient(scaled_loss, variables), variables))
        self._finite.note(total, self.optimizer)
        self.metrics.update(self._whole_loss(loss, penalties), labels, outputs, tf.ones_like(labels[:, 0]))

    def evaluation_step(self, images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> None:
        """One replica's step of evaluation.

        Args:
            images: the replica's share, of shape (batch, height, width, channels).
            labels: one-hot, of shape (batch, classes).
            weights: of shape (batch,): 1 for an image that counts, 0 for one that fills up the last batch.
        """
        outputs = self.model(images, training=False)
        # Keras divides by the size of the batch, which includes the images of weight 0.
        share = tf.reduce_sum(weights) / tf.cast(tf.size(weights), weights.dtype)
        loss = self._loss(labels, outputs, sample_weight=tf.math.divide_no_nan(weights, share))
        penalties = self._penalties(loss.dtype)
        self._evaluation_metrics.update(self._whole_loss(loss, penalties), labels, outputs, weights)

    def total_loss(self, labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """The loss of a batch with the penalties.

        Args:
            labels: one-hot, of shape (batch, classes).
            outputs: of the model, of shape (batch, classes).

        Returns:
            A scalar.
        """
        loss = self._loss(labels, outputs)
        return loss + self._penalties(loss.dtype)

    @_compiled
    def _train_steps(self, batches: Iterator[Any], count: tf.Tensor, crops: tuple[Any, ...]) -> None:
        del crops  # An argument only so that TensorFlow traces anew if the crops differ.
        self._traces += 1
        step = self.compiled(self.train_step)
        _repeat(count, lambda: self.strategy.run(step, next(batches)))

    @_compiled
    def _evaluation_steps(self, batches: Iterator[Any], count: tf.Tensor, crops: tuple[Any, ...]) -> None:
        del crops
        step = self.compiled(self.evaluation_step)
        _repeat(count, lambda: self.strategy.run(step, next(batches)))

    def _run_steps(self, count: int) -> int:
        """Runs training steps and returns the number of steps before the first one whose loss is not finite."""
        self._finite.reset()
        with self.datasets.naming_damage():
            self._train_steps(self._batches.training, tf.constant(count), self._crops())
        self._batches.next_step += count
        return self._finite.count

    def _weights_are_finite(self) -> bool:
        """Whether the weights are finite, and the gradients that the optimizer adds up for a later update of them."""
        inner = distribution.without_loss_scaling(self.optimizer)
        weights = [*self.model.trainable_variables, *getattr(inner, "_accumulated_gradients", ())]
        return bool(tf.reduce_all([tf.reduce_all(tf.math.is_finite(weight.value)) for weight in weights]))

    def _state(self) -> list[keras.Variable]:
        return [*self.model.variables, *self.optimizer.variables, *self.metrics.variables]

    def _crops(self) -> tuple[Any, ...]:
        """The static crops, on which a traced step depends as it does on shapes."""
        return tuple(tuple(sorted(layer.crops.items())) for layer in diffstride_layers(self.model))

    def _penalties(self, dtype: tf.DType) -> tf.Tensor:
        """The sum of the regularizers, which do not depend on the images."""
        return tf.add_n([tf.zeros([], dtype), *(tf.cast(penalty, dtype) for penalty in self.model.losses)])

    def _whole_loss(self, loss: tf.Tensor, penalties: tf.Tensor) -> tf.Tensor:
        """The mean loss of a replica's images, not divided by the number of replicas, with the penalties."""
        return loss * self.strategy.num_replicas_in_sync + penalties
