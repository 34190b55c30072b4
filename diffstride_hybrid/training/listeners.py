"""Keras callbacks in a run: what they see as their model, and their state in backups."""

from __future__ import annotations

import base64
import collections
import inspect
import io
import json
import pathlib
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from diffstride_hybrid.common import distribution
from diffstride_hybrid.common.files import read_rows, rows_as_text, write_whole
from diffstride_hybrid.model_tools.macs_budget import MacsBudget
from diffstride_hybrid.training.loop import TrainingLoop

_SET_ANEW = {"_model", "params", "validation_data"}
"""Attributes that every sitting sets by itself."""


class WatchedModel:
    """What the callbacks of a run see as their model: the network, its optimizer, and their wish to stop.

    The run's model is not compiled by Keras. So it has no optimizer, and gets none: Keras would save it with the model.

    Args:
        loop: of the run.

    Attributes:
        stop_training: whether a callback asks the run to end.
        optimizer: of the run.
    """

    def __init__(self, loop: TrainingLoop):
        self.stop_training = False
        self.optimizer = loop.optimizer
        self._network = loop.model

    def __getattr__(self, name: str) -> Any:
        if name == "_network":
            raise AttributeError(name)
        return getattr(self._network, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._network(*args, **kwargs)


class Listeners:
    """The callbacks of a run: those of the user, and after them those that refresh crops and record the run.

    Args:
        loop: of the run.
        callbacks: of the user, which `check_callbacks` has accepted.
        own: those of this package.
        epochs: of the run.
        steps: of an epoch.
    """

    def __init__(
        self,
        loop: TrainingLoop,
        callbacks: Sequence[keras.callbacks.Callback],
        own: Sequence[keras.callbacks.Callback],
        epochs: int,
        steps: int,
    ):
        self._callbacks = list(callbacks)
        self._begun: list[dict[str, Any]] = []
        self._lost: list[dict[str, str]] = []
        self._stop_begun = False
        self._watched = WatchedModel(loop)
        shape = {"epochs": epochs, "steps": steps}
        self._lists = [
            keras.callbacks.CallbackList(self._callbacks, model=self._watched, **shape),
            keras.callbacks.CallbackList(own, model=loop.model, **shape),
        ]
        for callback in self._callbacks:
            if isinstance(callback, MacsBudget):
                callback.set_model(loop.model)  # It counts the network, and takes nothing from the optimizer.

    @property
    def stop(self) -> bool:
        """Whether a callback of the user asks the run to end."""
        return self._watched.stop_training

    def agree(self, strategy: tf.distribute.Strategy) -> None:
        """Ends the run on all workers if a callback of one of them asks for it, which may have a clock of its own.

        Args:
            strategy: of the run.
        """
        self._watched.stop_training = distribution.sum_over_replicas(strategy, int(self.stop)) > 0

    def begin(self, epochs_done: int, state: str | None) -> None:
        """Tells all callbacks that training begins, and gives those of the user the state that they had.

        Args:
            epochs_done: the complete epochs of a resumed run; 0 for a new one.
            state: what `state` returned when the backup was made. None if there is none.
        """
        for callback in self._callbacks:
            if isinstance(callback, keras.callbacks.CSVLogger) and epochs_done:
                _keep_rows(pathlib.Path(callback.filename), callback.sep, epochs_done)
                callback.append = True
        self._made = self._states()
        for listeners in self._lists:
            listeners.on_train_begin()
        self._begun = self._states()
        self._lost = [_not_kept(each) for each in self._callbacks]
        self._stop_begun = self.stop
        self.restore(state)

    def on_epoch_begin(self, epoch: int) -> None:
        for listeners in self._lists:
            listeners.on_epoch_begin(epoch)

    def on_train_batch_begin(self, batch: int) -> None:
        for listeners in self._lists:
            listeners.on_train_batch_begin(batch)

    def on_train_batch_end(self, batch: int) -> None:
        for listeners in self._lists:
            listeners.on_train_batch_end(batch)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        for listeners in self._lists:
            listeners.on_epoch_end(epoch, logs)

    def on_train_end(self) -> None:
        for listeners in self._lists:
            listeners.on_train_end()

    def close(self) -> None:
        """Closes the files of callbacks that training has left without `on_train_end`."""
        for callback in self._callbacks:
            if isinstance(callback, keras.callbacks.CSVLogger) and callback.csv_file is not None:
                callback.csv_file.close()

    def state(self) -> str | None:
        """The state of the user's callbacks, for a backup.

        It holds numbers, texts, arrays, lists of them, and lists and dictionaries that JSON can hold. A warning names
        other lists, dictionaries, tuples and sets that have changed.

        Returns:
            The state as text; None if there are no callbacks.
        """
        if not self._callbacks:
            return None
        self._warn_of_loss()
        buffer = io.BytesIO()
        np.savez(buffer, stop=self.stop, **self._changed())
        return base64.b64encode(buffer.getvalue()).decode()

    def _warn_of_loss(self) -> None:
        for callback, begun in zip(self._callbacks, self._lost):
            for name, text in _not_kept(callback).items():
                if text != begun.get(name):
                    warnings.warn(
                        f"The backups of the run do not hold {type(callback).__name__}.{name}: a run that is stopped "
                        "and goes on begins with it anew. Keep numbers, arrays, or lists and dictionaries as in JSON.",
                        stacklevel=2,
                    )

    def _states(self) -> list[dict[str, np.ndarray]]:
        return [{name: np.array(value) for name, value in _state_of(each)} for each in self._callbacks]

    def _changed(self) -> dict[str, Any]:
        """What has changed since the config, or the user's program, made the callbacks.

        What `on_train_begin` noted is part of it: in a later sitting it would see another model.
        """
        changed: dict[str, Any] = {}
        for i, (callback, made, begun) in enumerate(zip(self._callbacks, self._made, self._begun)):
            state = _changes(callback, made) | _changes(callback, begun)
            changed |= {f"{i}/{key}": value for key, value in state.items()}
        return changed

    def restore(self, state: str | None) -> None:
        """Gives the user's callbacks the state that they had.

        Args:
            state: from `state`. None for the state in which training began.
        """
        kept: list[dict[str, np.ndarray]] = [{} for _ in self._callbacks]
        self._watched.stop_training = self._stop_begun
        if state is not None:
            with np.load(io.BytesIO(base64.b64decode(state))) as arrays:
                self._watched.stop_training = bool(arrays["stop"])
                for i, changed in enumerate(kept):
                    changed |= {name.split("/", 1)[1]: arrays[name] for name in arrays if name.startswith(f"{i}/")}
        for callback, begun, changed in zip(self._callbacks, self._begun, kept):
            moved = {key.split("/")[0] for key in _changes(callback, begun)}
            again = {name: value for name, value in _from_arrays(begun).items() if name in moved}
            for name, value in (again | _from_arrays(changed)).items():
                setattr(callback, name, value)


def _state_of(callback: keras.callbacks.Callback) -> list[tuple[str, Any]]:
    """The attributes of a callback that an archive of arrays can hold. Lists of arrays get a name for each."""
    if isinstance(callback, keras.callbacks.CSVLogger):
        return []  # Its file is its state.
    state: list[tuple[str, Any]] = []
    for name, value in _attributes(callback):
        if value is None:
            state.append((f"{name}/none", 0))
        elif isinstance(value, (bool, int, float, str, np.generic, np.ndarray)):
            if np.asarray(value).dtype != object:
                state.append((f"{name}/one", value))
        elif isinstance(value, list) and all(map(_is_array, value)):
            state.append((f"{name}/list", len(value)))
            state += [(f"{name}/{i}", part) for i, part in enumerate(value)]
        elif (text := _json_of(value)) is not None:
            state.append((f"{name}/json", text))
    return state


def _is_array(part: Any) -> bool:
    """Whether an archive holds a part of a list: integers of more than 64 bits are objects to NumPy."""
    return isinstance(part, (int, float, np.generic, np.ndarray)) and np.asarray(part).dtype != object


def _attributes(callback: keras.callbacks.Callback) -> Iterator[tuple[str, Any]]:
    """The attributes of a callback that may be state.

    What the constructors of Keras take is none: the config gives it to the callback in each sitting. A class derived
    from one of Keras may change it, but for `min_delta`, whose sign Keras changes when the first epoch ends.
    """
    given = {"min_delta"}
    if type(callback).__module__.startswith("keras."):
        given |= {name for each in type(callback).__mro__ for name in inspect.signature(each.__init__).parameters}
    return ((name, value) for name, value in vars(callback).items() if name not in _SET_ANEW | given)


def _json_of(value: Any) -> str | None:
    """A dictionary or list as JSON text, if JSON gives it back as it is."""
    if not isinstance(value, (dict, list)):
        return None
    try:
        text = json.dumps(value)
        return text if repr(json.loads(text)) == repr(value) else None
    except (TypeError, ValueError):
        return None


def _not_kept(callback: keras.callbacks.Callback) -> dict[str, str]:
    """The containers that a user's callback has and no backup holds, as text by which a change is seen."""
    if type(callback).__module__.startswith(("keras.", "diffstride_hybrid.")):
        return {}
    kept = {key.split("/")[0] for key, _ in _state_of(callback)}
    containers = (dict, list, tuple, set, collections.deque)
    return {
        name: repr(value) for name, value in _attributes(callback) if name not in kept and isinstance(value, containers)
    }


def _changes(callback: keras.callbacks.Callback, begun: dict[str, Any]) -> dict[str, Any]:
    """The state of those attributes that are not as they were when training began."""
    now = dict(_state_of(callback))
    differing = (key for key in now if key not in begun or not np.array_equal(now[key], begun[key]))
    names = {key.split("/")[0] for key in differing}
    return {key: value for key, value in now.items() if key.split("/")[0] in names}


def _from_arrays(kept: dict[str, np.ndarray]) -> dict[str, Any]:
    state: dict[str, Any] = {}
    for key, value in kept.items():
        name, _, kind = key.rpartition("/")
        if kind == "none":
            state[name] = None
        elif kind == "one":
            state[name] = value.item() if value.ndim == 0 else value.copy()
        elif kind == "json":
            state[name] = json.loads(value.item())
        elif kind == "list":
            parts = [kept[f"{name}/{i}"] for i in range(int(value))]
            state[name] = [part.item() if part.ndim == 0 else part.copy() for part in parts]
    return state


def _keep_rows(path: pathlib.Path, separator: str, epochs: int) -> None:
    """Takes the last rows, of later epochs, out of the file of a CSVLogger: those epochs are trained again.

    Rows further up may be of another run, which the file had before.
    """
    rows = read_rows(path, separator)
    kept = len(rows)
    while kept and not (rows[kept - 1]["epoch"].isdigit() and int(rows[kept - 1]["epoch"]) < epochs):
        kept -= 1
    if kept < len(rows):
        write_whole(path, rows_as_text(list(rows[0]), rows[:kept], separator))
