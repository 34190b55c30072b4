"""Updates by one kernel are those of Keras, whatever else the optimizer does."""

from __future__ import annotations

from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.replicas import two_cpus

from diffstride_hybrid.training.fused_updates import fuse_updates
from diffstride_hybrid.training.optimizers import pace_strides

RNG = np.random.default_rng(0)
SHAPES = [(3, 3, 2, 4), (5,), ()]
EXACT = {"beta_1": 0.875, "beta_2": 1 - 2**-8}
"""The kernel subtracts these rates from 1 in float32. Those of Keras are not exact there."""

SCHEDULE = keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=2, decay_rate=0.5)

FUSED = {
    "sgd": partial(keras.optimizers.SGD, 0.1),
    "momentum": partial(keras.optimizers.SGD, 0.1, momentum=0.9),
    "nesterov": partial(keras.optimizers.SGD, 0.1, momentum=0.9, nesterov=True),
    "adam": partial(keras.optimizers.Adam, 0.1, epsilon=1e-3, **EXACT),
    "adamw": partial(keras.optimizers.AdamW, 0.1, weight_decay=0.01, **EXACT),
    "schedule": partial(keras.optimizers.Adam, SCHEDULE, **EXACT),
    "clipnorm": partial(keras.optimizers.SGD, 0.1, momentum=0.9, clipnorm=0.5),
    "decay": partial(keras.optimizers.SGD, 0.1, momentum=0.9, weight_decay=0.01),
    "average": partial(keras.optimizers.Adam, 0.1, use_ema=True, ema_overwrite_frequency=2, **EXACT),
    "accumulation": partial(keras.optimizers.SGD, 0.1, momentum=0.9, gradient_accumulation_steps=2),
}
OTHERS = {
    "amsgrad": partial(keras.optimizers.Adam, 0.1, amsgrad=True),
    "rmsprop": partial(keras.optimizers.RMSprop, 0.1),
    "nadam": partial(keras.optimizers.Nadam, 0.1),
}
KERNELS = {"ResourceApplyAdam", "ResourceApplyKerasMomentum", "ResourceApplyGradientDescent"}


def variables(dtype: str = "float32") -> list[keras.Variable]:
    values = np.random.default_rng(1)
    return [keras.Variable(values.normal(size=shape), dtype=dtype) for shape in SHAPES]


def gradients(dtype: str = "float32") -> list[list[tf.Tensor]]:
    values = np.random.default_rng(2)
    return [[tf.constant(values.normal(size=shape), dtype) for shape in SHAPES] for _ in range(5)]


def trained(optimizer: keras.optimizers.Optimizer, compiled: bool, dtype: str = "float32") -> list[np.ndarray]:
    weights = variables(dtype)
    optimizer.build(weights)
    step = tf.function(lambda *of_step: optimizer.apply(list(of_step), weights), autograph=False)
    for of_step in gradients(dtype):
        step(*of_step) if compiled else optimizer.apply(of_step, weights)
    return [keras.ops.convert_to_numpy(variable) for variable in [*weights, *optimizer.variables]]


def fused(make: partial) -> keras.optimizers.Optimizer:
    optimizer = make()
    fuse_updates(optimizer)
    return optimizer


def operations_of_a_step(optimizer: keras.optimizers.Optimizer) -> list[str]:
    weights = variables()
    optimizer.build(weights)
    step = tf.function(lambda *of_step: optimizer.apply(list(of_step), weights), autograph=False)
    return [node.op for node in step.get_concrete_function(*gradients()[0]).graph.as_graph_def().node]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", [*FUSED, *OTHERS])
def test_weights_and_state_are_those_of_keras(name: str, compiled: bool):
    make = (FUSED | OTHERS)[name]
    for one, other in zip(trained(fused(make), compiled), trained(make(), compiled), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adam", "adamw", "schedule", "clipnorm"])
def test_each_variable_has_one_kernel(name: str):
    kernels = [operation for operation in operations_of_a_step(fused(FUSED[name])) if operation in KERNELS]
    assert len(kernels) == len(SHAPES)


@pytest.mark.parametrize("name", OTHERS)
def test_other_formulas_have_none(name: str):
    assert not KERNELS & set(operations_of_a_step(fused(OTHERS[name])))


def test_variables_of_double_precision_keep_the_updates_of_keras():
    one, other = (trained(make(), False, "float64") for make in (partial(fused, FUSED["adam"]), FUSED["adam"]))
    for mine, of_keras in zip(one, other, strict=True):
        np.testing.assert_array_equal(mine, of_keras)


def test_sparse_gradients_keep_the_updates_of_keras():
    def embedded(optimizer: keras.optimizers.Optimizer) -> np.ndarray:
        table = keras.Variable(np.ones([4, 2]), dtype="float32")
        optimizer.apply([tf.IndexedSlices(tf.ones([1, 2]), tf.constant([2]), tf.constant([4, 2]))], [table])
        return table.numpy()

    np.testing.assert_allclose(embedded(fused(FUSED["sgd"])), embedded(FUSED["sgd"]()))


def test_two_steps_in_one_graph_count_as_two():
    """The powers of Adam's decay rates belong to one step."""

    def after_two(optimizer: keras.optimizers.Optimizer) -> list[np.ndarray]:
        weights = variables()
        optimizer.build(weights)

        @tf.function(autograph=False)
        def both() -> None:
            for of_step in gradients()[:2]:
                optimizer.apply(of_step, weights)

        both()
        return [variable.numpy() for variable in weights]

    for one, other in zip(after_two(fused(FUSED["adam"])), after_two(FUSED["adam"]()), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_outside_of_a_step_no_kernel_is_left_over():
    """It would go on with the powers of an earlier step."""

    def after(optimizer: keras.optimizers.Optimizer) -> np.ndarray:
        weights = variables()
        optimizer.apply(gradients()[0], weights)
        optimizer.update_step(gradients()[1][0], weights[0].value, tf.constant(0.1))
        return weights[0].numpy()

    np.testing.assert_allclose(after(fused(FUSED["adam"])), after(FUSED["adam"]()), rtol=1e-5, atol=1e-6)


def test_a_pace_of_the_strides_and_loss_scaling_work_as_before():
    def after(is_fused: bool) -> list[np.ndarray]:
        weights = variables()
        optimizer = keras.optimizers.LossScaleOptimizer(FUSED["adam"](), initial_scale=4.0)
        if is_fused:
            fuse_updates(optimizer)
        pace_strides(optimizer, weights[1:2], relative_rate=3.0, rest_steps=1)
        optimizer.build(weights)
        for of_step in gradients():
            optimizer.apply([4.0 * gradient for gradient in of_step], weights)
        return [variable.numpy() for variable in weights]

    for one, other in zip(after(True), after(False), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_replicas_keep_the_updates_of_keras():
    strategy = two_cpus()
    with strategy.scope():
        weights = variables()
        optimizer = fused(FUSED["momentum"])
        optimizer.build(weights)
    plain, of_keras = variables(), FUSED["momentum"]()
    of_keras.build(plain)

    @tf.function(autograph=False)
    def step() -> None:
        strategy.run(lambda: optimizer.apply([gradient / 2 for gradient in gradients()[0]], weights))

    operations = {node.op for node in step.get_concrete_function().graph.as_graph_def().node}
    assert not KERNELS & operations
    step()
    of_keras.apply(gradients()[0], plain)
    for one, other in zip(weights, plain):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-6)
