"""The loss and accuracy of a stretch of steps, summed up within the compiled steps."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf


class Metrics:
    """Mean loss and accuracy since the last reset. Make it in the scope of the strategy."""

    def __init__(self) -> None:
        self._metrics: dict[str, keras.metrics.Metric] = {
            "loss": keras.metrics.Mean(),
            "accuracy": keras.metrics.CategoricalAccuracy(),
        }

    @property
    def variables(self) -> list[keras.Variable]:
        """The sums, in the order of `state`."""
        return [variable for metric in self._metrics.values() for variable in metric.variables]

    def update(self, loss: tf.Tensor, labels: tf.Tensor, outputs: tf.Tensor, weights: tf.Tensor) -> None:
        """Adds a batch. Call it within a step.

        Args:
            loss: a scalar, the mean over the batch.
            labels: one-hot, of shape (batch, classes).
            outputs: of the model, of shape (batch, classes).
            weights: of shape (batch,): 1 for an image that counts, 0 for one that fills up the batch.
        """
        self._metrics["loss"].update_state(loss, sample_weight=tf.reduce_sum(weights))
        self._metrics["accuracy"].update_state(labels, outputs, sample_weight=weights)

    def values(self) -> dict[str, float]:
        """`loss` and `accuracy`, the means since the last reset."""
        return {name: float(metric.result()) for name, metric in self._metrics.items()}

    def reset(self) -> None:
        """Forgets all batches."""
        for metric in self._metrics.values():
            metric.reset_state()

    def state(self) -> list[float]:
        """The sums, as a backup keeps them. With several workers, all of them must call this together."""
        return [float(variable.numpy()) for variable in self.variables]

    def restore(self, state: Sequence[float]) -> None:
        """Sets the sums to what `state` returned.

        Args:
            state: the sums.
        """
        for variable, value in zip(self.variables, state, strict=True):
            variable.assign(value)
