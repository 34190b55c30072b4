"""Checks of the arguments of `train`, and the dtype policy that 'auto' stands for."""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.common import distribution
from diffstride_hybrid.common.arguments import validated_choice, validated_flag, validated_number, validated_whole
from diffstride_hybrid.model_tools.macs_budget import validated_target
from diffstride_hybrid.runs.folder import RunFolder

OF_EACH_CLASS = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
"""Losses that take the output of each class for the logit of that class against all others."""

_OF_ALL_CLASSES = (keras.losses.CategoricalCrossentropy, keras.losses.CategoricalFocalCrossentropy)
"""Losses that take the outputs, divided by their sum, for the probabilities of the classes."""

ON_NOT_FINITE = ("stop", "roll_back")
"""The allowed values of `on_not_finite`."""

DTYPE_POLICIES = ("auto", "float32", "float64", "mixed_bfloat16", "mixed_float16")
"""The allowed values of `dtype_policy`."""


def check_counts(**counts: Any) -> None:
    """Checks that arguments of `train` are whole numbers of at least 1.

    Args:
        **counts: the arguments by name.

    Raises:
        ValueError: one is not.
    """
    for name, value in counts.items():
        validated_whole(f"train.train.{name}", value, least=1)


def check_optional_counts(**counts: Any) -> None:
    """Checks that arguments of `train` are None or whole numbers of at least 1.

    Args:
        **counts: the arguments by name.

    Raises:
        ValueError: one is not.
    """
    check_counts(**{name: value for name, value in counts.items() if value is not None})


def check_stride_pace(stride_learning_rate: Any, stride_warmup_epochs: Any) -> None:
    """Checks two arguments of `train`.

    Args:
        stride_learning_rate: above 0.
        stride_warmup_epochs: a whole number of at least 0.

    Raises:
        TypeError: one is no number.
        ValueError: one is out of range.
    """
    name = "train.train.stride_learning_rate"
    if validated_number(name, stride_learning_rate, at_least=0.0) == 0.0:
        raise ValueError(f"{name} must be above 0. pooling.DiffStride.trainable = False holds the strides.")
    validated_whole("train.train.stride_warmup_epochs", stride_warmup_epochs, least=0)


def check_budget(macs_budget: Any, macs_budget_epoch: Any, num_epochs: int, stride_warmup_epochs: int) -> None:
    """Checks two arguments of `train`.

    Args:
        macs_budget: None, or a finite number above 0.
        macs_budget_epoch: None, or a whole number above `stride_warmup_epochs` and at most `num_epochs`.
        num_epochs: the epochs of the run.
        stride_warmup_epochs: the first epochs in which the strides rest.

    Raises:
        ValueError: one is out of range, or the run has no epoch in which the strides move.
    """
    name = "train.train.macs_budget"
    if macs_budget is None:
        if macs_budget_epoch is not None:
            raise ValueError(
                f"{name}_epoch = {macs_budget_epoch!r} has nothing to act on: bind {name}, or leave it out."
            )
        return
    validated_target(name, macs_budget)
    if num_epochs <= stride_warmup_epochs:
        raise ValueError(
            f"{name} needs an epoch in which the strides move: train.train.stride_warmup_epochs must be below the "
            f"{num_epochs} epochs, got {stride_warmup_epochs}."
        )
    if macs_budget_epoch is not None:
        validated_whole(f"{name}_epoch", macs_budget_epoch, least=stride_warmup_epochs + 1)
        if macs_budget_epoch > num_epochs:
            raise ValueError(f"{name}_epoch must be at most the {num_epochs} epochs, got {macs_budget_epoch}.")


def check_makers(**makers: Any) -> None:
    """Checks that arguments of `train` can be called.

    Args:
        **makers: the arguments by name: classes and functions.

    Raises:
        TypeError: one cannot be called, or is an instance of a loss where its class is needed.
    """
    for name, maker in makers.items():
        if not callable(maker) or isinstance(maker, keras.losses.Loss):
            raise TypeError(f"train.train.{name} must be a class or a function, got {reprlib.repr(maker)}.")


def check_choices(on_not_finite: Any, jit_compile: Any) -> None:
    """Checks two arguments of `train`.

    Args:
        on_not_finite: one of `ON_NOT_FINITE`.
        jit_compile: True or False.

    Raises:
        ValueError: `on_not_finite` is another value.
        TypeError: `jit_compile` is no bool.
    """
    if on_not_finite not in ON_NOT_FINITE:
        raise ValueError(
            f"train.train.on_not_finite must be {' or '.join(map(repr, ON_NOT_FINITE))}, got {on_not_finite!r}."
        )
    validated_flag("train.train.jit_compile", jit_compile)


def check_loss(loss: keras.losses.Loss, model: keras.Model) -> None:
    """Refuses a loss that is not one number, and a cross-entropy of which Keras would silently compute nonsense.

    Args:
        loss: any loss. Of the categorical and binary cross-entropies more is checked than the reduction.
        model: a built model.

    Raises:
        ValueError: the loss is not reduced, or the label smoothing is out of range, or the loss takes logits and the
            model gives probabilities, or the reverse.
    """
    if getattr(loss, "reduction", "sum") in (None, "none"):
        raise ValueError(
            f"{type(loss).__name__}.reduction must be 'sum_over_batch_size' or 'sum', so that the loss is one number, "
            f"got {loss.reduction!r}."
        )
    if not isinstance(loss, (*OF_EACH_CLASS, *_OF_ALL_CLASSES)):
        return
    name = f"tf.keras.losses.{type(loss).__name__}"
    smoothing, takes_logits = (loss.get_config()[name] for name in ("label_smoothing", "from_logits"))
    if not isinstance(smoothing, (int, float)) or not 0 <= smoothing < 1:
        raise ValueError(f"{name}.label_smoothing must be at least 0 and below 1, got {smoothing!r}.")
    activation = _last_activation(model)
    if activation is None:
        return
    least, most = _range_of(activation)
    are_probabilities = least >= 0 and most <= 1
    fits = (
        not are_probabilities
        if takes_logits
        else are_probabilities or (isinstance(loss, _OF_ALL_CLASSES) and least >= 0)
    )
    if not fits:
        usual = "sigmoid" if isinstance(loss, OF_EACH_CLASS) else "softmax"
        given = "softmax" if isinstance(activation, keras.layers.Layer) else keras.activations.serialize(activation)
        raise ValueError(
            f"resnet.Resnet.output_activation must be {usual!r}, or None together with {name}.from_logits = True; got "
            f"{given!r} and {takes_logits}."
        )


def _last_activation(model: keras.Model) -> Callable[[Any], Any] | None:
    """The activation of a model's last layer; None if the layer has none of its own."""
    layer = model.layers[-1]
    while isinstance(layer, keras.Model):
        layer = layer.layers[-1]
    return layer if isinstance(layer, keras.layers.Softmax) else getattr(layer, "activation", None)


def _range_of(activation: Callable[[Any], Any]) -> tuple[float, float]:
    """The least and the greatest of what an activation makes of the outputs of four classes."""
    outputs = keras.ops.convert_to_numpy(activation(keras.ops.convert_to_tensor([[-3.0, -0.5, 0.5, 3.0]])))
    return float(outputs.min()), float(outputs.max())


def check_list(callbacks: Any) -> None:
    """Checks that callbacks are given in a list.

    Args:
        callbacks: the argument of `train`.

    Raises:
        TypeError: they are not.
    """
    if not isinstance(callbacks, (list, tuple)):
        raise TypeError(f"train.train.callbacks must be a list, such as [@EarlyStopping()], got {callbacks!r}.")


def check_optimizer(optimizer: Any) -> None:
    """Refuses an optimizer that does not fit into a run.

    Args:
        optimizer: what `optimizer_cls` has returned.

    Raises:
        TypeError: it is no Keras optimizer.
        ValueError: it scales the loss, which the run does by itself, or is several optimizers in one.
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(f"train.train.optimizer_cls must return a Keras optimizer, got {reprlib.repr(optimizer)}.")
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            "train.train.optimizer_cls must return an optimizer without LossScaleOptimizer: the run scales the loss by "
            f"itself under 'mixed_float16'. Give {type(optimizer.inner_optimizer).__name__} alone."
        )
    if hasattr(optimizer, "optimizers"):
        raise ValueError(
            f"train.train.optimizer_cls must return one optimizer, with one learning rate, got "
            f"{type(optimizer).__name__}."
        )


def check_replicas(
    strategy: tf.distribute.Strategy,
    batch_size: int,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer | None,
    jit_compile: bool,
) -> None:
    """Refuses what several replicas cannot compute, or would compute differently from one.

    Args:
        strategy: of the run.
        batch_size: of all replicas together.
        model: a built model.
        optimizer: a built optimizer; None for a loop that only evaluates.
        jit_compile: whether XLA is to compile the steps.

    Raises:
        ValueError: the batch cannot be split evenly; or several replicas are to use XLA on CPUs, float64, or clipped
            gradients; or gradients are to be accumulated under a strategy that mirrors variables.
    """
    replicas = strategy.num_replicas_in_sync
    inner = distribution.without_loss_scaling(optimizer)
    merges = isinstance(strategy, (tf.distribute.MirroredStrategy, tf.distribute.MultiWorkerMirroredStrategy))
    if merges and getattr(inner, "gradient_accumulation_steps", None):
        raise ValueError(
            "gradient_accumulation_steps needs --strategy=one_device: TensorFlow cannot add up gradients over several "
            "steps if variables are mirrored. Give a greater data.load_datasets.batch_size in its place."
        )
    if batch_size % replicas:
        raise ValueError(
            f"data.load_datasets.batch_size must be a multiple of the {replicas} replicas, got {batch_size}."
        )
    if replicas == 1:
        return
    if jit_compile and not distribution.is_tpu(strategy) and not tf.config.list_physical_devices("GPU"):
        raise ValueError(
            f"train.train.jit_compile = True needs one replica, or GPUs, or a TPU: TensorFlow cannot add up the "
            f"gradients of {replicas} CPUs within compiled code."
        )
    if model.compute_dtype == "float64":
        raise ValueError(
            "train.train.dtype_policy = 'float64' needs one replica: strides stay float32, and TensorFlow adds up the "
            "gradients of replicas in one precision only."
        )
    if merges and getattr(inner, "ema_overwrite_frequency", None):
        raise ValueError(
            f"ema_overwrite_frequency needs one replica: TensorFlow cannot write averages into the variables of "
            f"{replicas} within a step. Leave it out: the averages are written when training ends."
        )
    clips = [name for name in ("clipnorm", "global_clipnorm", "clipvalue") if getattr(inner, name, None)]
    if clips:
        raise ValueError(
            f"{clips[0]} needs one replica: Keras would clip the gradients of each of the {replicas} by themselves."
        )


def resolved_policy(name: str, strategy: tf.distribute.Strategy, folder: RunFolder) -> str:
    """The dtype policy of a run.

    Args:
        name: the argument `dtype_policy` of `train`.
        strategy: of the run.
        folder: of the run.

    Returns:
        `name`. For 'auto', the policy that the run began with; for a new run, the policy that suits the devices.

    Raises:
        ValueError: `name` is not allowed.
        OSError: the folder's `run.json` is damaged.
    """
    validated_choice("train.train.dtype_policy", name, DTYPE_POLICIES)
    if name != "auto":
        return name
    if folder.has_begun():
        try:
            return folder.read_json("run.json")["dtype_policy"]
        except (KeyError, TypeError) as error:
            raise OSError(
                f"{folder.path / 'run.json'} is damaged: it does not say in which precision the run was begun. Put it "
                "right, or choose another workdir."
            ) from error
    return distribution.default_dtype_policy(strategy)


@contextlib.contextmanager
def global_dtype_policy(name: str) -> Iterator[None]:
    """Sets Keras's dtype policy while the context lasts.

    Args:
        name: such as 'mixed_bfloat16'.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
