"""Updates of Adam and SGD by TensorFlow's kernels, one operation for each variable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.common import distribution

Kernel = Callable[[tf.Variable, tf.Tensor, tf.Tensor], None]
"""Moves a variable by its gradient and a learning rate."""


def fuse_updates(optimizer: keras.optimizers.Optimizer) -> None:
    """Makes Adam, AdamW and SGD update each variable by one kernel, in place of the ten or thirty operations of Keras.

    The formulas are the same (Kingma and Ba, arXiv 1412.6980, section 2; momentum as in Keras's documentation).
    Schedules, clipping, decay, accumulation and loss scaling work as before. An optimizer of another kind, one with
    `amsgrad`, variables that are not float32, sparse gradients and steps on several replicas keep the updates of Keras.
    Adam's kernel subtracts its decay rates from 1 in float32, which moves a weight by some 1e-5 of its step.

    Call it before `pace_strides`, and before the first step is traced.

    Args:
        optimizer: of any kind that Keras has.

    Example:
        >>> from diffstride_hybrid.training.fused_updates import fuse_updates
        >>> weight, optimizer = keras.Variable([1.0, 2.0]), keras.optimizers.SGD(0.5)
        >>> fuse_updates(optimizer)
        >>> optimizer.apply([keras.ops.ones(2)], [weight])
        >>> weight.numpy().tolist()
        [0.5, 1.5]
    """
    optimizer = distribution.without_loss_scaling(optimizer)
    kernel_of_step = _kernel_of_step(optimizer)
    if kernel_of_step is None:
        return
    plain_update, plain_step = optimizer.update_step, optimizer._backend_update_step
    kernels: list[Kernel] = []

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        # TensorFlow's variable arrives in place of Keras's.
        dense = isinstance(gradient, tf.Tensor) and isinstance(variable, tf.Variable)
        if kernels and dense and gradient.dtype == variable.dtype == tf.float32:
            kernels[-1](variable, gradient, tf.cast(learning_rate, tf.float32))
        else:
            plain_update(gradient, variable, learning_rate)

    def step(gradients: Any, variables: Any, learning_rate: Any) -> None:
        # The numbers that all variables share are made once for a step. They must not outlive it.
        is_alone = tf.distribute.get_strategy().num_replicas_in_sync == 1
        kernels.extend([kernel_of_step()] if is_alone else [])
        try:
            plain_step(gradients, variables, learning_rate)
        finally:
            kernels.clear()

    optimizer.update_step, optimizer._backend_update_step = update_step, step


def _kernel_of_step(optimizer: keras.optimizers.Optimizer) -> Callable[[], Kernel] | None:
    """What makes the kernel of a step. None if the optimizer's formula has no kernel."""
    formula = type(optimizer).update_step
    if formula is keras.optimizers.Adam.update_step and not optimizer.amsgrad:
        return lambda: _adam(optimizer)
    if formula is keras.optimizers.SGD.update_step:
        return lambda: _momentum(optimizer) if optimizer.momentum else _descent
    return None


def _adam(optimizer: keras.optimizers.Adam) -> Kernel:
    count = tf.cast(tf.convert_to_tensor(optimizer.iterations) + 1, tf.float32)
    betas = [tf.constant(beta, tf.float32) for beta in (optimizer.beta_1, optimizer.beta_2)]
    powers = [beta**count for beta in betas]
    epsilon = tf.constant(optimizer.epsilon, tf.float32)

    def update(variable: tf.Variable, gradient: tf.Tensor, learning_rate: tf.Tensor) -> None:
        index = optimizer._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=optimizer._momentums[index].value.handle,
            v=optimizer._velocities[index].value.handle,
            beta1_power=powers[0],
            beta2_power=powers[1],
            lr=learning_rate,
            beta1=betas[0],
            beta2=betas[1],
            epsilon=epsilon,
            grad=gradient,
        )

    return update


def _momentum(optimizer: keras.optimizers.SGD) -> Kernel:
    momentum = tf.constant(optimizer.momentum, tf.float32)

    def update(variable: tf.Variable, gradient: tf.Tensor, learning_rate: tf.Tensor) -> None:
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=variable.handle,
            accum=optimizer.momentums[optimizer._get_variable_index(variable)].value.handle,
            lr=learning_rate,
            grad=gradient,
            momentum=momentum,
            use_nesterov=optimizer.nesterov,
        )

    return update


def _descent(variable: tf.Variable, gradient: tf.Tensor, learning_rate: tf.Tensor) -> None:
    tf.raw_ops.ResourceApplyGradientDescent(var=variable.handle, alpha=learning_rate, delta=gradient)
