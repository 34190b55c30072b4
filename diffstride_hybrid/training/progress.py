"""How far a run has come, as its backups hold it."""

from __future__ import annotations

import json
import time

import tensorflow as tf

from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.training.loop import TrainingLoop


class Progress(tf.train.experimental.PythonState):
    """How far a run has come, as its backup holds it beside the variables: numbers, and the model's static crops.

    Attributes:
        epochs_done: whole epochs, with their validation and their rows.
        steps_done: of the epoch after those.
        epoch_seconds: spent on these steps.
        best_accuracy: on the validation images.
        training_seconds: of all sittings, up to the last `tick`.
        metrics: what the loss and accuracy of the epoch are made of so far, at the last `note_metrics`.
        left_out: steps, counted over all epochs, whose batches are not trained on.
    """

    def __init__(self, loop: TrainingLoop):
        super().__init__()
        self.epochs_done = 0
        self.steps_done = 0
        self.epoch_seconds = 0.0
        self.best_accuracy: float | None = None
        self.training_seconds = 0.0
        self.metrics: list[float] = []
        self.left_out: list[int] = []
        self._loop = loop
        self._retraces_before = 0
        self._ticked = time.perf_counter()

    @property
    def retraces(self) -> int:
        """Of all sittings."""
        return self._retraces_before + self._loop.retraces

    def tick(self) -> None:
        """Counts the time since the last tick as training."""
        now = time.perf_counter()
        self.training_seconds += now - self._ticked
        self._ticked = now

    def note_metrics(self) -> None:
        """Reads the metrics, which with several workers all of them must do together."""
        self.metrics = self._loop.metric_state() if self.steps_done else []

    def serialize(self) -> str:
        layers = diffstride_layers(self._loop.model)
        state = {
            "epochs_done": self.epochs_done,
            "steps_done": self.steps_done,
            "epoch_seconds": self.epoch_seconds,
            "best_accuracy": self.best_accuracy,
            "training_seconds": self.training_seconds,
            "metrics": self.metrics,
            "left_out": self.left_out,
            "retraces": self.retraces,
            "crops": [list(layer.crops.items()) for layer in layers],
        }
        return json.dumps(state)

    def deserialize(self, string_value: str) -> None:
        state = json.loads(string_value)
        for name in ("epochs_done", "steps_done", "epoch_seconds", "best_accuracy", "training_seconds", "metrics"):
            setattr(self, name, state[name])
        self._loop.results()
        if self.metrics:
            self._loop.set_metric_state(self.metrics)
        self.left_out = sorted({*self.left_out, *state["left_out"]})
        self._retraces_before = state["retraces"] - self._loop.retraces
        for layer, crops in zip(diffstride_layers(self._loop.model), state["crops"]):
            if layer.crop_is_static:
                layer.crops = {tuple(size): tuple(kept) for size, kept in crops}
        self._loop.settle_crops()
