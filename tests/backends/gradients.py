"""The output of a layer and its gradients, on the backend that Keras runs on."""

from typing import Any

import keras
import numpy as np


def output_and_gradients(
    layer: keras.layers.Layer, inputs: np.ndarray, upstream: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The output, and the gradients of `sum(output * upstream)` to the inputs and to the layer's trainable weights."""
    outputs, gradients = _ON[keras.backend.backend()](layer, inputs, upstream)
    to_numpy = keras.ops.convert_to_numpy
    return to_numpy(outputs), [to_numpy(gradient) for gradient in gradients]


def called(layer: keras.layers.Layer, inputs: np.ndarray) -> Any:
    """The output of a layer. On JAX in one compiled function: else it would compile each operation by itself."""
    if keras.backend.backend() != "jax":
        return layer(inputs)
    import jax

    layer.build(inputs.shape)
    return jax.jit(layer)(inputs)


def _on_jax(layer: keras.layers.Layer, inputs: np.ndarray, upstream: np.ndarray) -> tuple[Any, list[Any]]:
    import jax

    weights = [weight.value for weight in layer.trainable_variables]
    others = [weight.value for weight in layer.non_trainable_variables]

    def outputs_of(inputs: Any, weights: Any) -> Any:
        return layer.stateless_call(weights, others, inputs)[0]

    @jax.jit
    def outputs_and_gradients(inputs: Any, weights: Any, upstream: Any) -> Any:
        outputs, backward = jax.vjp(outputs_of, inputs, weights)
        return outputs, backward(upstream.astype(outputs.dtype))

    outputs, (to_inputs, to_weights) = outputs_and_gradients(inputs, weights, upstream)
    return outputs, [to_inputs, *to_weights]


def _on_torch(layer: keras.layers.Layer, inputs: np.ndarray, upstream: np.ndarray) -> tuple[Any, list[Any]]:
    import torch

    inputs = torch.tensor(inputs, requires_grad=True)
    outputs = layer(inputs)
    weights = [weight.value for weight in layer.trainable_variables]
    gradients = torch.autograd.grad(outputs, [inputs, *weights], torch.tensor(upstream).to(outputs.dtype))
    return outputs, list(gradients)


def _on_tensorflow(layer: keras.layers.Layer, inputs: np.ndarray, upstream: np.ndarray) -> tuple[Any, list[Any]]:
    import tensorflow as tf

    inputs = tf.constant(inputs)
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        outputs = layer(inputs)
    weights = [weight.value for weight in layer.trainable_variables]
    return outputs, tape.gradient(outputs, [inputs, *weights], tf.constant(upstream, outputs.dtype))


_ON = {"jax": _on_jax, "torch": _on_torch, "tensorflow": _on_tensorflow}
