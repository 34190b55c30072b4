"""Runs of one step as a gin file says."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import keras

from diffstride_hybrid.config import gin_files, gin_names

TINY = ("train.train.num_epochs = 1", "train.train.steps_per_epoch = 1")


class Trained(NamedTuple):
    """What is left of a run of a config."""

    folder: Path
    summary: dict[str, Any]
    model: keras.Model
    unread: list[str]


class AtTheStart(keras.callbacks.Callback):
    """Notes which bindings nothing has read when training begins."""

    unread: list[str] | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        self.unread = gin_files.unread_bindings()


def train(folder: Path, data_dir: Path, file: Path, batch_size: int = 24) -> Trained:
    data = [f"data.load_datasets.{name}" for name in (f"data_dir = {str(data_dir)!r}", f"batch_size = {batch_size}")]
    is_imagenet = file.stem.startswith("imagenet")
    width = f"resnet.{'resnet34' if is_imagenet else 'resnet18'}.width = 4"
    image_size = ["data.load_datasets.image_size = 32"] if is_imagenet else []
    gin_files.parse([str(file)], [*TINY, width, *data, *image_size])
    callback = AtTheStart()
    summary = gin_names.configured_train(workdir=str(folder), callbacks=[callback])
    return Trained(folder, summary, callback.model, callback.unread)


def metrics_of(run: Trained) -> dict[str, float]:
    with open(run.folder / "metrics.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    return {name: float(value) for name, value in row.items()}
