"""Training runs that take a second or two, and readers of the files that they leave."""

import contextlib
import csv
import json
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest

from diffstride_hybrid import DiffStride, Resnet, SpectralPooling
from diffstride_hybrid.data.augmentation import augment
from diffstride_hybrid.data.loading import load_datasets
from diffstride_hybrid.runs.folder import RunFolder
from diffstride_hybrid.training import run as run_module

digits = partial(load_datasets, "digits", batch_size=64)
small_digits = partial(digits, image_size=16)
large_batches = partial(small_digits, batch_size=360)  # All test images in one batch.
random_digits = partial(small_digits, augment_fn=augment, mixup_alpha=0.2)

hybrid = {"output_activation": "softmax", "pooling_cls": DiffStride, "head_pooling_cls": SpectralPooling}
small = partial(Resnet, [4, 6], [1, 2], num_layers=1, **hybrid)

Schedule = partial(keras.optimizers.schedules.PiecewiseConstantDecay, [2], [0.1, 0.05])

SMALL_HYBRID = """
train.train:
  model_cls = @resnet.Resnet
  optimizer_cls = @tf.keras.optimizers.SGD
  num_epochs = 2
  steps_per_epoch = 10
tf.keras.optimizers.SGD:
  learning_rate = 0.01
  momentum = 0.9
data.load_datasets:
  name = 'digits'
  image_size = 16
  batch_size = 64
  augment_fn = @data.augment
  mixup_alpha = 0.2
resnet.Resnet:
  filters = [4, 6]
  strides = [1, 2]
  num_layers = 1
  output_activation = 'softmax'
  pooling_cls = @pooling.DiffStride
  head_pooling_cls = @pooling.SpectralPooling
batch_norm.synchronized = True
"""
"""A gin file of a run of two epochs of ten steps each."""


def optimizer() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(Schedule(), momentum=0.9)


def train(workdir: Path, draws: bool = False, **options: Any) -> dict[str, Any]:
    """Trains `small` for two epochs of two steps each, and draws its figures if asked to.

    `options` replace these arguments of `train`.
    """
    arguments = {
        "load_data_fn": random_digits,
        "model_cls": small,
        "optimizer_cls": optimizer,
        "num_epochs": 2,
        "steps_per_epoch": 2,
        "workdir": str(workdir),
        **options,
    }
    with contextlib.nullcontext() if draws else mock.patch.object(run_module.figures, "write_figures"):
        return run_module.train(**arguments)


def train_a_step(workdir: Path, **options: Any) -> dict[str, Any]:
    options = {"load_data_fn": large_batches, "num_epochs": 1, "steps_per_epoch": 1, **options}
    return train(workdir, **options)


def functional(num_output_classes: int, activation: keras.layers.Layer | None = None) -> keras.Model:
    """A small model that is not a `Resnet`."""
    inputs = keras.Input((16, 16, 1))
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    x = keras.layers.ReLU()(DiffStride(strides=2, name="learned")(x))
    x = SpectralPooling(strides=2, name="fixed")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(num_output_classes, activation=None if activation else "softmax")(x)
    return keras.Model(inputs, activation(outputs) if activation else outputs)


class Stop(keras.callbacks.Callback):
    """Raises `InterruptedError` at an event of an epoch, such as 'on_epoch_begin'."""

    def __init__(self, event: str, epoch: int):
        super().__init__()
        setattr(self, event, partial(self.stop, epoch))

    def stop(self, at_epoch: int, epoch: int, logs: Any = None) -> None:
        if epoch == at_epoch:
            raise InterruptedError("stopped")


def load(folder: Path, name: str = "final.keras") -> keras.Model:
    return keras.saving.load_model(folder / name)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def json_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def read(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines printed since the last call."""
    return capsys.readouterr().out.splitlines()


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """The content and time of every file of a folder, except for the lock, which nobody reads."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RunFolder.LOCK)
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def assert_same_weights(model: keras.Model, other: keras.Model) -> None:
    for weight, other_weight in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), other_weight.numpy(), err_msg=weight.path)
