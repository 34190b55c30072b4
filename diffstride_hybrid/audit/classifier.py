"""A Keras model as a function from images to classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from keras import ops

from diffstride_hybrid.backends import current

Preprocess = Callable[[Any], Any]
"""Turns a batch of images, a float32 tensor, into what the model takes. It must be differentiable."""

_TINY = 1e-30
"""Added before a logarithm. The least normal float32 number is 1.2e-38."""


class Classifier:
    """A Keras model as a function from images to classes.

    Here and in all of `audit`, images are float32 `[number, height, width, channels]` with pixels from 0 to 1.

    Args:
        model: a built model with one input for images and one output `[batch, classes]`, probabilities or logits.
        value_range: the values of black and white in what `preprocess` takes, or the model if there is none.
        preprocess: turns a batch of images into what the model takes; None if it takes them as they are.
        batch_size: how many images go through the model at once. An incomplete batch is filled up.
        data_format: of the model, 'channels_last' or 'channels_first'.

    Attributes:
        model: the model.
        num_classes: how many classes it tells apart; None before the first batch.

    Raises:
        ValueError: the model has several inputs or outputs.
    """

    def __init__(
        self,
        model: keras.Model,
        value_range: tuple[float, float],
        preprocess: Preprocess | None,
        batch_size: int,
        data_format: str,
    ):
        for what in ("inputs", "outputs"):
            count = len(getattr(model, what, None) or [None])
            if count != 1:
                raise ValueError(
                    f"audit takes models with one input and one output, and {model.name} has {count} {what}."
                )
        self.model = model
        self.num_classes: int | None = None
        self._low, self._high = value_range
        self._preprocess = preprocess
        self._batch_size = batch_size
        self._channels_first = data_format == "channels_first"
        self._gradient: Callable[..., np.ndarray] | None = None

    def check_size(self, image_shape: tuple[int, ...]) -> None:
        """Checks that images have the size that the model takes. The size is not known of every model.

        Args:
            image_shape: (height, width, channels).

        Raises:
            ValueError: the model takes another size.
        """
        own = getattr(self.model, "input_shape", None)
        given = self._in_model_order(np.empty((0, *image_shape))).shape[1:]
        fits = own is None or (
            len(own) == 4 and all(length in (None, own_length) for length, own_length in zip(own[1:], given))
        )
        if not fits:
            raise ValueError(f"{self.model.name} takes images of shape {tuple(own[1:])}, got images of shape {given}.")

    def classes(self, images: np.ndarray) -> np.ndarray:
        """The most probable class of each image.

        Args:
            images: float32 `[number, height, width, channels]`, pixels from 0 to 1.

        Returns:
            int64 `[number]`.

        Raises:
            ValueError: the model does not return a finite number for each class.
        """
        found = [self._checked(self.model.predict_on_batch(batch))[:count] for batch, count in self.batches(images)]
        return np.concatenate([outputs.argmax(-1) for outputs in found])

    def batches(self, images: np.ndarray) -> Iterator[tuple[Any, int]]:
        """Batches of equal size, as the model takes them.

        Args:
            images: float32 `[number, height, width, channels]`, pixels from 0 to 1.

        Yields:
            A tensor for the model, and how many images in it count: the last batch repeats its last image.
        """
        for first in range(0, len(images), self._batch_size):
            batch = images[first : first + self._batch_size]
            filled = np.concatenate([batch, np.repeat(batch[-1:], self._batch_size - len(batch), 0)])
            yield self._inputs(ops.convert_to_tensor(self._in_model_order(filled), "float32")), len(batch)

    def adversarial_signs(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """The sign of the gradient of the loss by each pixel.

        The loss is the log-odds against the label, `log sum_(j != y) p_j - log p_y`. Its gradient points where that of
        the cross-entropy points, `1 - p_y` times as long, and does not vanish if the model is sure of the class.

        Args:
            images: float32 `[number, height, width, channels]`, pixels from 0 to 1.
            labels: integers `[number]`.

        Returns:
            float32 of the shape of `images`: -1, 0 or 1.

        Raises:
            ValueError: no gradient passes `preprocess`, or it is not finite.
        """
        if self._gradient is None:
            self._gradient = current.gradient_of(self._log_odds)
        found = []
        for first in range(0, len(images), self._batch_size):
            batch, of_batch = images[first : first + self._batch_size], labels[first : first + self._batch_size]
            missing = self._batch_size - len(batch)
            batch, of_batch = (np.concatenate([part, np.repeat(part[-1:], missing, 0)]) for part in (batch, of_batch))
            gradient = self._gradient(self._in_model_order(batch), np.eye(self.num_classes, dtype="float32")[of_batch])
            if not np.isfinite(gradient).all():
                raise ValueError(f"The gradient of {self.model.name} by its input is not finite.")
            found.append(self._in_own_order(np.sign(gradient))[: len(images) - first])
        return np.concatenate(found)

    def _log_odds(self, images: Any, labels: Any) -> Any:
        outputs = ops.cast(self.model(self._inputs(images), training=False), "float32")
        if self._gives_probabilities:
            outputs = ops.log(outputs + _TINY)
        others = ops.logsumexp(ops.where(labels > 0, -1e30, outputs), axis=-1)
        return ops.sum(others - ops.sum(outputs * labels, axis=-1))

    def _inputs(self, images: Any) -> Any:
        values = self._low + (self._high - self._low) * images
        return values if self._preprocess is None else self._preprocess(values)

    def _checked(self, outputs: Any) -> np.ndarray:
        """The outputs of a batch as float64, after a look at their shape and values."""
        if isinstance(outputs, (dict, list, tuple)) or np.ndim(outputs) != 2 or np.shape(outputs)[-1] < 2:
            shape = type(outputs).__name__ if isinstance(outputs, (dict, list, tuple)) else np.shape(outputs)
            raise ValueError(
                f"audit takes classifiers, whose outputs have the shape (batch, classes) with two classes or more; "
                f"those of {self.model.name} are {shape}."
            )
        outputs = np.asarray(outputs, np.float64)
        if not np.isfinite(outputs).all():
            raise ValueError(f"The outputs of {self.model.name} are not finite.")
        if self.num_classes is None:
            self.num_classes = outputs.shape[-1]
            sums_to_one = np.allclose(outputs.sum(-1), 1, atol=1e-2)
            self._gives_probabilities = bool(sums_to_one and outputs.min() >= 0)
        return outputs

    def _in_model_order(self, images: np.ndarray) -> np.ndarray:
        return np.moveaxis(images, -1, 1) if self._channels_first else images

    def _in_own_order(self, images: np.ndarray) -> np.ndarray:
        return np.moveaxis(images, 1, -1) if self._channels_first else images
