"""How far a run has come, as its backups keep it."""

from __future__ import annotations

import json
import time

import tensorflow as tf

from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.training.loop import TrainingLoop


class Progress(tf.train.experimental.PythonState):
    """How far a run has come. A backup keeps it beside the variables, with the model's static crops.

    Args:
        loop: of the run.

    Attributes:
        epochs_done: the epochs that are complete, with their validation and their rows.
        steps_done: the steps done of the present epoch.
        epoch_seconds: the time that these steps took.
        best_accuracy: the highest accuracy on the validation images so far; None before the first validation.
        training_seconds: the time of all sittings, up to the last `tick`.
        metrics: the sums behind loss and accuracy of the present epoch, as of the last `note_metrics`.
        callbacks: the state of the user's callbacks, from `Listeners.state`; None if there are none.
        left_out: the steps, counted over all epochs, whose batches the run leaves out.
    """

    def __init__(self, loop: TrainingLoop):
        super().__init__()
        self.epochs_done = 0
        self.steps_done = 0
        self.epoch_seconds = 0.0
        self.best_accuracy: float | None = None
        self.training_seconds = 0.0
        self.metrics: list[float] = []
        self.callbacks: str | None = None
        self.left_out: list[int] = []
        self._loop = loop
        self._retraces_before = 0
        self._ticked = time.perf_counter()

    @property
    def retraces(self) -> int:
        """The retraces of all sittings."""
        return self._retraces_before + self._loop.retraces

    def tick(self) -> None:
        """Adds the time since the last tick to `training_seconds`."""
        now = time.perf_counter()
        self.training_seconds += now - self._ticked
        self._ticked = now

    def note_metrics(self) -> None:
        """Reads the metrics. With several workers, all of them must call this together."""
        self.metrics = self._loop.metrics.state() if self.steps_done else []

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
            "callbacks": self.callbacks,
            "retraces": self.retraces,
            "crops": [list(layer.crops.items()) for layer in layers],
        }
        return json.dumps(state)

    def deserialize(self, string_value: str) -> None:
        state = json.loads(string_value)
        for name in ("epochs_done", "steps_done", "epoch_seconds", "best_accuracy", "training_seconds", "metrics"):
            setattr(self, name, state[name])
        self.callbacks = state.get("callbacks")  # Backups of earlier versions have none.
        self._loop.metrics.reset()
        if self.metrics:
            self._loop.metrics.restore(self.metrics)
        self.left_out = sorted({*self.left_out, *state["left_out"]})
        self._retraces_before = state["retraces"] - self._loop.retraces
        for layer, crops in zip(diffstride_layers(self._loop.model), state["crops"]):
            if layer.crop_is_static:
                layer.crops = {tuple(size): tuple(kept) for size, kept in crops}
        self._loop.settle_crops()
