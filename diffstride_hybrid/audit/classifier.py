"""A Keras model as a function from images to classes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from diffstride_hybrid.backends import current
from diffstride_hybrid.common.arguments import spread_indices
from diffstride_hybrid.common.errors import one_line
from diffstride_hybrid.model_tools.inspection import leaf_layers, replaced_calls

Preprocess = Callable[[Any], Any]
"""Turns a batch of images, a float32 tensor, into the model's input. It must be differentiable."""

Change = Callable[[np.ndarray, slice], np.ndarray]
"""Changes a batch of images. The slice says which of all images they are."""

_TINY = 1e-30
"""Added before a logarithm. The least normal float32 number is 1.2e-38."""

_MOVING = ("Permute", "Transpose", "Moveaxis", "Swapaxes")
"""Layers and operations of Keras that move axes, by the names of their classes."""

_LOSS_SCALE = 1024.0
"""Keeps small gradients above the least float16 number. It does not change their signs."""


def data_format_of(model: keras.Model) -> str | None:
    """Tells whether a model takes images with the channels last or first.

    Its layers tell it, unless the model moves the axes of maps, as a `Resnet` may. Then the shape of its input tells
    it: images mostly have one channel, three or four.

    Args:
        model: a built model.

    Returns:
        'channels_last' or 'channels_first'. None if the model does not tell.

    Example:
        >>> data_format_of(keras.Sequential([keras.Input((3, 8, 8)), keras.layers.Permute((2, 3, 1))]))
        'channels_first'
    """
    layers = leaf_layers(model)
    if not any(type(each).__name__ in _MOVING for each in [*layers, *getattr(model, "operations", ())]):
        formats = {layer.data_format for layer in layers if getattr(layer, "data_format", None)}
        return formats.pop() if len(formats) == 1 else None
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4:
        return None
    _, first, middle, last = shape
    are_channels = {
        "channels_last": last in (3, 4) or (last == 1 and first == middle),
        "channels_first": first in (3, 4) or (first == 1 and middle == last),
    }
    told = [data_format for data_format, is_told in are_channels.items() if is_told]
    return told[0] if len(told) == 1 else None


class Classifier:
    """A Keras model as a function from images to classes.

    Here and in all of `audit`, images are float32 `[number, height, width, channels]` with pixels from 0 to 1.

    Args:
        model: a built model with one input for images and one output `[batch, classes]`, probabilities or logits.
        value_range: the values of black and white in the input of `preprocess`, or of the model if there is none.
        preprocess: turns a batch of images into the model's input; None if the model takes images as they are.
        batch_size: how many images go through the model at once. An incomplete batch is filled up.
        data_format: of the images that the model takes, 'channels_last' or 'channels_first'.

    Attributes:
        model: the model.
        num_classes: how many classes it tells apart; 0 before `check`.

    Raises:
        TypeError: `model` is no Keras model.
        ValueError: the model has several inputs or outputs, or takes images of another data format.
    """

    def __init__(
        self,
        model: keras.Model,
        value_range: tuple[float, float],
        preprocess: Preprocess | None,
        batch_size: int,
        data_format: str,
    ):
        if not isinstance(model, keras.Model):
            raise TypeError(f"audit takes a keras.Model, got {type(model).__name__}.")
        for name in ("inputs", "outputs"):
            count = len(getattr(model, name, None) or [None])
            if count != 1:
                raise ValueError(
                    f"audit takes models with one input and one output, and {model.name} has {count} {name}."
                )
        own = data_format_of(model)
        if own not in (None, data_format):
            axis = own.removeprefix("channels_")
            raise ValueError(
                f"{model.name} takes images with the channels {axis}: give audit such images, and data_format='{own}'."
            )
        self.model = model
        self.num_classes = 0
        self._low, self._high = value_range
        self._preprocess = preprocess
        self._batch_size = batch_size
        self._channels_first = data_format == "channels_first"
        self._gives_probabilities = False
        self._softmax: list[keras.layers.Layer] = []
        self._gradient: Callable[..., np.ndarray] | None = None

    def check(self, images: np.ndarray) -> None:
        """Runs one batch, and checks that images fit, that the model is a classifier, and that it repeats itself.

        Args:
            images: float32 `[number, height, width, channels]`, pixels from 0 to 1.

        Raises:
            ValueError: the images have another size than the model takes; its outputs are not a finite number for each
                class, or differ between two calls.
        """
        batch, _ = next(self.batches(images))
        own, given = getattr(self.model, "input_shape", None), tuple(batch.shape)
        if own is not None and not (
            len(own) == len(given) and all(mine in (None, length) for mine, length in zip(own[1:], given[1:]))
        ):
            by = "" if self._preprocess is None else " after preprocess"
            raise ValueError(f"{self.model.name} takes images of shape {own[1:]}, got shape {given[1:]}{by}.")
        outputs = self.model.predict_on_batch(batch)
        if isinstance(outputs, (dict, list, tuple)) or np.ndim(outputs) != 2 or np.shape(outputs)[-1] < 2:
            found = type(outputs).__name__ if isinstance(outputs, (dict, list, tuple)) else np.shape(outputs)
            raise ValueError(
                "audit takes classifiers, whose outputs have the shape (batch, classes) with two classes or more; "
                f"those of {self.model.name} are {found}."
            )
        outputs = self._finite(outputs)
        if not np.array_equal(outputs, self._finite(self.model.predict_on_batch(batch))):
            raise ValueError(f"{self.model.name} gives other outputs for the same images: it draws by chance.")
        self.num_classes = outputs.shape[-1]
        self._gives_probabilities = bool(np.allclose(outputs.sum(-1), 1, atol=1e-2) and outputs.min() >= 0)
        self._softmax = self._last_softmax(batch, outputs) if self._gives_probabilities else []

    def classes(self, images: np.ndarray, change: Change | None = None) -> np.ndarray:
        """The most probable class of each image.

        Args:
            images: float32 `[number, height, width, channels]`, pixels from 0 to 1.
            change: changes each batch before the model gets it; None for no change.

        Returns:
            int64 `[number]`.

        Raises:
            ValueError: an output of the model is not finite.
        """
        return np.concatenate(
            [
                self._finite(self.model.predict_on_batch(batch))[:count].argmax(-1)
                for batch, count in self.batches(images, change)
            ]
        )

    def batches(self, images: np.ndarray, change: Change | None = None) -> Iterator[tuple[Any, int]]:
        """Batches of equal size, as the model takes them.

        Args:
            images: float32 `[number, height, width, channels]`, pixels from 0 to 1.
            change: changes each batch; None for no change.

        Yields:
            A tensor for the model, and how many images in it count: the last batch repeats its last image.
        """
        for first in range(0, len(images), self._batch_size):
            where = slice(first, min(first + self._batch_size, len(images)))
            batch = images[where] if change is None else change(images[where], where)
            yield self._inputs(ops.convert_to_tensor(self._in_model_order(self._filled(batch)))), len(batch)

    def spread_images(self, images: np.ndarray, count: int) -> Any:
        """Some of the images as one batch for the model, spread evenly over all.

        Args:
            images: float32 `[number, height, width, channels]`, pixels from 0 to 1.
            count: how many, at most.

        Returns:
            A tensor.
        """
        chosen = images[spread_indices(len(images), count)]
        return self._inputs(ops.convert_to_tensor(self._in_model_order(chosen)))

    def adversarial_signs(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The sign of the gradient of the loss by each pixel.

        The loss is the log-odds against the label, `log sum_(j != y) p_j - log p_y`. Its gradient points where that of
        the cross-entropy points, `1 - p_y` times as long. If the last layer is a softmax, the loss is computed from the
        logits before it, so that it has a gradient however sure the model is.

        Args:
            images: float32 `[number, height, width, channels]`, pixels from 0 to 1.
            labels: integers `[number]`.

        Returns:
            int8 of the shape of `images`: -1, 0 or 1.

        Raises:
            ValueError: the gradient cannot be computed, is not finite, or is zero for all images.
        """
        if self._gradient is None:
            self._gradient = current.gradient_of(self._log_odds)
        found = []
        for first in range(0, len(images), self._batch_size):
            batch, of_batch = (self._filled(part[first : first + self._batch_size]) for part in (images, labels))
            one_hot = np.eye(self.num_classes, dtype="float32")[of_batch]
            try:
                gradient = self._gradient(self._in_model_order(batch), one_hot)
            except Exception as error:  # Each backend has errors of its own for a function that it cannot follow.
                reason = one_line(error).rstrip(".")
                raise ValueError(
                    f"The gradient of {self.model.name} by its images cannot be computed: {reason}. The model and "
                    "preprocess must compute with tensors."
                ) from error
            if not np.isfinite(gradient).all():
                raise ValueError(f"The gradient of {self.model.name} by its images is not finite.")
            found.append(self._in_own_order(np.sign(gradient)).astype(np.int8)[: len(images) - first])
        signs = np.concatenate(found)
        if not signs.any():
            raise ValueError(
                f"The gradient of {self.model.name} by its images is zero: the model and preprocess must be "
                "differentiable, without rounding."
            )
        return signs

    def _log_odds(self, images: Any, labels: Any) -> Any:
        with _without_softmax(self._softmax):
            outputs = ops.cast(self.model(self._inputs(images), training=False), "float32")
        if self._gives_probabilities and not self._softmax:
            outputs = ops.log(outputs + _TINY)
        others = ops.logsumexp(ops.where(labels > 0, -1e30, outputs), axis=-1)
        return _LOSS_SCALE * ops.sum(others - ops.sum(outputs * labels, axis=-1))

    def _last_softmax(self, batch: Any, probabilities: np.ndarray) -> list[keras.layers.Layer]:
        """The layer whose softmax gives the model's outputs, in a list. Empty if there is none."""
        layers = [layer for layer in leaf_layers(self.model) if _has_softmax(layer)]
        for layer in reversed(layers):
            with _without_softmax([layer]):
                logits = np.asarray(ops.convert_to_numpy(self.model(batch, training=False)), np.float64)
            exponentials = np.exp(logits - logits.max(-1, keepdims=True))
            if np.allclose(exponentials / exponentials.sum(-1, keepdims=True), probabilities, atol=1e-2):
                return [layer]
        return []

    def _inputs(self, images: Any) -> Any:
        values = self._low + (self._high - self._low) * images
        return values if self._preprocess is None else self._preprocess(values)

    def _filled(self, part: np.ndarray) -> np.ndarray:
        """The images or labels of a batch; those of an incomplete one followed by its last, again and again."""
        return np.concatenate([part, np.repeat(part[-1:], self._batch_size - len(part), 0)])

    def _finite(self, outputs: Any) -> np.ndarray:
        outputs = np.asarray(outputs, np.float64)
        if not np.isfinite(outputs).all():
            raise ValueError(f"The outputs of {self.model.name} are not finite.")
        return outputs

    def _in_model_order(self, images: np.ndarray) -> np.ndarray:
        return np.moveaxis(images, -1, 1) if self._channels_first else images

    def _in_own_order(self, images: np.ndarray) -> np.ndarray:
        return np.moveaxis(images, 1, -1) if self._channels_first else images


def _has_softmax(layer: keras.layers.Layer) -> bool:
    is_one = isinstance(layer, keras.layers.Softmax)
    return is_one or getattr(layer, "activation", None) is keras.activations.softmax


@contextlib.contextmanager
def _without_softmax(layers: list[keras.layers.Layer]) -> Iterator[None]:
    """A context in which some layers with a softmax return what stands before it."""
    alone = [layer for layer in layers if isinstance(layer, keras.layers.Softmax)]
    activated = [layer for layer in layers if layer not in alone]
    for layer in activated:
        layer.activation = keras.activations.linear
    try:
        with replaced_calls(alone, lambda layer: lambda inputs, mask=None: inputs):
            yield
    finally:
        for layer in activated:
            layer.activation = keras.activations.softmax
