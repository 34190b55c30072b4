"""Batch normalization of a Keras layer by TensorFlow's kernel `FusedBatchNormV3`, and maps that are computed again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

# Keras has no public name for the scope of `stateless_call`, whose values are others than those of the variables.
from keras.src.backend.common.stateless_scope import get_stateless_scope


def normalized(
    layer: keras.layers.BatchNormalization,
    plain_call: Callable[..., tf.Tensor],
    inputs: tf.Tensor,
    training: bool | None,
    mask: Any,
) -> tf.Tensor:
    """What a layer gives, by the fused kernel if it can serve.

    Args:
        layer: a built layer.
        plain_call: Keras's own computation, called with `inputs`, `training` and `mask`.
        inputs: the layer's input.
        training: whether the batch's own statistics are used.
        mask: the layer's mask, or None.

    Returns:
        The normalized maps.
    """
    train = bool(training) and layer.trainable
    averages = (layer.moving_mean, layer.moving_variance)
    if mask is not None or not _fuses(layer, inputs):
        outputs = plain_call(inputs, training=training, mask=mask)
        if train and not layer.synchronized:
            for average, mean in zip(averages, _mean_over_replicas(list(map(tf.convert_to_tensor, averages)))):
                average.assign(mean)
        return outputs
    channels = inputs.shape[layer.axis]
    outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
        x=inputs,
        scale=tf.convert_to_tensor(layer.gamma) if layer.scale else tf.ones([channels]),
        offset=tf.convert_to_tensor(layer.beta) if layer.center else tf.zeros([channels]),
        mean=[] if train else tf.convert_to_tensor(layer.moving_mean),
        variance=[] if train else tf.convert_to_tensor(layer.moving_variance),
        epsilon=layer.epsilon,
        data_format="NHWC" if _is_channels_last(layer, inputs) else "NCHW",
        is_training=train,
    )
    if train:
        _update_averages(layer, inputs, mean, variance)
    return outputs


def recomputed(function: Callable[..., Any], *inputs: tf.Tensor) -> Any:
    """`function(*inputs)`, of which the inputs alone are kept for the backward pass. There it is computed again.

    Unlike `tf.recompute_grad` this neither copies the inputs nor differentiates more than the first output.

    Args:
        function: takes the inputs, and returns a tensor or a sequence of tensors. Only the first is differentiated. It
            changes no variable.
        *inputs: floating-point.

    Returns:
        The output of the function.
    """

    @tf.custom_gradient
    def apply(*inputs: tf.Tensor) -> tuple[Any, Any]:
        outputs = function(*inputs)

        def gradient(upstream: tf.Tensor, *_: Any, variables: Any = None) -> Any:
            with tf.control_dependencies([upstream]):  # Else TensorFlow would compute it in the forward pass.
                again = [tf.identity(each) for each in inputs]
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch([*again, *(variables or [])])
                first, *_ = tf.nest.flatten(function(*again))
            if variables is None:
                return tape.gradient(first, again, upstream)
            return tape.gradient(first, (again, variables), upstream)

        return outputs, gradient

    return apply(*inputs)


def recomputing_convolution(
    norm: keras.layers.BatchNormalization,
    convolution: keras.layers.Layer,
    inputs: tf.Tensor,
    pool: Callable[[tf.Tensor], tf.Tensor] | None = None,
) -> tf.Tensor | None:
    """`pool(convolution(relu(norm(inputs))))` in training, of which `inputs` alone is kept for the backward pass.

    The activation, which the gradient of the convolution needs, is computed again from the inputs and the statistics of
    the batch.

    Args:
        norm: a built layer.
        convolution: a built layer.
        inputs: the input of `norm`.
        pool: applied to the output of `convolution`, and computed again with it. None for nothing.

    Returns:
        The output. None if the layers are of a kind that is not known here, or their `call` has been replaced.
    """
    if not _is_known(norm, convolution, inputs):
        return None
    kernel = tf.convert_to_tensor(convolution.kernel)
    if kernel.dtype != inputs.dtype:
        return None
    options = {"epsilon": norm.epsilon, "data_format": "NHWC"}
    of_convolution = {"strides": [1, *convolution.strides, 1], "padding": "SAME"}
    share = _share_of_biased(norm, inputs)

    @tf.custom_gradient
    def apply(inputs: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, kernel: tf.Tensor) -> tuple[Any, Any]:
        normalized, mean, variance, *reserved = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=scale, offset=offset, mean=[], variance=[], is_training=True, **options
        )

        def of_norm(upstream: tf.Tensor) -> tuple[tf.Tensor, ...]:
            of_inputs, of_scale, of_offset, *_ = tf.raw_ops.FusedBatchNormGradV3(
                y_backprop=upstream,
                x=inputs,
                scale=scale,
                reserve_space_1=reserved[0],
                reserve_space_2=reserved[1],
                reserve_space_3=reserved[2],
                is_training=True,
                **options,
            )
            return of_inputs, of_scale, of_offset

        @tf.custom_gradient  # TensorFlow's own takes the statistics for constants, which a second derivative shows.
        def normalized_again(inputs: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor) -> tuple[tf.Tensor, Any]:
            known = {"mean": mean, "variance": variance * share}
            outputs, *_ = tf.raw_ops.FusedBatchNormV3(
                x=inputs, scale=scale, offset=offset, is_training=False, **known, **options
            )
            return outputs, of_norm

        def gradient(upstream: tf.Tensor, *_: tf.Tensor) -> tuple[tf.Tensor, ...]:
            with tf.control_dependencies([upstream]):  # Else TensorFlow would compute it in the forward pass.
                again = tf.identity(inputs)
            again = tf.nn.relu(normalized_again(again, scale, offset))
            of_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=again, filter_sizes=tf.shape(kernel), out_backprop=upstream, **of_convolution
            )
            of_activation = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(again), filter=kernel, out_backprop=upstream, **of_convolution
            )
            return *of_norm(tf.raw_ops.ReluGrad(gradients=of_activation, features=again)), of_kernel

        outputs = tf.nn.conv2d(tf.nn.relu(normalized), kernel, **of_convolution)
        return (outputs, mean, variance), gradient

    def apply_and_pool(*tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
        outputs, *statistics = apply(*tensors)
        return pool(outputs), *statistics

    tensors = inputs, tf.convert_to_tensor(norm.gamma), tf.convert_to_tensor(norm.beta), kernel
    outputs, mean, variance = apply(*tensors) if pool is None else recomputed(apply_and_pool, *tensors)
    _update_averages(norm, inputs, mean, variance)
    return outputs


def _is_known(norm: keras.layers.BatchNormalization, convolution: keras.layers.Layer, inputs: tf.Tensor) -> bool:
    """Whether `recomputing_convolution` can compute what these layers do."""
    if any("call" in vars(layer) or layer.activity_regularizer is not None for layer in (norm, convolution)):
        return False
    if type(convolution) is not keras.layers.Conv2D:
        return False
    if convolution.use_bias or convolution.padding != "same" or convolution.dilation_rate != (1, 1):
        return False
    if convolution.groups != 1 or convolution.activation is not keras.activations.linear:
        return False
    trains = norm.trainable and norm.scale and norm.center
    return trains and _is_channels_last(norm, inputs) and _fuses(norm, inputs)


def _update_averages(
    layer: keras.layers.BatchNormalization, inputs: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor
) -> None:
    """Moves a layer's averages towards the mean and the unbiased variance of a batch."""
    # Keras averages the biased variance.
    mean, variance = _mean_over_replicas([mean, variance * _share_of_biased(layer, inputs)])
    for average, batch_value in zip((layer.moving_mean, layer.moving_variance), (mean, variance)):
        before = tf.convert_to_tensor(average)
        step = (before - batch_value) * (1.0 - layer.momentum)
        if get_stateless_scope() is None:
            average.value.assign_sub(step)
        else:
            average.assign(before - step)  # The scope keeps the new value.


def _share_of_biased(layer: keras.layers.BatchNormalization, inputs: tf.Tensor) -> tf.Tensor:
    """The biased variance as a share of the unbiased one: `1 - 1 / n` for `n` samples of a channel."""
    return 1.0 - inputs.shape[layer.axis] / tf.cast(tf.size(inputs), tf.float32)


def _fuses(layer: keras.layers.BatchNormalization, inputs: tf.Tensor) -> bool:
    """Whether the fused kernel can serve these inputs."""
    renorm = getattr(layer, "renorm", False)  # Keras has this option from 3.14 on.
    if layer.synchronized or renorm or inputs.shape.rank != 4 or inputs.shape[layer.axis] is None:
        return False
    if inputs.dtype not in (tf.float32, tf.float16, tf.bfloat16) or layer.variable_dtype != "float32":
        return False
    return _is_channels_last(layer, inputs) or (layer.axis == 1 and bool(tf.config.list_physical_devices("GPU")))


def _is_channels_last(layer: keras.layers.BatchNormalization, inputs: tf.Tensor) -> bool:
    return layer.axis in (-1, inputs.shape.rank - 1)


def _mean_over_replicas(statistics: list[tf.Tensor]) -> list[tf.Tensor]:
    """Averages statistics over all replicas, which normalize each by its own images but share the moving averages."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return statistics
    return replica.all_reduce(tf.distribute.ReduceOp.MEAN, statistics)
