"""Which callbacks a run takes, and what it settles for them before its first step."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import keras
import pytest
from support.interrupted_runs import At, Fault, assert_same_run, fail
from support.tiny_runs import json_of, random_digits, rows_of, train

from diffstride_hybrid.training import run as run_module
from diffstride_hybrid.training.callback_checks import check_callbacks, logged_names

pytestmark = pytest.mark.usefixtures("uncompiled")

run = partial(
    train, num_epochs=3, steps_per_epoch=2, steps_per_execution=1, optimizer_cls=partial(keras.optimizers.SGD, 0.1)
)


@pytest.mark.parametrize("validation_fraction", [0.1, 0.0])
def test_the_names_are_those_of_the_logs(tmp_path: Path, validation_fraction: float):
    run(tmp_path, num_epochs=1, load_data_fn=partial(random_digits, validation_fraction=validation_fraction))
    assert logged_names(validation_fraction > 0) == {*rows_of(tmp_path / "metrics.csv")[0]} - {"epoch"}


def early(monitor: str, **options: Any) -> Callable[[], keras.callbacks.Callback]:
    return partial(keras.callbacks.EarlyStopping, monitor, **options)


def best(path: str, **options: Any) -> Callable[[], keras.callbacks.Callback]:
    return partial(keras.callbacks.ModelCheckpoint, path, **options)


class Adds(keras.callbacks.Callback):
    """Adds a figure to the logs, which the callbacks after it get."""

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        logs["spread"] = float(epoch)


@pytest.mark.parametrize(
    ("callback", "validates", "message"),
    [
        (
            early("val_acc"),
            True,
            r"EarlyStopping with monitor = 'val_acc': this run logs accuracy, images_per_second, .*",
        ),
        (
            early("val_loss"),
            False,
            "monitor = 'val_loss': this run, without validation images, logs accuracy, .* step.$",
        ),
        (partial(keras.callbacks.ReduceLROnPlateau, "lr"), True, "ReduceLROnPlateau with monitor = 'lr'"),
        (early("seconds"), True, "monitor = 'seconds' and mode = 'auto': give mode = 'min' or 'max'"),
        (best("a.keras", monitor="val_acc", save_best_only=True), True, "ModelCheckpoint with monitor = 'val_acc'"),
        (
            best("a_{val_acc:.2f}.keras"),
            True,
            r"filepath = 'a_\{val_acc:.2f\}.keras': its placeholders may be accuracy, ",
        ),
        (best("a_{}.keras"), True, "its placeholders may be accuracy, epoch, "),
        (best("a.keras", monitor="loss", save_freq=2, save_best_only=True), True, "a run logs nothing at a batch"),
        (best("a_{loss}.keras", save_freq=2), True, "its placeholders may be batch, epoch.$"),
        (best("a_{val_loss:.2f}.keras"), False, "its placeholders may be accuracy, epoch, images_per_second, "),
    ],
)
def test_what_a_run_does_not_log_is_neither_monitored_nor_in_a_file_name(
    callback: Callable[[], keras.callbacks.Callback], validates: bool, message: str
):
    with pytest.raises(ValueError, match=message):
        check_callbacks([callback()], keras.optimizers.SGD(), 3, validates)


@pytest.mark.parametrize(
    "callback",
    [
        best("a_{epoch}_{val_loss:.2f}.keras"),
        best("a_{epoch}_{batch}.keras", save_freq=2),
        early("seconds", mode="min"),
        early("val_accuracy", mode="max"),
    ],
)
def test_what_a_run_logs_may_be_used(callback: Callable[[], keras.callbacks.Callback]):
    check_callbacks([callback()], keras.optimizers.SGD(), 3, True)


def test_a_file_is_saved_without_validation_images_though_its_default_monitor_needs_them():
    check_callbacks([best("a_{epoch}.keras")()], keras.optimizers.SGD(), 3, False)


def test_callbacks_are_a_list(tmp_path: Path):
    with pytest.raises(TypeError, match=r"train.train.callbacks must be a list, such as \[@EarlyStopping\(\)\], got <"):
        run(tmp_path, callbacks=early("loss")())


@pytest.mark.parametrize("kind", [keras.callbacks.EarlyStopping, keras.callbacks.ReduceLROnPlateau])
def test_accuracy_should_rise(kind: Any, tmp_path: Path):
    """Keras would ask a compiled model, and fail at the end of the first epoch."""
    callback = kind("val_accuracy")
    run(tmp_path, num_epochs=1, callbacks=[callback, best(tmp_path / "best.keras", monitor="accuracy")()])
    assert callback.mode == "max"


@pytest.mark.parametrize(
    "adds", [Adds, lambda: keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(spread=epoch))]
)
def test_a_callback_may_monitor_what_another_one_adds(adds: Callable[[], keras.callbacks.Callback], tmp_path: Path):
    stop = keras.callbacks.EarlyStopping("spread", mode="min", patience=1)
    assert run(tmp_path, callbacks=[adds(), stop])["epochs"] == 2


class Decay(keras.callbacks.Callback):
    """Changes what its constructor took, and a dictionary."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate, self.history = rate, {"rates": []}

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.rate *= 0.5
        self.history["rates"].append(self.rate)
        self.model.optimizer.learning_rate = self.rate * len(self.history["rates"])


def test_what_a_constructor_took_and_dictionaries_are_kept(tmp_path: Path):
    run(tmp_path / "alone", callbacks=[Decay(0.2)])
    with pytest.raises(Fault):
        run(tmp_path / "stopped", callbacks=[Decay(0.2), At(5, fail)])
    decay = Decay(0.2)
    run(tmp_path / "stopped", callbacks=[decay])
    assert decay.history == {"rates": [0.1, 0.05, 0.025]}
    assert_same_run(tmp_path / "stopped", tmp_path / "alone")


@pytest.mark.slow
def test_the_least_change_of_a_stopped_run_keeps_its_sign(tmp_path: Path):
    """Keras changes the sign of `min_delta` at the end of the first epoch, in each sitting."""
    signs = []
    for name in ("alone", "stopped"):
        if name == "stopped":
            with pytest.raises(Fault):
                run(tmp_path / name, callbacks=[early("loss", min_delta=0.5, patience=9)(), At(3, fail)])
        stop = early("loss", min_delta=0.5, patience=9)()
        run(tmp_path / name, callbacks=[stop])
        signs.append(stop.min_delta)
    assert signs == [-0.5, -0.5]


def test_what_no_backup_holds_is_named(tmp_path: Path):
    class Sets(keras.callbacks.Callback):
        def __init__(self):
            super().__init__()
            self.seen, self.shape = set(), (1, 2)

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seen.add(epoch)

    with pytest.warns(UserWarning, match=r"The backups of the run do not hold Sets\.seen: ") as warned:
        run(tmp_path, num_epochs=1, callbacks=[Sets()])
    assert not [each for each in warned if "shape" in str(each.message)]


# --- Starts that fail ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("on_not_finite", [pytest.param("stop", marks=pytest.mark.slow), "roll_back"])
def test_a_start_that_is_refused_leaves_nothing_that_a_later_start_goes_on_from(tmp_path: Path, on_not_finite: str):
    with pytest.raises(ValueError, match="cannot be reached"):
        run(tmp_path / "refused", seed=2, macs_budget=1e-6, on_not_finite=on_not_finite)
    with pytest.raises(FileNotFoundError):
        run(tmp_path / "refused", seed=3, callbacks=[keras.callbacks.CSVLogger("/nowhere/log.csv")])
    for name in ("refused", "new"):
        run(tmp_path / name, on_not_finite=on_not_finite)
    assert_same_run(tmp_path / "refused", tmp_path / "new")


def test_a_resumed_run_records_the_macs_that_it_began_with(tmp_path: Path):
    cut = partial(run, num_epochs=2, macs_budget=0.6, macs_budget_epoch=1)
    cut(tmp_path / "alone")
    with pytest.raises(Fault):
        cut(tmp_path / "stopped", callbacks=[At(3, fail)])
    cut(tmp_path / "stopped")
    records = [json_of(tmp_path / name / "run.json") for name in ("alone", "stopped")]
    assert records[0]["macs"] == records[1]["macs"] != json_of(tmp_path / "alone/summary.json")["macs"]


# --- Several workers -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("writes", [True, False])
def test_one_worker_alone_writes_files_for_a_user(writes: bool, tmp_path: Path):
    """The other ones keep the places of the list, by which backups tell the callbacks."""
    kinds = [keras.callbacks.CSVLogger, keras.callbacks.ModelCheckpoint, keras.callbacks.EarlyStopping]
    callbacks = [keras.callbacks.CSVLogger(tmp_path / "a.csv"), best(tmp_path / "a.keras")(), early("loss")()]
    callbacks.append(Logs(tmp_path / "b.csv"))  # It may do more than write.
    loop = SimpleNamespace(datasets=SimpleNamespace(image_shape=(8, 8, 1)), cost=None)
    schedule = SimpleNamespace(num_epochs=1, steps_per_epoch=1)
    folder = SimpleNamespace(writes=writes, path=tmp_path)
    with mock.patch.multiple(
        run_module, Listeners=mock.DEFAULT, MetricsLog=mock.DEFAULT, StrideLog=mock.DEFAULT
    ) as made:
        run_module._listeners(loop, folder, schedule, callbacks, None, None)
    (_, given, *_), _ = made["Listeners"].call_args
    nothing = keras.callbacks.Callback
    assert [type(each) for each in given] == [*(kinds if writes else [nothing, nothing, kinds[2]]), Logs]


class Logs(keras.callbacks.CSVLogger):
    """A user's own."""


@pytest.mark.parametrize(
    "kind", [keras.callbacks.ReduceLROnPlateau, lambda: keras.callbacks.LearningRateScheduler(len)]
)
def test_a_rate_that_is_a_function_is_not_set(kind: Any, tmp_path: Path):
    with pytest.raises(ValueError, match=r"learning rate follows <lambda>\. Give it a number"):
        run(tmp_path, callbacks=[kind()], optimizer_cls=lambda: keras.optimizers.SGD(lambda: 0.1))


class Limit(keras.callbacks.Callback):
    """Asks a run to stop in the middle of an epoch."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if int(self.model.optimizer.iterations) >= 3:
            self.model.stop_training = True


def test_the_epoch_in_which_a_callback_asks_to_stop_is_ended_if_the_run_is_interrupted(tmp_path: Path):
    options = {"steps_per_epoch": 4, "backup_every": 1}
    run(tmp_path / "alone", callbacks=[Limit()], **options)
    with pytest.raises(Fault):
        run(tmp_path / "stopped", callbacks=[Limit(), At(4, fail)], **options)
    run(tmp_path / "stopped", callbacks=[Limit()], **options)
    assert len(rows_of(tmp_path / "alone" / "metrics.csv")) == 1
    assert_same_run(tmp_path / "stopped", tmp_path / "alone")


class Patient(keras.callbacks.EarlyStopping):
    """Has more patience after each epoch, and keeps integers of 128 bits."""

    def __init__(self):
        super().__init__("loss", mode="max", patience=1)
        self.states: list[int] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        super().on_epoch_end(epoch, logs)
        self.patience += 1
        self.states = [2**100 + epoch, 1]


def test_what_a_class_of_ones_own_changes_of_keras_is_kept_and_so_are_long_integers(tmp_path: Path):
    with pytest.raises(Fault):
        run(tmp_path, callbacks=[Patient(), At(5, fail)])
    patient = Patient()
    run(tmp_path, callbacks=[patient])
    assert (patient.patience, patient.states) == (4, [2**100 + 2, 1])


def test_a_callback_of_one_worker_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Another worker's wish arrives as a sum above 0 where this one has none."""
    from diffstride_hybrid.training import listeners

    others = SimpleNamespace(sum_over_replicas=lambda strategy, value: value + 1)
    monkeypatch.setattr(listeners, "distribution", others)
    run(tmp_path, callbacks=[early("loss")()])
    assert len(rows_of(tmp_path / "metrics.csv")) == 1


@pytest.mark.parametrize("reduction", [None, "none"])
def test_a_loss_is_one_number(reduction: str | None, tmp_path: Path):
    loss = partial(keras.losses.CategoricalCrossentropy, reduction=reduction)
    with pytest.raises(ValueError, match=r"CategoricalCrossentropy\.reduction must be 'sum_over_batch_size' or 'sum'"):
        run(tmp_path, loss_cls=loss)
