"""Lets static crops follow the strides: `refresh_crops`, and the callback `CropRefresh`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import keras

from diffstride_hybrid.backends import current
from diffstride_hybrid.common.arguments import validated_whole
from diffstride_hybrid.layers.static_crop import StaticCrop
from diffstride_hybrid.model_tools.inspection import blank_inputs, diffstride_layers, run_on_blank

HYSTERESIS = 0.02
"""A stride must pass the boundary between two sizes by this share of itself before a static crop changes size."""


def refresh_crops(model: keras.Model, input_shape: Any = None, hysteresis: float = 0.0) -> bool:
    """Sets the static crops of a model, and with them the sizes of its maps, to what its strides ask for now.

    With hysteresis this concerns training: inference has the sizes that the strides ask for. Layers whose crop is not
    static are left alone. The function runs one blank example through the model. If the sizes of its inputs are not
    known, as in a subclassed model, it sets the crops for the sizes of maps met so far.

    Args:
        model: a built model.
        input_shape: (height, width, channels) of an image, or (time, channels) of a signal; for a model of several
            inputs a list of shapes, or a dictionary by their names. The model's own if None.
        hysteresis: by what share of itself a stride must have passed the boundary between two sizes before the crop
            changes size. 0 changes it at once.

    Returns:
        Whether a crop has changed, or differs from that in a function traced before. Keras's own functions are then
        traced again by themselves. A `tf.function` of your own still computes the old sizes and must be traced again.

    Raises:
        ValueError: `input_shape` does not fit the model.

    Example:
        >>> model = keras.Sequential([keras.Input((32, 32, 3)), DiffStride(2.0, static_crop=True)])
        >>> model.layers[0].strides.assign([4.0, 4.0])
        <...>
        >>> refresh_crops(model), refresh_crops(model), model.layers[0].crops
        (True, False, {(32, 32): (16, 9)})
    """
    layers = [layer for layer in diffstride_layers(model) if layer.crop_is_static]
    if not layers:
        return False
    inputs = blank_inputs(model, input_shape)
    if inputs is None:
        changes = [layer.refresh_crop(hysteresis) for layer in layers]
    else:
        before = [layer.crop.set_crops() for layer in layers]
        for layer in layers:
            layer.forget_crop(hysteresis)
        with contextlib.ExitStack() as stack:
            for layer in layers:
                stack.enter_context(layer.crop.being_set())
            run_on_blank(model, inputs)
        changes = [layer.crop.differs(crops) for layer, crops in zip(layers, before)]
    if any(changes):
        _let_trace_anew(model)
    return any(changes)


@contextlib.contextmanager
def held_crops(model: keras.Model, held: int = StaticCrop.ALL) -> Iterator[None]:
    """A context in which the static crops of a model stay as they are while its strides change.

    A training step that was compiled has the sizes of the time when it was traced. In this context everything else has
    them too, until `refresh_crops`.

    Args:
        model: a built model.
        held: `StaticCrop.ALL`, or `StaticCrop.TRAINING` if inference shall follow the strides.

    Yields:
        Nothing.
    """
    crops = [layer.crop for layer in diffstride_layers(model) if not layer.crop.held]
    for crop in crops:
        crop.held = held
    try:
        yield
    finally:
        for crop in crops:
            crop.held = StaticCrop.NOT


def _let_trace_anew(model: keras.Model) -> None:
    """Drops the compiled functions of Keras, which hold the old crops."""
    model.test_function = model.predict_function = None
    if model.train_function is not None:
        model.make_train_function(force=True)


class CropRefresh(keras.callbacks.Callback):
    """A callback that lets static crops follow the strides during training.

    It compares crops and strides after each epoch, or every `every_steps` steps. If a crop has changed, it lets Keras
    trace the training step again. Inference has the sizes that the strides ask for at any time, and so has the model
    after training. Under `compile(jit_compile=True)` it also fixes the crops of layers whose `static_crop` is None, as
    XLA needs.

    Args:
        every_steps: number of training steps between two comparisons, at least 1. None compares after every epoch.
        hysteresis: by what share of itself a stride must have passed the boundary between two sizes before the crop
            changes size. It keeps a stride that wavers at a boundary from causing a new trace each time.
        input_shape: as for `refresh_crops`.

    Attributes:
        changes: how often the crops have changed.

    Raises:
        ValueError: `every_steps` is no whole number of at least 1.

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
        input_shape: Any = None,
    ):
        super().__init__()
        self.changes = 0
        self._every_steps = None if every_steps is None else validated_whole("every_steps", every_steps, least=1)
        self._hysteresis = hysteresis
        self._input_shape = input_shape
        self._steps = self._steps_before_epoch = 0
        self._held = contextlib.ExitStack()
        self._holds = False
        self._tested: list[Any] | None = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        layers = diffstride_layers(self.model)
        if self.model.compiled and self.model.jit_compile:
            for layer in layers:
                layer.fix_crop()
        if any(layer.crop.held == StaticCrop.ALL for layer in layers):
            return
        for layer in layers:
            layer.crop.held = StaticCrop.NOT  # An earlier `fit` may have ended by an error.
        # The strides may have changed since an earlier `fit`, whose compiled step is still there.
        refresh_crops(self.model, self._input_shape)
        self._held.enter_context(held_crops(self.model, StaticCrop.TRAINING))
        self._holds = True

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        if self._holds:
            self._held.close()
            self._holds = False
            current.bring_weights_back(self.model)
            refresh_crops(self.model, self._input_shape)
        # Other callbacks may bring back earlier weights now.
        self.model.test_function = self.model.predict_function = None

    def on_test_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        # What is evaluated has the sizes that the strides ask for now, so that the weights alone give the same figures.
        crops = [layer.crop for layer in diffstride_layers(self.model) if layer.crop_is_static]
        for crop in crops:
            crop.inferred = {}
        inputs = blank_inputs(self.model, self._input_shape)
        if inputs is not None:
            run_on_blank(self.model, inputs)
        sizes = [crop.inferred for crop in crops]
        if sizes != self._tested or inputs is None:
            self.model.make_test_function(force=True)
        self._tested = sizes

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
        current.bring_weights_back(self.model)
        self.changes += refresh_crops(self.model, self._input_shape, self._hysteresis)
