"""Training and evaluation as plain functions, without flags and without gin.

One explicit loop serves every distribution strategy. A `tf.function` runs many steps in one call, so that the device
does not wait for Python within an epoch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.common import distribution, signals
from diffstride_hybrid.data.datasets import Datasets
from diffstride_hybrid.model_tools.crop_refresh import CropRefresh, held_crops
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.model_tools.macs_budget import MacsBudget
from diffstride_hybrid.runs import figures, model_card
from diffstride_hybrid.runs.folder import FINAL_MODEL, RunFolder, read_json
from diffstride_hybrid.runs.logs import MetricsLog, StrideLog
from diffstride_hybrid.training.callback_checks import WRITERS, check_callbacks
from diffstride_hybrid.training.checks import (
    check_budget,
    check_choices,
    check_counts,
    check_list,
    check_loss,
    check_makers,
    check_optimizer,
    check_optional_counts,
    check_stride_pace,
    global_dtype_policy,
    resolved_policy,
)
from diffstride_hybrid.training.fused_updates import fuse_updates
from diffstride_hybrid.training.listeners import Listeners
from diffstride_hybrid.training.loop import TrainingLoop
from diffstride_hybrid.training.optimizers import keep_from_decay, pace_strides
from diffstride_hybrid.training.records import check_seed, data_as_recorded, run_record, summarize
from diffstride_hybrid.training.runner import Runner, Schedule
from diffstride_hybrid.training.schedule_check import warn_of_schedule


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
    stride_learning_rate: float = 1.0,
    stride_warmup_epochs: int = 0,
    macs_budget: float | None = None,
    macs_budget_epoch: int | None = None,
    check_folder: Callable[[RunFolder], None] | None = None,
) -> dict[str, Any]:
    """Trains a model under `tf.distribute.get_strategy()`, and writes and returns the results.

    A run that was stopped goes on from its last backup when it is started again in the same folder, and ends with the
    same results as a run that was not stopped. If several workers train, each of them calls this function, one of them
    writes, and all of them must be able to read the folder.

    Args:
        load_data_fn: called as `load_data_fn(seed=…)`; returns `Datasets`.
        model_cls: called as `model_cls(num_output_classes=…)`.
        optimizer_cls: called without arguments.
        loss_cls: called without arguments. The loss takes one-hot labels and the model's outputs.
        num_epochs: the epochs to train.
        steps_per_epoch: training steps in an epoch; None for one pass over the training images.
        steps_per_execution: training steps in one call of the compiled loop. Signals, callbacks and backups wait for
            the end of the call.
        dtype_policy: 'float32', 'mixed_bfloat16', 'mixed_float16' (with loss scaling), 'float64', or 'auto' for the
            policy that `distribution.default_dtype_policy` returns.
        jit_compile: whether XLA compiles the steps. On a TPU it always does.
        crop_refresh_steps: training steps between two checks whether the static crops of `DiffStride` still fit the
            strides, rounded up to whole executions; None for an epoch. Crops are static on a TPU, with `jit_compile`,
            and in layers with `static_crop=True`.
        backup_every: training steps between two backups within an epoch, rounded up to whole executions; None for
            backups after each epoch only.
        on_not_finite: what to do if the loss or a gradient is not finite: 'stop' the run, or 'roll_back' to the last
            backup and go on without the batch, up to `runner.MOST_LEFT_OUT` (10) times.
        workdir: folder of the run.
        seed: of initial weights, order of the data, augmentation and mixup.
        callbacks: more Keras callbacks, beside the ones that record the run. Their state is kept in the backups: what
            `Listeners.state` says. `EarlyStopping` and others may end the run early.
        stride_learning_rate: of the strides, as a factor of the optimizer's learning rate.
        stride_warmup_epochs: first epochs in which the strides rest and the other weights are trained.
        macs_budget: target of a `MacsBudget`: at most 1, a share of the MACs at the initial strides; above 1, a number
            of MACs for one image. The best model is the best one from the epoch on in which it is reached. If None,
            there is no budget.
        macs_budget_epoch: number of epochs after which the target is reached. If None, half of `num_epochs`, at least
            1 and after `stride_warmup_epochs`.
        check_folder: called with the run's folder after data, model and optimizer are made, and before its backups are
            read and anything in it is changed. Only `run.json` has been read by then. It raises an error if the run
            must not go on there. A start that fails before it has written `run.json`, just before the first epoch, has
            not begun a run.

    Returns:
        The values of `summary.json`: test accuracy and loss, MACs, strides and sizes, parameters, time.

    Raises:
        TypeError: an argument is of a wrong type.
        ValueError: an argument is out of range, or the folder holds a finished run.
        OSError: the folder cannot be written to, another process trains there, or all its backups are damaged.
        NotFiniteError: the loss or a gradient is not finite.
        Stopped: the process got SIGTERM or SIGINT. The state is on the disk.
    """
    check_counts(num_epochs=num_epochs, steps_per_execution=steps_per_execution)
    check_optional_counts(
        steps_per_epoch=steps_per_epoch, crop_refresh_steps=crop_refresh_steps, backup_every=backup_every
    )
    check_choices(on_not_finite, jit_compile)
    check_stride_pace(stride_learning_rate, stride_warmup_epochs)
    check_budget(macs_budget, macs_budget_epoch, num_epochs, stride_warmup_epochs)
    check_list(callbacks)
    check_makers(load_data_fn=load_data_fn, model_cls=model_cls, optimizer_cls=optimizer_cls, loss_cls=loss_cls)
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
        contextlib.ExitStack() as stack,
    ):
        datasets = load_data_fn(seed=seed)
        if folder.has_begun():
            path = folder.path / "run.json"
            record = read_json(path)
            check_seed(record, path, seed)
            datasets = data_as_recorded(datasets, record, path, datasets.splits, resumes=True)
        loop = make_loop(datasets, model_cls, optimizer_cls, loss_cls, jit_compile=jit_compile)
        stack.enter_context(held_crops(loop.model))
        strides = [layer.strides for layer in diffstride_layers(loop.model) if layer.trainable]
        steps_per_epoch = steps_per_epoch or datasets.steps_per_epoch
        pace_strides(loop.optimizer, strides, stride_learning_rate, stride_warmup_epochs * steps_per_epoch)
        rolls_back = on_not_finite == "roll_back"
        budget = None
        if macs_budget is not None:
            budget = MacsBudget(macs_budget, macs_budget_epoch, input_shape=datasets.image_shape)
            budget.rest_epochs = stride_warmup_epochs
        best_from = 1 if budget is None else budget.last_epoch_of(num_epochs)
        schedule = Schedule(num_epochs, steps_per_epoch, steps_per_execution, backup_every, rolls_back, best_from)
        others = [*([] if budget is None else [budget]), *callbacks]
        check_callbacks(others, loop.optimizer, num_epochs, datasets.splits["validation"].size > 0)
        warn_of_schedule(loop.optimizer, num_epochs, steps_per_epoch)
        loop.start(0)  # This reads the bindings of augmentation, so that they become part of the operative config.
        if check_folder is not None:
            check_folder(folder)
        begins_with = run_record(loop, seed)  # Its MACs are those at the initial strides.
        runner = Runner(loop, folder, schedule, request)
        runner.resume()
        listeners = _listeners(loop, folder, schedule, others, crop_refresh_steps, budget)
        stack.callback(listeners.close)
        runner.begin(listeners)
        folder.write_json("run.json", begins_with)
        request.can_wait = True
        runner.train()
        with loop.following_crops():
            loop.finalize_weights()
            listeners.on_train_end()  # As in Keras, a callback may bring other weights back.
            if budget is not None:
                budget.finish()
        summary = _write_results(loop, folder, runner, budget)
        # The other workers must not leave while the chief writes: it would take them for dead.
        distribution.wait_for_all_workers(strategy)
        return summary


def make_loop(
    datasets: Datasets,
    model_cls: Callable[..., keras.Model],
    optimizer_cls: Callable[..., keras.optimizers.Optimizer],
    loss_cls: Callable[..., keras.losses.Loss],
    jit_compile: bool = False,
) -> TrainingLoop:
    """Builds a model and its optimizer under the current strategy and dtype policy, and the loop that trains them.

    Args:
        datasets: the data set to train and evaluate on.
        model_cls: called as `model_cls(num_output_classes=…)`.
        optimizer_cls: called without arguments.
        loss_cls: called without arguments. The loss takes one-hot labels and the model's outputs.
        jit_compile: whether XLA compiles the steps. On a TPU it always does.

    Returns:
        The loop.

    Raises:
        TypeError: `optimizer_cls` returns no Keras optimizer.
        ValueError: the loss does not fit the model's outputs, its label smoothing is out of range, the optimizer cannot
            serve a run, a layer cannot be compiled, or the strategy cannot do what is asked.
    """
    strategy = tf.distribute.get_strategy()
    with strategy.scope():
        model = model_cls(num_output_classes=datasets.num_classes)
        model.build((None, *datasets.image_shape))
        optimizer = optimizer_cls()
        check_optimizer(optimizer)
        fuse_updates(optimizer)
        keep_from_decay(optimizer, [layer.strides for layer in diffstride_layers(model)])
        if model.compute_dtype == "float16":
            optimizer = distribution.LossScaleOptimizer(optimizer)
        optimizer.build(model.trainable_variables)
        loss = loss_cls()
    check_loss(loss, model)
    return TrainingLoop(model, optimizer, loss, datasets, strategy, jit_compile)


def evaluate(model: keras.Model, loss: keras.losses.Loss, datasets: Datasets, split: str = "test") -> dict[str, float]:
    """Evaluates a model on a split, every image counted once.

    Args:
        model: a built model.
        loss: takes one-hot labels and the model's outputs.
        datasets: the data set.
        split: 'train', 'validation' or 'test'.

    Returns:
        `loss`, which includes weight decay, and `accuracy`, a fraction.

    Raises:
        ValueError: the split has no images.

    Example:
        >>> from diffstride_hybrid.data.loading import load_datasets
        >>> from diffstride_hybrid.training.run import evaluate
        >>> classifier = [keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")]
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), *classifier])
        >>> datasets = load_datasets("digits", image_size=8)
        >>> sorted(evaluate(model, keras.losses.CategoricalCrossentropy(), datasets))
        ['accuracy', 'loss']
    """
    if datasets.splits[split].size == 0:
        raise ValueError(f"The {split} split of {datasets.name} has no images.")
    return TrainingLoop(model, None, loss, datasets, tf.distribute.get_strategy()).evaluate(split)


def _listeners(
    loop: TrainingLoop,
    folder: RunFolder,
    schedule: Schedule,
    callbacks: Sequence[keras.callbacks.Callback],
    crop_refresh_steps: int | None,
    budget: MacsBudget | None,
) -> Listeners:
    """The budget and the user's callbacks, and after them the ones that refresh crops and record the run."""
    refresh = CropRefresh(crop_refresh_steps or schedule.steps_per_epoch, input_shape=loop.datasets.image_shape)
    own: list[keras.callbacks.Callback] = [refresh]
    if folder.writes:
        macs_target = None if budget is None else budget.macs_target
        own += [MetricsLog(folder, loop.cost, macs_target), StrideLog(folder, loop.cost, macs_target)]
    else:
        # A callback that does nothing stands in, because backups tell the callbacks by their places in the list.
        callbacks = [keras.callbacks.Callback() if type(each) in WRITERS else each for each in callbacks]
    return Listeners(loop, callbacks, own, schedule.num_epochs, schedule.steps_per_epoch)


def _write_results(loop: TrainingLoop, folder: RunFolder, runner: Runner, budget: MacsBudget | None) -> dict[str, Any]:
    """Writes the final model, the figures, the model card and, last, the summary, which it returns."""
    folder.write_model(FINAL_MODEL, loop.model)
    summary = summarize(loop, runner.evaluate("test"), runner.progress, None if budget is None else budget.goal)
    if folder.writes:
        figures.write_figures(folder)
        model_card.write_model_card(folder, summary)
    folder.write_json("summary.json", summary)
    return summary
