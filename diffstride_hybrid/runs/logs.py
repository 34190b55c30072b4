"""Keras callbacks that record a run: `metrics.csv`, `strides.csv` and TensorBoard events."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.common.errors import one_line
from diffstride_hybrid.model_tools.inspection import short_path, strides_by_path
from diffstride_hybrid.model_tools.macs import ModelCost, macs
from diffstride_hybrid.runs.folder import RunFolder


def stride_row(model: keras.Model, cost: ModelCost) -> dict[str, float | int]:
    """The present strides and output sizes of every pooling layer, and the MACs of the model.

    Args:
        model: a built model.
        cost: of the model at its present strides.

    Returns:
        In the order of the model, with the layer's path in the model as `{path}`: for each `DiffStride` layer
        `{path}/vertical_stride` and `{path}/horizontal_stride`, for each pooling layer `{path}/height` and
        `{path}/width` of its output in samples. Last `macs`, the multiply-accumulate operations for one image.

    Example:
        >>> from diffstride_hybrid.runs.logs import stride_row
        >>> model = keras.Sequential([keras.Input((16, 16, 1)), DiffStride(2.0, name="pool")])
        >>> row = stride_row(model, macs(model))
        >>> list(row)
        ['pool/vertical_stride', 'pool/horizontal_stride', 'pool/height', 'pool/width', 'macs']
    """
    strides = strides_by_path(model)
    row: dict[str, float | int] = {}
    for path, (_, (height, width)) in cost.pooling_sizes().items():
        name = short_path(model, path)
        if path in strides:
            row[f"{name}/vertical_stride"] = strides[path][0]
            row[f"{name}/horizontal_stride"] = strides[path][-1]
        row[f"{name}/height"] = height
        row[f"{name}/width"] = width
    return {**row, "macs": cost.macs}


class _RunLog(keras.callbacks.Callback):
    """Writes into the folder of a run.

    Args:
        folder: the run's folder, or its path.
        cost: counts the cost of the model at its present strides. If None, `macs` does, with the model's input shape.
        macs_target: returns the scheduled MACs after a number of epochs; None if there is no budget, and no column for
            it.
    """

    def __init__(
        self,
        folder: RunFolder | str,
        cost: Callable[[], ModelCost] | None = None,
        macs_target: Callable[[int], int] | None = None,
    ):
        super().__init__()
        self._folder = folder if isinstance(folder, RunFolder) else RunFolder(folder)
        self._cost = cost
        self._macs_target = macs_target

    def _stride_row(self, epoch: int) -> dict[str, float | int]:
        row = stride_row(self.model, macs(self.model) if self._cost is None else self._cost())
        return row if self._macs_target is None else {**row, "macs_target": self._macs_target(epoch)}


class StrideLog(_RunLog):
    """Writes strides, output sizes and MACs to `strides.csv`: a row for the start, and one after each epoch.

    Args:
        folder: the run's folder, or its path.
        cost: counts the cost of the model at its present strides. If None, `macs` does, with the model's input shape.
        macs_target: returns the scheduled MACs after a number of epochs; None if there is no budget, and no column for
            it.

    Raises:
        OSError: the folder cannot be made or written to.
    """

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        # Without its rows, a resumed run looks as if it were at its start. `run.json` tells that it is not.
        if not self._folder.read_rows("strides.csv") and not self._folder.has_begun():
            self._write(0)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        self._write(epoch + 1)

    def _write(self, epoch: int) -> None:
        self._folder.write_epoch_row("strides.csv", {"epoch": epoch, **self._stride_row(epoch)})


class MetricsLog(_RunLog):
    """Writes the metrics of each epoch to `metrics.csv`, and metrics, strides, sizes and MACs as TensorBoard events.

    Args:
        folder: the run's folder, or its path.
        cost: counts the cost of the model at its present strides. If None, `macs` does, with the model's input shape.
        macs_target: returns the scheduled MACs after a number of epochs; None if there is no budget, and no column for
            it.

    Raises:
        OSError: the folder cannot be made or written to.
    """

    def __init__(
        self,
        folder: RunFolder | str,
        cost: Callable[[], ModelCost] | None = None,
        macs_target: Callable[[int], int] | None = None,
    ):
        super().__init__(folder, cost, macs_target)
        self._events: tf.summary.SummaryWriter | None = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        if self._folder.writes:
            self._events = tf.summary.create_file_writer(str(self._folder.tensorboard))

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        logs = dict(logs or {})
        if self._events is None:
            return
        self._folder.write_epoch_row("metrics.csv", {"epoch": epoch + 1, **logs})
        for name, value in self._stride_row(epoch + 1).items():
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
