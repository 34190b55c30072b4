"""Keras callbacks that record a run and refresh static crops, in `training.train` and in a user's own `Model.fit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid import complexity
from diffstride_hybrid.errors import one_line
from diffstride_hybrid.run_folder import RunFolder

HYSTERESIS = 0.02
"""By what share of itself a stride must pass the edge between two sizes before a static crop follows."""


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
    strides = complexity.strides_by_path(model)
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
        # A run that goes on where its rows are lost is not at its start.
        if not self._folder.read_rows("strides.csv") and not self._folder.has_begun():
            self._write(0)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._write(epoch + 1)

    def _write(self, epoch: int) -> None:
        shape = self._input_shape or self.model.input_shape[1:]
        self._folder.write_epoch_row("strides.csv", {"epoch": epoch, **stride_row(self.model, shape)})


class MetricsLog(keras.callbacks.Callback):
    """Writes a row an epoch to `metrics.csv`, and as TensorBoard events the same figures, strides, sizes and MACs.

    Args:
        folder: the run's folder, or its path.
        input_shape: (height, width, channels) of an image. The model's own where None.
    """

    def __init__(self, folder: RunFolder | str, input_shape: Sequence[int] | None = None):
        super().__init__()
        self._folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
        self._input_shape = input_shape
        self._events: tf.summary.SummaryWriter | None = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if self._folder.writes:
            self._events = tf.summary.create_file_writer(str(self._folder.tensorboard))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        logs = dict(logs or {})
        if self._events is None:
            return
        self._folder.write_epoch_row("metrics.csv", {"epoch": epoch + 1, **logs})
        for name, value in stride_row(self.model, self._input_shape or self.model.input_shape[1:]).items():
            layer, _, part = name.rpartition("/")
            kind = "strides" if part.endswith("_stride") else "sizes"
            logs[f"{kind}/{layer}/{part.removesuffix('_stride')}" if layer else name] = float(value)
        try:
            with self._events.as_default(step=epoch + 1):
                for name, value in logs.items():
                    tf.summary.scalar(name, value)
            self._events.flush()
        except tf.errors.OpError as error:
            raise OSError(f"The events in {self._folder.tensorboard} cannot be written: {one_line(error)}") from error

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        if self._events is not None:
            self._events.close()


def refresh_crops(model: keras.Model, input_shape: Sequence[int] | None = None, hysteresis: float = 0.0) -> bool:
    """Fixes the static crops of a model to what its strides ask for now, and with them the sizes of the maps between.

    Args:
        model: a built model.
        input_shape: (height, width, channels) of an image. The model's own where None.
        hysteresis: see `DiffStride.forget_crop`.

    Returns:
        Whether a crop changed: if so, what was traced before must be traced again.
    """
    layers = [layer for layer in complexity.diffstride_layers(model) if layer.crop_is_static]
    if not layers:
        return False
    before = [layer.crops for layer in layers]
    for layer in layers:
        layer.forget_crop(hysteresis)
    model(tf.zeros([1, *(input_shape or model.input_shape[1:])], model.compute_dtype), training=False)
    # A size that is not met any more changes nothing.
    return any(crops.get(size) != crop for layer, crops in zip(layers, before) for size, crop in layer.crops.items())


class CropRefresh(keras.callbacks.Callback):
    """Lets static crops follow the strides: compares both now and then, and has the step traced anew on a difference.

    Args:
        every_steps: training steps between two comparisons. An epoch where None.
        hysteresis: see `DiffStride.forget_crop`.
        input_shape: (height, width, channels) of an image. The model's own where None.

    Attributes:
        changes: how often the crops have changed.
    """

    def __init__(
        self,
        every_steps: int | None = None,
        hysteresis: float = HYSTERESIS,
        input_shape: Sequence[int] | None = None,
    ):
        super().__init__()
        self.changes = 0
        self._every_steps = every_steps
        self._hysteresis = hysteresis
        self._input_shape = input_shape
        self._steps = self._steps_before_epoch = 0

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if self.model.compiled and self.model.jit_compile:
            for layer in complexity.diffstride_layers(self.model):
                layer.fix_crop()

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        steps_per_epoch = self.params.get("steps")
        # Counted from the first epoch, so that a resumed run looks at the same steps.
        self._steps = self._steps_before_epoch = epoch * steps_per_epoch if steps_per_epoch else self._steps

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        # Not only what ended before: a run may go on within an epoch, or go back.
        self._steps = self._steps_before_epoch + batch

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        steps = self._steps_before_epoch + batch + 1
        if self._every_steps is not None and steps // self._every_steps > self._steps // self._every_steps:
            self._refresh()
        self._steps = steps

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        if self._every_steps is None:
            self._refresh()

    def _refresh(self) -> None:
        if not refresh_crops(self.model, self._input_shape, self._hysteresis):
            return
        self.changes += 1
        # Where Keras trains, its compiled functions hold the old crops. `training.TrainingLoop` looks by itself.
        self.model.test_function = self.model.predict_function = None
        if self.model.train_function is not None:
            self.model.make_train_function(force=True)
