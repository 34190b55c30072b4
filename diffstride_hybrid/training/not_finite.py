"""Numbers that are not finite: counting the steps before the first one, and naming where it arose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from diffstride_hybrid.common import distribution
from diffstride_hybrid.model_tools.inspection import leaf_layers, short_path, strides_by_path, watched_calls


class NotFiniteError(ArithmeticError):
    """The loss or a gradient of a training step is infinite or not a number."""


class FiniteSteps:
    """Counts, within the compiled steps, the steps before the first one whose loss is not finite.

    Make it in the scope of the strategy.
    """

    def __init__(self) -> None:
        self._count, self._all_finite = (
            tf.Variable(value, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA, name=name)
            for name, value in (("finite_steps", 0), ("all_finite", True))
        )

    @property
    def count(self) -> int:
        """The finite steps since the last reset."""
        return int(self._count.numpy())

    def reset(self) -> None:
        """Starts counting anew."""
        self._count.assign(0)
        self._all_finite.assign(True)

    def note(self, loss: tf.Tensor, optimizer: keras.optimizers.Optimizer) -> None:
        """Counts a step if its loss and the loss of all steps before were finite. Call it within a step.

        Args:
            loss: of the step, a scalar.
            optimizer: which took the step.
        """
        finite = self._all_finite & distribution.on_all_replicas(tf.math.is_finite(loss))
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            # If gradients overflow, this optimizer skips the step and halves its scale. A scale below 1 means that
            # the gradients overflow without any scaling.
            finite &= tf.convert_to_tensor(optimizer.dynamic_scale) >= 1.0
        self._all_finite.assign(finite)
        self._count.assign_add(tf.cast(finite, tf.int32))


def first_not_finite(
    model: keras.Model,
    total_loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    images: tf.Tensor,
    labels: tf.Tensor,
) -> str:
    """Repeats a training step without its update, and finds the first number that is not finite.

    It looks at the images, the weights, the outputs of each layer, the loss and the gradients, in the order in which a
    step computes them.

    Args:
        model: with the weights from before the step.
        total_loss: takes labels and outputs and returns the loss, a scalar, with the penalties.
        images: of the step, of shape (batch, height, width, channels).
        labels: of the step, one-hot, of shape (batch, classes).

    Returns:
        The name of the first tensor that is not finite, such as 'the weights net/learned/strides'.
    """
    if not _is_finite(images):
        return "the images of the batch"
    # The other weights, such as moving averages, do not enter a training step, but the failed step has changed them.
    for variable in model.trainable_variables:
        if not _is_finite(variable.value):
            return f"the weights {variable.path}"
    found: list[str] = []

    def look(layer: keras.layers.Layer, inputs: tf.Tensor, outputs: tf.Tensor) -> None:
        if not found and not _is_finite(outputs):
            found.append(f"the outputs of {layer.path} ({type(layer).__name__})")

    with tf.GradientTape() as tape, watched_calls(leaf_layers(model), look):
        loss = total_loss(labels, model(images, training=True))
    if found:
        return found[0]
    if not _is_finite(loss):
        return "the loss of finite outputs"
    variables = model.trainable_variables
    gradients = tape.gradient(loss, [_of_first_replica(variable) for variable in variables])
    # In the order in which gradients are computed: from the last layer to the first.
    for variable, gradient in reversed(list(zip(variables, gradients))):
        if gradient is not None and not _is_finite(gradient):
            return f"the gradient of {variable.path}"
    return "unknown, because the step was finite when it was repeated"


def strides_in_words(model: keras.Model) -> str:
    """The present strides of all `DiffStride` layers.

    Args:
        model: a built model.

    Returns:
        Such as 'strides block_1/pooling 2, 1.732'; 'no learned strides' if the model has no such layer.
    """
    strides = strides_by_path(model)
    if not strides:
        return "no learned strides"
    return "strides " + "; ".join(f"{short_path(model, path)} {_numbers(pair)}" for path, pair in strides.items())


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _of_first_replica(variable: keras.Variable) -> tf.Variable:
    """The replica on which a step outside `strategy.run` is computed."""
    return tf.distribute.get_strategy().experimental_local_results(variable.value)[0]


def _is_finite(tensor: tf.Tensor) -> bool:
    return bool(np.isfinite(tf.cast(tensor, tf.float32).numpy()).all()) if tensor.dtype.is_floating else True
