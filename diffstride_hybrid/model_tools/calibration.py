"""`recalibrate_normalization`: takes the statistics of batch normalization anew, after a network was changed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import keras
import numpy as np

from diffstride_hybrid.backends import current
from diffstride_hybrid.model_tools.inspection import (
    leaf_layers,
    replaced_calls,
    running_call,
    short_path,
    watched_calls,
)

Images = np.ndarray | Iterable[Any]
"""Images in one array, or batches of images, alone or first in a tuple with labels."""


class _Reached(BaseException):
    """Ends a call of a model at a layer. Keras puts words of its own around every `Exception`."""


class _Statistics:
    """Mean and variance by channel of all maps that a layer is called on, added up in float64."""

    def __init__(self) -> None:
        self.count, self.mean, self.sum_of_squares = 0, 0.0, 0.0

    def add(self, maps: Any, axis: int, mask: Any = None) -> None:
        values = np.asarray(keras.ops.convert_to_numpy(maps), np.float64)
        values = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
        if mask is not None:
            values = values[np.asarray(keras.ops.convert_to_numpy(mask), bool).reshape(-1)]
        if not len(values):
            return
        count, mean = self.count + len(values), values.mean(0)
        difference = mean - self.mean
        self.sum_of_squares += ((values - mean) ** 2).sum(0) + difference**2 * self.count * len(values) / count
        self.mean += difference * len(values) / count
        self.count = count


def recalibrate_normalization(model: keras.Model, images: Images, batch_size: int = 32) -> list[str]:
    """Sets the moving statistics of every batch normalization in a model to those that its maps have now.

    Pruning, quantization, a swap of poolings, averaged weights or another image size change the maps that a layer gets.
    Its statistics belong to the maps from before, and the error grows from layer to layer. Here the layers get mean and
    variance of all given images, one after the other in the order in which the model calls them, so that each sees maps
    that the layers before it have normalized by their new statistics. No weight that is trained changes. Steps of
    signals that a mask leaves out do not count, as in training.

    The model runs in inference, eagerly, as often as it has such layers, each time up to the layer concerned.

    Args:
        model: a built model. Its batch normalizations are changed.
        images: floating-point `(number, height, width, channels)`, as the model takes them, without labels; or batches
            of such, as a `tf.data.Dataset` or a list gives them, with or without labels. A few hundred serve.
        batch_size: how many images of an array go through the model at once.

    Returns:
        The paths of the layers within the model, in the order in which they were calibrated. Empty if it has none.

    Raises:
        ValueError: there are no images.

    Example:
        >>> layers = [keras.layers.Rescaling(4.0, offset=1.0), keras.layers.BatchNormalization(name="norm")]
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
        >>> images = np.random.default_rng(0).normal(size=(100, 8, 8, 1)).astype("float32")
        >>> recalibrate_normalization(model, images)
        ['norm']
        >>> model.layers[1].moving_variance.numpy().round()
        array([16.], dtype=float32)
    """
    batches = list(_batches(images, batch_size))
    if not batches:
        raise ValueError("recalibrate_normalization needs at least one image, got none.")
    calls = _calls_in_order(model, batches[0][:1])
    for layer in dict.fromkeys(calls):
        statistics = _Statistics()
        for batch in batches:
            _run_up_to(model, layer, calls.count(layer), batch, statistics)
        layer.moving_mean.assign(statistics.mean)
        layer.moving_variance.assign(statistics.sum_of_squares / statistics.count)
    return [short_path(model, layer.path) for layer in dict.fromkeys(calls)]


def _batches(images: Images, batch_size: int) -> Iterator[Any]:
    if hasattr(images, "shape"):
        for first in range(0, len(images), batch_size):
            yield images[first : first + batch_size]
        return
    for batch in images:
        batch = batch[0] if isinstance(batch, (tuple, list)) else batch
        if len(batch):
            yield batch


def _calls_in_order(model: keras.Model, image: Any) -> list[keras.layers.BatchNormalization]:
    """The batch normalizations of a model, once for each time that it calls them."""
    calls: list[keras.layers.BatchNormalization] = []
    layers = [layer for layer in leaf_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    with watched_calls(layers, lambda layer, inputs, outputs: calls.append(layer)):
        model(image, training=False)
    return calls


def _run_up_to(model: keras.Model, layer: keras.layers.Layer, calls: int, batch: Any, statistics: _Statistics) -> None:
    """Runs a model up to the last call of a layer, and adds the layer's maps to its statistics."""
    remaining = calls

    def noted(layer: keras.layers.BatchNormalization) -> Callable[..., Any]:
        call = running_call(layer)

        def noting(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal remaining
            statistics.add(inputs, layer.axis, kwargs.get("mask"))
            remaining -= 1
            if remaining == 0:
                raise _Reached
            return call(inputs, *args, **kwargs)

        return noting

    with current.uncompiled(), replaced_calls([layer], noted), contextlib.suppress(_Reached):
        model(batch, training=False)
