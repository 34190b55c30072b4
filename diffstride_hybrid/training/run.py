"""Training and evaluation as plain functions: no flags, no gin.

One explicit loop serves every distribution strategy. Steps run inside a `tf.function`, many to a call, so that Python
and the device never wait for each other within an epoch.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.common import distribution, signals
from diffstride_hybrid.data.datasets import Datasets
from diffstride_hybrid.model_tools.crop_refresh import CropRefresh
from diffstride_hybrid.runs import figures, model_card
from diffstride_hybrid.runs.folder import FINAL_MODEL, RunFolder
from diffstride_hybrid.runs.logs import MetricsLog, StrideLog
from diffstride_hybrid.training.checks import check_loss, check_whole, global_dtype_policy, resolved_policy
from diffstride_hybrid.training.loop import TrainingLoop
from diffstride_hybrid.training.records import run_record, summarize
from diffstride_hybrid.training.runner import Runner


def train(
    load_data_fn: Callable[..., Datasets],
    model_cls: Callable[..., keras.Model],
    optimizer_cls: Callable[..., keras.optimizers.Optimizer],
    loss_cls: Callable[..., keras.losses.Loss] = keras.losses.CategoricalCrossentropy,
    num_epochs: int = 200,
    steps_per_epoch: int | None = None,
    steps_per_execution: int = 8,
    dtype_policy: str = "auto",
    jit_compile: bool = False,
    crop_refresh_steps: int | None = None,
    backup_every: int | None = None,
    on_not_finite: str = "stop",
    workdir: str = "runs/latest",
    seed: int = 1,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    check_folder: Callable[[RunFolder], None] | None = None,
) -> dict[str, Any]:
    """Trains a model where `tf.distribute.get_strategy()` says, and writes and returns what came out.

    A run that was stopped goes on from its last backup when it is started again in the same folder, and ends as it
    would have ended. Where several machines train, each calls this function, and one of them writes; all must be able
    to read the folder.

    Args:
        load_data_fn: called as `load_data_fn(seed=…)`.
        model_cls: called as `model_cls(num_output_classes=…)`.
        optimizer_cls: called without arguments.
        loss_cls: called without arguments. Takes one-hot labels and the model's outputs.
        num_epochs: how many epochs to train.
        steps_per_epoch: training steps in an epoch; one pass over the training images where None.
        steps_per_execution: training steps in one call of the compiled loop, between two looks at the progress.
        dtype_policy: 'float32', 'mixed_bfloat16', 'mixed_float16' (with loss scaling), 'float64', or 'auto' for what
            `distribution.default_dtype_policy` gives.
        jit_compile: whether XLA compiles the steps. On a TPU it always does.
        crop_refresh_steps: training steps between two looks at whether the static crops of `DiffStride` still are what
            the strides ask for, rounded up to whole executions. An epoch where None. Crops are static on a TPU, with
            `jit_compile`, and where a layer has `static_crop=True`.
        backup_every: training steps between two backups within an epoch, rounded up to whole executions. Where None
            there is one at the end of each epoch alone.
        on_not_finite: what to do when the loss or a gradient is not finite: 'stop' the run, or 'roll_back' to the last
            backup and go on without the batch, up to `MOST_LEFT_OUT` times.
        workdir: folder of the run.
        seed: of initial weights, order of the data, augmentation and mixup.
        callbacks: more Keras callbacks. Those that record the run are always there.
        check_folder: called once data, model and optimiser are made, before anything in the folder is read or changed.
            It raises where the run must not go on there.

    Returns:
        What `summary.json` holds: test accuracy and loss, MACs, strides and sizes, parameters, time.

    Raises:
        ValueError: an argument is out of range, or the folder holds a finished run.
        OSError: the folder cannot be written to, another process trains there, or all its backups are damaged.
        NotFiniteError: the loss or a gradient is not finite.
        Stopped: the process got SIGTERM or SIGINT. The state is on the disk.
    """
    check_whole("num_epochs", num_epochs)
    check_whole("steps_per_execution", steps_per_execution)
    for name, value in (
        ("steps_per_epoch", steps_per_epoch),
        ("crop_refresh_steps", crop_refresh_steps),
        ("backup_every", backup_every),
    ):
        if value is not None:
            check_whole(name, value)
    if on_not_finite not in ("stop", "roll_back"):
        raise ValueError(f"train.train.on_not_finite must be 'stop' or 'roll_back', got {on_not_finite!r}.")
    if not isinstance(jit_compile, bool):
        raise TypeError(f"train.train.jit_compile must be True or False, got {jit_compile!r}.")
    for name, maker in (
        ("load_data_fn", load_data_fn),
        ("model_cls", model_cls),
        ("optimizer_cls", optimizer_cls),
        ("loss_cls", loss_cls),
    ):
        if not callable(maker) or isinstance(maker, keras.losses.Loss):
            raise TypeError(f"train.train.{name} must be a class or a function, got {reprlib.repr(maker)}.")
    folder = RunFolder(workdir)
    if folder.is_finished():
        raise ValueError(f"{folder.path} holds a finished run: choose another workdir, or move that one away.")

    keras.utils.set_random_seed(seed)
    strategy = tf.distribute.get_strategy()
    advice = f"Start all of them again: training in {folder.path} goes on from its last backup."
    with (
        folder.locked(),
        signals.noting_signals() as request,
        global_dtype_policy(resolved_policy(dtype_policy, strategy, folder)),
        distribution.naming_lost_workers(strategy, advice),
    ):
        datasets = load_data_fn(seed=seed)
        loop = make_loop(datasets, model_cls, optimizer_cls, loss_cls, jit_compile=jit_compile)
        steps_per_epoch = steps_per_epoch or datasets.steps_per_epoch
        loop.start(0)  # Here what augmentation is bound to is read, and so becomes part of the config.
        if check_folder is not None:
            check_folder(folder)
        run = Runner(
            loop, folder, num_epochs, steps_per_epoch, steps_per_execution, backup_every, on_not_finite, request
        )
        run.resume()
        own = [CropRefresh(crop_refresh_steps or steps_per_epoch, input_shape=datasets.image_shape)]
        if folder.writes:
            own += [
                MetricsLog(folder, datasets.image_shape),
                StrideLog(folder, datasets.image_shape),
            ]
        listeners = keras.callbacks.CallbackList(
            [*callbacks, *own], model=loop.model, epochs=num_epochs, steps=steps_per_epoch
        )
        listeners.on_train_begin()
        folder.write_json("run.json", run_record(loop, seed))
        request.can_wait = True
        run.train(listeners)
        listeners.on_train_end()
        folder.write_model(FINAL_MODEL, loop.model)
        summary = summarize(loop, num_epochs, run.progress)
        if folder.writes:
            figures.write_figures(folder)
            model_card.write_model_card(folder, summary)
        folder.write_json("summary.json", summary)
        # The others must not leave while the chief writes: it would take them for dead.
        distribution.wait_for_all_workers(strategy)
        return summary


def make_loop(
    datasets: Datasets,
    model_cls: Callable[..., keras.Model],
    optimizer_cls: Callable[..., keras.optimizers.Optimizer],
    loss_cls: Callable[..., keras.losses.Loss],
    jit_compile: bool = False,
) -> TrainingLoop:
    """Builds a model and its optimiser under the current strategy and dtype policy, and the loop that trains them.

    Args:
        datasets: what to train on.
        model_cls: see `train`.
        optimizer_cls: see `train`.
        loss_cls: see `train`.
        jit_compile: see `train`.

    Returns:
        The loop.

    Raises:
        ValueError: the loss does not take what the model gives, its smoothing of the labels is out of range, or a layer
            or the strategy cannot be compiled.
    """
    strategy = tf.distribute.get_strategy()
    with strategy.scope():
        model = model_cls(num_output_classes=datasets.num_classes)
        model.build((None, *datasets.image_shape))
        optimizer = optimizer_cls()
        if model.compute_dtype == "float16":
            optimizer = distribution.LossScaleOptimizer(optimizer)
        optimizer.build(model.trainable_variables)
        loss = loss_cls()
    check_loss(loss, model)
    return TrainingLoop(model, optimizer, loss, datasets, strategy, jit_compile)


def evaluate(model: keras.Model, loss: keras.losses.Loss, datasets: Datasets, split: str = "test") -> dict[str, float]:
    """Loss, weight decay included, and accuracy of a model on a split, every image counted once.

    Args:
        model: a built model.
        loss: takes one-hot labels and the model's outputs.
        datasets: the data set.
        split: 'train', 'validation' or 'test'.

    Returns:
        `loss` and `accuracy`.

    Raises:
        ValueError: the split has no images.
    """
    if datasets.splits[split].size == 0:
        raise ValueError(f"The {split} split of {datasets.name} has no images.")
    return TrainingLoop(model, None, loss, datasets, tf.distribute.get_strategy()).evaluate(split)
