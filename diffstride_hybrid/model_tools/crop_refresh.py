"""Lets static crops follow the strides: `refresh_crops`, and the callback `CropRefresh`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.model_tools.inspection import diffstride_layers

HYSTERESIS = 0.02
"""A stride must pass the boundary between two sizes by this share of itself before a static crop changes size."""


def refresh_crops(model: keras.Model, input_shape: Sequence[int] | None = None, hysteresis: float = 0.0) -> bool:
    """Sets the static crops of a model, and with them the sizes of its maps, to what its strides ask for now.

    Layers whose crop is not static are left alone. The function runs one blank image through the model.

    Args:
        model: a built model.
        input_shape: (height, width, channels) of an image, or (time, channels) of a signal. The model's own if None.
        hysteresis: by what share of itself a stride must have passed the boundary between two sizes before the crop
            changes size. 0 changes it at once.

    Returns:
        Whether a crop has changed. If so, functions that were traced before still compute the old sizes and must be
        traced again.

    Example:
        >>> model = keras.Sequential([keras.Input((32, 32, 3)), DiffStride(2.0, static_crop=True)])
        >>> model.layers[0].strides.assign([4.0, 4.0])
        <...>
        >>> model(np.zeros([1, 32, 32, 3])).shape, refresh_crops(model), model(np.zeros([1, 32, 32, 3])).shape
        (TensorShape([1, 24, 24, 3]), True, TensorShape([1, 16, 16, 3]))
    """
    layers = [layer for layer in diffstride_layers(model) if layer.crop_is_static]
    if not layers:
        return False
    before = [layer.crops for layer in layers]
    for layer in layers:
        layer.forget_crop(hysteresis)
    model(tf.zeros([1, *(input_shape or model.input_shape[1:])], model.compute_dtype), training=False)
    # A crop is kept for each size of input. Sizes that no longer occur do not count as a change.
    return any(crops.get(size) != crop for layer, crops in zip(layers, before) for size, crop in layer.crops.items())


class CropRefresh(keras.callbacks.Callback):
    """A callback that lets static crops follow the strides during training.

    It compares both now and then. Where a crop has changed, it lets Keras trace the training step again. Under
    `compile(jit_compile=True)` it also fixes the crops of layers whose `static_crop` is None, as XLA needs.

    Args:
        every_steps: number of training steps between two comparisons. None compares after every epoch.
        hysteresis: by what share of itself a stride must have passed the boundary between two sizes before the crop
            changes size. It keeps a stride that wavers at a boundary from causing a new trace each time.
        input_shape: (height, width, channels) of an image, or (time, channels) of a signal. The model's own if None.

    Attributes:
        changes: how often the crops have changed.

    Example:
        >>> model = keras.Sequential([keras.Input((16, 16, 1)), DiffStride(2.0, static_crop=True)])
        >>> model.compile("sgd", "mse")
        >>> refresh = CropRefresh(every_steps=10)
        >>> _ = model.fit(np.zeros([2, 16, 16, 1]), np.zeros([2, 16, 16, 1]), callbacks=[refresh], verbose=0)
        >>> refresh.changes
        0
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
        # Count from the first epoch, so that a resumed run compares at the same steps as an uninterrupted one.
        self._steps = self._steps_before_epoch = epoch * steps_per_epoch if steps_per_epoch else self._steps

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        # A resumed or rolled-back run does not start at batch 0.
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
        # In `fit`, the compiled functions of Keras hold the old crops. `TrainingLoop` compares the crops by itself.
        self.model.test_function = self.model.predict_function = None
        if self.model.train_function is not None:
            self.model.make_train_function(force=True)
