"""Lets static crops follow the strides: `refresh_crops`, and the callback `CropRefresh`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.model_tools.inspection import diffstride_layers

HYSTERESIS = 0.02
"""By what share of itself a stride must pass the edge between two sizes before a static crop follows."""


def refresh_crops(model: keras.Model, input_shape: Sequence[int] | None = None, hysteresis: float = 0.0) -> bool:
    """Fixes the static crops of a model to what its strides ask for now, and with them the sizes of the maps between.

    Args:
        model: a built model.
        input_shape: (height, width, channels) of an image. The model's own where None.
        hysteresis: see `DiffStride.forget_crop`.

    Returns:
        Whether a crop changed: if so, what was traced before must be traced again.
    """
    layers = [layer for layer in diffstride_layers(model) if layer.crop_is_static]
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
            for layer in diffstride_layers(self.model):
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
