"""What training asks of an optimizer beside Keras's defaults."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from diffstride_hybrid.common import distribution


def keep_from_decay(optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]) -> None:
    """Keeps an optimizer's weight decay from some variables, beside those that are kept from it already.

    Decay towards 0 makes no sense for a stride, whose neutral value is 1 and whose size is the network's cost.

    Args:
        optimizer: not built yet.
        variables: to keep from decay.
    """
    # Keras has no public way to add to the variables that a user has chosen before.
    names = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    before = getattr(optimizer, "_exclude_from_weight_decay", set())
    optimizer.exclude_from_weight_decay(variables, [names.pattern] if names else None)
    optimizer._exclude_from_weight_decay |= before


def pace_strides(
    optimizer: keras.optimizers.Optimizer,
    strides: Sequence[keras.Variable],
    relative_rate: float,
    rest_steps: int,
) -> None:
    """Gives strides a learning rate of their own, and lets them rest in the first steps.

    Call it before the first step is traced. Replicas, loss scaling, schedules of the learning rate and, on one device,
    gradient accumulation work as before.

    Args:
        optimizer: of any kind that Keras has. Adafactor cannot have a relative rate, nor Ftrl steps of rest.
        strides: the variables concerned.
        relative_rate: factor of the optimizer's learning rate, above 0.
        rest_steps: training steps before the strides first move. With `gradient_accumulation_steps` an update of the
            optimizer takes several of them.

    Raises:
        ValueError: there are no strides to pace, or they cannot rest, or have a rate of their own, with this optimizer.

    Example:
        >>> from diffstride_hybrid import DiffStride
        >>> from diffstride_hybrid.training.optimizers import pace_strides
        >>> layer = DiffStride(2.0)
        >>> layer.build((None, 32, 32, 3))
        >>> optimizer = keras.optimizers.SGD(0.1)
        >>> pace_strides(optimizer, [layer.strides], relative_rate=5.0, rest_steps=0)
        >>> optimizer.apply([keras.ops.ones(2)], [layer.strides])
        >>> layer.strides.numpy().tolist()  # 2 - 5 * 0.1
        [1.5, 1.5]
    """
    if relative_rate == 1.0 and rest_steps == 0:
        return
    if not strides:
        raise ValueError(
            "train.train.stride_learning_rate and train.train.stride_warmup_epochs have nothing to act on: the model "
            "has no stride that is trained. Leave them out, or bind resnet.Resnet.pooling_cls = @pooling.DiffStride."
        )
    optimizer = distribution.without_loss_scaling(optimizer)
    if rest_steps and isinstance(optimizer, keras.optimizers.Ftrl):
        raise ValueError(
            "train.train.stride_warmup_epochs must be 0 with Ftrl, which divides by the learning rate: that of strides "
            "at rest is 0."
        )
    if relative_rate != 1.0 and isinstance(optimizer, keras.optimizers.Adafactor):
        raise ValueError(
            "train.train.stride_learning_rate must be 1 with Adafactor, which bounds each learning rate by 1 / "
            "sqrt(step): the strides would come to have the rate of all others."
        )
    # TensorFlow's variable arrives in place of Keras's, on several replicas that of one of them. All have one key.
    key, update = optimizer._var_key, optimizer.update_step
    rest_updates = rest_steps // (optimizer.gradient_accumulation_steps or 1)
    paced = {key(variable) for variable in strides}

    def update_step(gradient: Any, variable: keras.Variable, learning_rate: Any) -> None:
        if key(variable) in paced:
            learning_rate = keras.ops.convert_to_tensor(learning_rate)  # That of a function may be a plain number.
            moves = keras.ops.cast(optimizer.iterations >= rest_updates, learning_rate.dtype)
            learning_rate = learning_rate * relative_rate * moves
        update(gradient, variable, learning_rate)

    # Keras calls this for each variable with the learning rate of the step. It has no other way to set one by variable.
    optimizer.update_step = update_step
