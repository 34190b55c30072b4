"""Why a training step gave numbers that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from diffstride_hybrid.model_tools.inspection import leaf_layers, strides_by_path, watched_calls


class NotFiniteError(ArithmeticError):
    """The loss or a gradient of a training step is infinite or not a number."""


def first_not_finite(
    model: keras.Model,
    total_loss: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    images: tf.Tensor,
    labels: tf.Tensor,
) -> str:
    """Repeats a step, forward and backward but without its update, and looks for where numbers stop being finite.

    Args:
        model: with the weights from before the step.
        total_loss: of labels and outputs, penalties included.
        images: of the step.
        labels: of the step.

    Returns:
        What is not finite while all that it is computed from is, in words.
    """
    if not _is_finite(images):
        return "the images of the batch"
    # Others, such as moving averages, do not enter a training step, but the step has changed them.
    for variable in model.trainable_variables:
        if not _is_finite(variable.value):
            return f"the weights {variable.path}"
    found: list[str] = []

    def look(layer: keras.layers.Layer, inputs: tf.Tensor, outputs: tf.Tensor) -> None:
        # Layers come before those that they are in, as their calls end first.
        if not found and not _is_finite(outputs):
            found.append(f"the outputs of {layer.path} ({type(layer).__name__})")

    with tf.GradientTape() as tape, watched_calls(leaf_layers(model), look):
        loss = total_loss(labels, model(images, training=True))
    if found:
        return found[0]
    if not _is_finite(loss):
        return "the loss of finite outputs"
    variables = model.trainable_variables
    # Where there are replicas, the step was repeated on the first.
    gradients = tape.gradient(loss, [getattr(variable.value, "_primary", variable.value) for variable in variables])
    # Backwards, as gradients are computed.
    for variable, gradient in reversed(list(zip(variables, gradients))):
        if gradient is not None and not _is_finite(gradient):
            return f"the gradient of {variable.path}"
    return "nothing when the step is repeated by itself"


def strides_in_words(model: keras.Model) -> str:
    """The strides of all `DiffStride` layers as they stand, none where there are none."""
    strides = strides_by_path(model)
    if not strides:
        return "no learned strides"
    return "strides " + "; ".join(
        f"{path.removeprefix(f'{model.name}/')} {_numbers(pair)}" for path, pair in strides.items()
    )


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)


def _is_finite(tensor: tf.Tensor) -> bool:
    return bool(np.isfinite(tf.cast(tensor, tf.float32).numpy()).all()) if tensor.dtype.is_floating else True
