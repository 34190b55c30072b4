"""Keras callbacks that record a run. They serve `training.train` and a user's own `Model.fit` alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid import complexity
from diffstride_hybrid.run_folder import RunFolder


def stride_row(model: keras.Model, input_shape: Sequence[int]) -> dict[str, float | int]:
    """Strides and real output size of every pooling layer as the model stands, by the layer's path in the model.

    Args:
        model: a built model.
        input_shape: (height, width, channels) of an image.

    Returns:
        `{path}/vertical_stride` and `{path}/horizontal_stride` for each `DiffStride` layer, `{path}/height` and
        `{path}/width` for each pooling layer, in the order of the model, and `macs`, those of one image.
    """
    cost = complexity.macs(model, input_shape)
    strides = {layer.path: layer.strides.numpy().tolist() for layer in complexity.diffstride_layers(model)}
    row: dict[str, float | int] = {}
    for path, (_, (height, width)) in cost.pooling_sizes().items():
        name = path.removeprefix(f"{model.name}/")
        if path in strides:
            row[f"{name}/vertical_stride"] = strides[path][0]
            row[f"{name}/horizontal_stride"] = strides[path][-1]
        row[f"{name}/height"] = height
        row[f"{name}/width"] = width
    return {**row, "macs": cost.macs}


class StrideLog(keras.callbacks.Callback):
    """Writes strides, real output sizes and MACs to `strides.csv`, a row an epoch and one for the start.

    Args:
        folder: the run's folder, or its path.
        input_shape: (height, width, channels) of an image. The model's own where None.
    """

    def __init__(self, folder: RunFolder | str, input_shape: Sequence[int] | None = None):
        super().__init__()
        self._folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
        self._input_shape = input_shape

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if not self._folder.read_rows("strides.csv"):
            self._write(0)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._write(epoch + 1)

    def _write(self, epoch: int) -> None:
        shape = self._input_shape or self.model.input_shape[1:]
        self._folder.write_epoch_row("strides.csv", {"epoch": epoch, **stride_row(self.model, shape)})


class MetricsLog(keras.callbacks.Callback):
    """Writes a row an epoch to `metrics.csv`, and the same figures and the strides as TensorBoard events.

    Args:
        folder: the run's folder, or its path.
    """

    def __init__(self, folder: RunFolder | str):
        super().__init__()
        self._folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
        self._events: tf.summary.SummaryWriter | None = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        self._events = tf.summary.create_file_writer(str(self._folder.tensorboard))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        logs = dict(logs or {})
        self._folder.write_epoch_row("metrics.csv", {"epoch": epoch + 1, **logs})
        with self._events.as_default(step=epoch + 1):
            for name, value in logs.items():
                tf.summary.scalar(name, value)
            for layer in complexity.diffstride_layers(self.model):
                name = layer.path.removeprefix(f"{self.model.name}/")
                strides = layer.strides.numpy()
                tf.summary.scalar(f"strides/{name}/vertical", strides[0])
                tf.summary.scalar(f"strides/{name}/horizontal", strides[-1])
        self._events.flush()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        self._events.close()
