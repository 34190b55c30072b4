"""Everything that can come between the start and the end of a run, caused for real."""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.damage import empty, flip_a_bit, truncate
from test_distribution import SMALL_HYBRID
from test_training import assert_same_weights, contents, json_of, load, read, rows_of, small, train

from diffstride_hybrid import DiffStride
from diffstride_hybrid.common import signals
from diffstride_hybrid.data.loading import load_datasets
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.runs import folder as run_folder
from diffstride_hybrid.runs.backups import Backups
from diffstride_hybrid.runs.folder import RunFolder
from diffstride_hybrid.training import diagnosis
from diffstride_hybrid.training import run as run_module
from diffstride_hybrid.training.loop import TrainingLoop

pytestmark = pytest.mark.long

SLOW = pytest.mark.slow

EPOCHS, STEPS = 2, 6

trained = partial(train, num_epochs=EPOCHS, steps_per_epoch=STEPS, steps_per_execution=1)

TIMES = {"seconds", "images_per_second", "training_seconds"}


def assert_same_run(folder: Path, expected: Path, eager: bool = True) -> None:
    """Compares all that two runs have left, to the bit, times apart."""
    uncompared = TIMES | ({"retraces"} if eager else set())  # Where eager, each execution counts as one.

    def untimed(row: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in row.items() if name not in uncompared}

    for name in ("final.keras", "best.keras"):
        assert_same_weights(load(folder, name), load(expected, name))
    for name in ("metrics.csv", "strides.csv"):
        assert [untimed(row) for row in rows_of(folder / name)] == [untimed(row) for row in rows_of(expected / name)]
    assert untimed(json_of(folder / "summary.json")) == untimed(json_of(expected / "summary.json"))
    assert not list(folder.rglob(".partial*"))


@pytest.fixture(scope="module", autouse=True)
def eagerly(eager_steps: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """For a dozen steps, tracing them would take longer. The processes below compile theirs."""
    with eager_steps():
        yield


@pytest.fixture(scope="module")
def left_alone(eagerly: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing came between."""
    folder = tmp_path_factory.mktemp("left_alone")
    with contextlib.redirect_stdout(None):
        trained(folder)
    return folder


@pytest.fixture(scope="module")
def begun(eagerly: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has one of its two epochs behind it."""
    folder = tmp_path_factory.mktemp("begun")
    with contextlib.redirect_stdout(None):
        stopped_at(EPOCHS * STEPS // 2 + 1, folder)
    return folder


class At(keras.callbacks.Callback):
    """Does something once, after a step counted over all epochs."""

    def __init__(self, step: int, action: Callable[[], None]):
        super().__init__()
        self._step = step
        self._action = action
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._epoch * self.params["steps"] + batch + 1 == self._step:
            self._action()


class Fault(Exception):
    """What ends a run in these tests."""


def fail() -> None:
    raise Fault


def stopped_at(step: int, folder: Path, **options: Any) -> None:
    """A run that fails after a step."""
    with pytest.raises(Fault):
        trained(folder, callbacks=[At(step, fail)], **options)


def backups_in(folder: Path) -> list[int]:
    return sorted(int(path.stem.split("-")[1]) for path in (folder / "backup").glob("ckpt-*.index"))


# --- Within an epoch -------------------------------------------------------------------------------------------------


def test_a_run_goes_on_within_an_epoch_as_if_it_had_not_stopped(
    left_alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stopped_at(5, tmp_path, backup_every=2)
    assert backups_in(tmp_path) == [2, 4]
    stopped_at(9, tmp_path, backup_every=2)
    assert backups_in(tmp_path) == [6, 8]
    trained(tmp_path, backup_every=2)
    resumed = [line.split(tmp_path.name)[1] for line in read(capsys) if "resuming" in line]
    assert resumed == [" after epoch 0 and 4 steps", " after epoch 1 and 2 steps"]
    assert_same_run(tmp_path, left_alone)


@SLOW
def test_backups_fall_on_whole_executions(tmp_path: Path):
    stopped_at(10, tmp_path, backup_every=3, steps_per_execution=2)
    assert backups_in(tmp_path) == [4, 6]  # Not after 3 steps, and once after 6.


@SLOW
def test_static_crops_are_looked_at_after_the_same_steps(tmp_path: Path):
    layers: list[DiffStride] = []

    def pooling(**arguments: Any) -> DiffStride:
        layers.append(DiffStride(static_crop=True, smoothness_factor=1.0, **arguments))
        return layers[-1]

    def grow() -> None:
        layers[-1].strides.assign([5.0, 5.0])

    def crops_at(step: int) -> At:
        return At(step, lambda: crops.append(dict(layers[-1].crops)))

    crops: list[dict[tuple[int, int], tuple[int, int]]] = []
    options = {
        "model_cls": partial(small, pooling_cls=pooling),
        "num_epochs": 1,
        "steps_per_epoch": 12,
        "crop_refresh_steps": 5,
        "backup_every": 2,
    }
    trained(tmp_path / "alone", **options, callbacks=[At(6, grow), crops_at(9), crops_at(11)])
    with pytest.raises(Fault):
        trained(tmp_path / "stopped", **options, callbacks=[At(6, grow), At(7, fail)])
    trained(tmp_path / "stopped", **options, callbacks=[crops_at(9), crops_at(11)])
    assert crops[:2] == crops[2:]
    assert crops[0] != crops[1]
    assert_same_run(tmp_path / "stopped", tmp_path / "alone")


def test_a_period_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"train\.train\.backup_every must be a whole number of at least 1, got 0"):
        trained(tmp_path, backup_every=0)


# --- Signals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (signal.SIGTERM, 3),
        pytest.param(signal.SIGTERM, 6, marks=SLOW),
        pytest.param(signal.SIGINT, 3, marks=SLOW),
        pytest.param(signal.SIGINT, 6, marks=SLOW),
    ],
)
def test_a_signal_ends_a_run_with_its_state_saved(number: signal.Signals, step: int, left_alone: Path, tmp_path: Path):
    before = signal.getsignal(number)
    message = rf"stopped by {number.name} after {step} steps: start the same command again to go on in {tmp_path}\."
    with pytest.raises(signals.Stopped, match=message):
        trained(tmp_path, callbacks=[At(step, lambda: os.kill(os.getpid(), number))])
    assert signal.getsignal(number) is before
    assert backups_in(tmp_path) == [step]
    trained(tmp_path)
    assert_same_run(tmp_path, left_alone)


@SLOW
def test_a_signal_in_the_last_epochs_validation_does_not_cost_the_run(left_alone: Path, tmp_path: Path):
    with pytest.raises(signals.Stopped):
        trained(tmp_path, callbacks=[At(12, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    assert backups_in(tmp_path) == [6, 12]
    trained(tmp_path)
    assert_same_run(tmp_path, left_alone)


def test_a_signal_while_the_data_load_ends_the_run_at_once(tmp_path: Path):
    def load(seed: int) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("this is not reached")

    with pytest.raises(signals.Stopped, match=r"stopped by SIGTERM while the run was set up: start the same command"):
        trained(tmp_path, load_data_fn=load)
    assert not list(tmp_path.iterdir())


def test_who_presses_twice_does_not_wait(tmp_path: Path):
    def press_twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, callbacks=[At(1, press_twice)])
    assert signal.getsignal(signal.SIGINT) is before


@SLOW
def test_a_run_in_another_thread_leaves_signals_alone(tmp_path: Path):
    thread = threading.Thread(target=partial(trained, tmp_path, num_epochs=1, steps_per_epoch=1))
    thread.start()
    thread.join()
    assert (tmp_path / "summary.json").exists()


# --- Two processes ---------------------------------------------------------------------------------------------------


@SLOW
def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path):
    code = (
        "import sys, time\n"
        "from diffstride_hybrid.runs.folder import RunFolder\n"
        f"with RunFolder({str(tmp_path)!r}).locked():\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        before = contents(tmp_path)
        with pytest.raises(OSError, match=rf"Process {process.pid} trains in {tmp_path}: wait for it, or choose"):
            trained(tmp_path)
        assert contents(tmp_path) == before
        process.kill()
    trained(tmp_path, num_epochs=1, steps_per_epoch=1)
    assert (tmp_path / "summary.json").exists()


def test_a_lock_that_its_owner_has_just_removed_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, taken = RunFolder(tmp_path), []
    flock = run_folder.fcntl.flock

    def flock_when_the_owner_leaves(lock: int, operation: int) -> None:
        if not taken:
            (tmp_path / RunFolder.LOCK).unlink()
        taken.append(lock)
        flock(lock, operation)

    monkeypatch.setattr(run_folder.fcntl, "flock", flock_when_the_owner_leaves)
    with folder.locked():
        assert (tmp_path / RunFolder.LOCK).read_text() == str(os.getpid())
    assert len(taken) == 2
    assert not list(tmp_path.iterdir())


def test_a_folder_made_anew_belongs_to_who_locks_it(tmp_path: Path):
    path = tmp_path / "run"
    first, second = RunFolder(path), None
    with first.locked():
        shutil.rmtree(path)
        second = RunFolder(path)
        with second.locked():
            with pytest.raises(OSError, match=rf"The workdir {path} is gone"):
                first.write_text("notes.txt", "from the first")
            second.write_text("notes.txt", "from the second")
            with pytest.raises(OSError, match=rf"Process {os.getpid()} trains in {path}: wait for it"), first.locked():
                pass
    assert (path / "notes.txt").read_text() == "from the second"


# --- Damaged backups -------------------------------------------------------------------------------------------------


DAMAGES = [truncate, empty, flip_a_bit, Path.unlink]
INDEX, DATA = "ckpt-{}-1.index", "ckpt-{}-1.data-00000-of-00001"


@pytest.mark.parametrize(
    ("name", "damage"),
    [(DATA, damage) for damage in DAMAGES] + [(INDEX, damage) for damage in DAMAGES[:3]],
    ids=[f"data {damage.__name__}" for damage in DAMAGES] + [f"index {damage.__name__}" for damage in DAMAGES[:3]],
)
def test_a_damaged_backup_gives_way_to_the_one_before(
    name: str, damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    model = small(num_output_classes=10)
    model.build((None, 16, 16, 1))
    variables = [variable.value for variable in model.variables]
    backups = Backups(tmp_path / "backup", tf.train.Checkpoint(variables=variables))
    for step in (3, 5):
        for variable in variables:
            variable.assign(tf.ones_like(variable) * step)
        backups.save(step)
    damage(tmp_path / "backup" / name.format(5))
    for variable in variables:
        variable.assign(tf.zeros_like(variable))
    assert backups.restore() == 3
    for variable in variables:
        np.testing.assert_array_equal(variable, tf.ones_like(variable) * 3)
    warnings = [record.getMessage() for record in caplog.records if "is damaged" in record.getMessage()]
    assert len(warnings) == 1
    assert f"the backup {tmp_path}/backup/ckpt-5-1 is damaged (" in warnings[0]


@pytest.fixture
def counter(tmp_path: Path) -> tuple[tf.Variable, Backups]:
    """A number, and backups of it."""
    number = tf.Variable(0.0)
    return number, Backups(tmp_path / "backup", tf.train.Checkpoint(number=number))


def test_a_second_backup_after_the_same_step_does_not_cost_the_first(
    counter: tuple[tf.Variable, Backups], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    number, backups = counter
    number.assign(1.0)
    backups.save(6)
    number.assign(2.0)
    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"ckpt-6-2 cannot be written: .* is kept\."):
        patch.setattr(os, "replace", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        backups.save(6)
    assert backups.restore() == 6
    assert number.numpy() == 1.0
    number.assign(2.0)
    backups.save(6)
    number.assign(0.0)
    assert backups.restore() == 6
    assert number.numpy() == 2.0


def test_a_process_killed_between_the_files_of_a_backup_leaves_the_one_before(
    counter: tuple[tf.Variable, Backups], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    number, backups = counter
    replace = os.replace

    def killed_at_the_index(source: Path, target: Path) -> None:
        if Path(source).suffix == ".index":
            raise KeyboardInterrupt
        replace(source, target)

    backups.save(6)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed_at_the_index)
        number.assign(1.0)
        backups.save(6)
    backups.tidy()
    assert {path.name for path in (tmp_path / "backup").iterdir()} == {INDEX.format(6), DATA.format(6)}
    assert backups.restore() == 6
    assert number.numpy() == 0.0


def test_a_damaged_backup_does_not_take_the_place_of_a_good_one(counter: tuple[tf.Variable, Backups], tmp_path: Path):
    _, backups = counter
    for step in (50, 60):
        backups.save(step)
    flip_a_bit(tmp_path / "backup" / DATA.format(60))
    assert backups.restore() == 50
    backups.save(60)
    assert sorted(path.name for path in (tmp_path / "backup").glob("*.index")) == ["ckpt-50-1.index", "ckpt-60-2.index"]


def test_what_was_never_saved_is_not_said_to_be_kept(counter: tuple[tf.Variable, Backups], tmp_path: Path):
    (tmp_path / "backup").write_text("no folder")
    with pytest.raises(OSError, match=r"ckpt-6-1 cannot be written: File exists\.$"):
        counter[1].save(6)


@SLOW
def test_a_run_goes_on_from_the_backup_before_a_damaged_one(left_alone: Path, tmp_path: Path):
    stopped_at(9, tmp_path, backup_every=2)
    flip_a_bit(tmp_path / "backup" / DATA.format(8))
    trained(tmp_path, backup_every=2)
    assert_same_run(tmp_path, left_alone)


def test_a_run_without_a_whole_backup_is_refused_and_kept(tmp_path: Path):
    stopped_at(5, tmp_path, backup_every=2)
    for step in (2, 4):
        truncate(tmp_path / "backup" / DATA.format(step))
    before = contents(tmp_path)
    with pytest.raises(OSError, match=rf"Every backup in {tmp_path}/backup is damaged: move that folder away"):
        trained(tmp_path, backup_every=2)
    assert contents(tmp_path) == before


def without_backups(path: Path) -> None:
    shutil.rmtree(path.with_name("backup"))
    path.write_text("loss\n1\n")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("run.json", truncate, r"run\.json is damaged \("),
        ("metrics.csv", empty, r"metrics\.csv is damaged \(no row of epoch 1\)"),
        ("strides.csv", truncate, r"strides\.csv is damaged \("),
        ("strides.csv", lambda path: path.write_bytes(bytes(100)), r"strides\.csv is damaged \("),
        ("metrics.csv", without_backups, r"metrics\.csv is damaged \("),
    ],
)
def test_a_damaged_file_of_a_run_is_named(
    name: str, damage: Callable[[Path], Any], message: str, begun: Path, tmp_path: Path
):
    run = shutil.copytree(begun, tmp_path / "run")
    damage(run / name)
    before = contents(run)
    with pytest.raises(OSError, match=message):
        trained(run, backup_every=2)
    assert contents(run) == before


def test_a_run_goes_on_without_the_rows_that_are_gone(begun: Path, tmp_path: Path):
    run = shutil.copytree(begun, tmp_path / "run")
    for name in ("metrics.csv", "strides.csv"):
        (run / name).unlink()
    trained(run)
    for name in ("metrics.csv", "strides.csv"):
        assert [row["epoch"] for row in rows_of(run / name)] == ["2"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path):
    stopped_at(3, tmp_path, backup_every=2)
    (tmp_path / ".partial.final.keras").write_bytes(b"half")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / ".partial.curves.png").write_bytes(b"half")
    (tmp_path / "backup" / DATA.format(4)).write_bytes(b"no index")
    (tmp_path / "backup" / ".partial" / "ckpt-4-1_temp").mkdir(parents=True)
    (tmp_path / "backup" / ".partial" / "ckpt-4-1_temp" / "part").write_bytes(b"half")
    with pytest.raises(Fault):
        trained(tmp_path, callbacks=[At(3, fail)], backup_every=2)
    assert not list(tmp_path.rglob("*partial*"))
    assert {path.name for path in (tmp_path / "backup").iterdir()} == {INDEX.format(2), DATA.format(2)}


# --- Disks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], Any]]]:
    """A file system in memory of its own, and what mounts it again with another option."""
    folder = tmp_path / "disk"
    folder.mkdir()

    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting needs more rights than these tests have here")
    try:
        yield folder, lambda option: subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, left: int) -> None:
    """Fills a file system but for some bytes."""
    free = shutil.disk_usage(folder).free
    with open(folder / "filling", "wb") as file:
        file.write(bytes(max(0, free - left)))


@pytest.mark.parametrize("left", [0, *(pytest.param(left, marks=SLOW) for left in (10_000, 40_000, 100_000, 160_000))])
def test_a_full_disk_stops_a_run_and_leaves_the_last_good_state(
    left: int, small_disk: tuple[Path, Callable[[str], Any]], left_alone: Path
):
    disk, _ = small_disk
    run = disk / "run"
    with pytest.raises(OSError, match=rf"{run}.* cannot be written: ") as error:
        trained(run, callbacks=[At(7, lambda: fill(disk, left))], backup_every=2)
    assert "\n" not in str(error.value)
    for path in (run / "metrics.csv", run / "strides.csv"):
        assert rows_of(path)
    assert not list(run.rglob(".partial*"))
    (disk / "filling").unlink()
    trained(run, backup_every=2)
    assert_same_run(run, left_alone)


@SLOW
def test_a_run_goes_on_when_its_disk_can_be_written_to_again(
    small_disk: tuple[Path, Callable[[str], Any]], left_alone: Path
):
    disk, remount = small_disk
    run = disk / "run"
    stopped_at(9, run, backup_every=2)
    remount("ro")
    with pytest.raises(OSError, match=rf"The workdir {run} cannot be written to: Read-only file system"):
        trained(run, backup_every=2)
    remount("rw")
    trained(run, backup_every=2)
    assert_same_run(run, left_alone)


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], Any]]]:
    """An ext4 file system in a file, and what has it find an error, at which it becomes read-only as disks then do."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    for command in (["mkfs.ext4", "-q", image], ["mount", "-o", "loop,errors=remount-ro", image, folder]):
        if shutil.which(command[0]) is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting needs more rights, or tools, than these tests have here")
    try:
        found = subprocess.run(["findmnt", "-no", "SOURCE", folder], capture_output=True, text=True, check=True)
        trigger = Path("/sys/fs/ext4", Path(found.stdout.strip()).name, "trigger_fs_error")
        yield folder, lambda: trigger.write_text("found by a test")
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@SLOW
@pytest.mark.parametrize("backup_every", [2, None])
def test_a_disk_that_fails_under_a_run_stops_it_and_keeps_the_last_good_state(
    backup_every: int | None, failing_disk: tuple[Path, Callable[[], Any]], left_alone: Path, tmp_path: Path
):
    disk, fail_at_last = failing_disk
    run = disk / "run"
    with pytest.raises(OSError, match=rf"{run}.* cannot be written: ") as error:
        trained(run, callbacks=[At(7, fail_at_last)], backup_every=backup_every)
    assert "\n" not in str(error.value)
    with pytest.raises(OSError, match=rf"The workdir {run} cannot be written to: Read-only file system"):
        trained(run)
    copy = shutil.copytree(run, tmp_path / "copy")
    trained(copy)
    assert_same_run(copy, left_alone)


@pytest.mark.parametrize("backup_every", [1, None])
def test_a_workdir_that_is_gone_stops_a_run(tmp_path: Path, backup_every: int | None):
    run = tmp_path / "run"
    with pytest.raises(OSError, match=rf"{run}.* (is gone|cannot be written)"):
        trained(run, callbacks=[At(2, lambda: shutil.rmtree(run))], backup_every=backup_every, num_epochs=1)
    assert not run.exists()


# --- Numbers that are not finite -------------------------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="tests")
class Overflowing(keras.layers.Layer):
    """Passes its inputs on, and infinity from the fourth training step on, or in it alone."""

    def __init__(self, last: int = 2**30, **kwargs: Any):
        super().__init__(**kwargs)
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False, name="calls")
        self.last = last

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "last": self.last}

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        if not training:
            return inputs
        self.calls.assign_add(1.0)
        calls = tf.convert_to_tensor(self.calls)
        return inputs * tf.cast(tf.where((calls >= 4) & (calls <= self.last), np.inf, 1.0), inputs.dtype)


@keras.saving.register_keras_serializable(package="tests")
class WithoutGradient(Overflowing):
    """Passes its inputs on, and a gradient that is not a number where the other passes infinity."""

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        roots = tf.sqrt(tf.where(tf.math.is_inf(super().call(tf.ones_like(inputs), training)), 0.0 * inputs, 1.0))
        return inputs + roots - tf.stop_gradient(roots)


def overflowing(num_output_classes: int, layer_cls: type[Overflowing] = Overflowing, **options: Any) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            keras.layers.Conv2D(4, 3, name="first"),
            DiffStride(2.0, name="learned"),
            keras.layers.BatchNormalization(name="before"),
            layer_cls(name="overflowing", **options),
            keras.layers.BatchNormalization(name="after"),
            keras.layers.GlobalAveragePooling2D(name="average"),
            keras.layers.Dense(num_output_classes, activation="softmax", name="last"),
        ],
        name="net",
    )


@pytest.mark.parametrize("steps_per_execution", [1, pytest.param(6, marks=SLOW)])
def test_a_step_that_is_not_finite_stops_the_run_and_says_where(tmp_path: Path, steps_per_execution: int):
    with pytest.raises(diagnosis.NotFiniteError) as error:
        trained(tmp_path, model_cls=overflowing, steps_per_execution=steps_per_execution, backup_every=2)
    message = str(error.value)
    assert message.startswith(
        "Step 4 (step 4 of epoch 1) is not finite, first the outputs of net/overflowing (Overflowing); strides learned "
    )
    assert "train.train.on_not_finite = 'roll_back'" in message
    assert "\n" not in message
    if steps_per_execution == 1:
        assert backups_in(tmp_path) == [2]


def test_a_loss_that_overflows_in_half_precision_stops_the_run_at_once(tmp_path: Path):
    model_cls = partial(overflowing, last=4)
    with pytest.raises(diagnosis.NotFiniteError, match=r"^Step 4 .* first the outputs of net/overflowing "):
        trained(tmp_path, model_cls=model_cls, dtype_policy="mixed_float16", backup_every=2)
    assert backups_in(tmp_path) == [2]


def with_an_endless_penalty(num_output_classes: int) -> keras.Model:
    model = overflowing(num_output_classes, last=0)
    dense = keras.layers.Dense(
        num_output_classes, bias_initializer=keras.initializers.Constant(1e20), bias_regularizer="l2", name="last"
    )
    return keras.Sequential([*model.layers[:-1], dense, keras.layers.Softmax()], name="net")


def test_a_loss_that_is_not_finite_stops_the_run_though_its_gradients_are(tmp_path: Path):
    with pytest.raises(diagnosis.NotFiniteError, match=r"^Step 1 .* first the loss of finite outputs; "):
        trained(tmp_path, model_cls=with_an_endless_penalty)


@pytest.mark.parametrize("steps_per_execution", [*(pytest.param(count, marks=SLOW) for count in (1, 3, 4)), 6])
def test_a_gradient_that_is_not_finite_is_found_at_its_step(tmp_path: Path, steps_per_execution: int):
    model_cls = partial(overflowing, layer_cls=WithoutGradient, last=4)
    message = r"^Step 4 \(step 4 of epoch 1\) is not finite, first the gradient of net/before/beta; "
    with pytest.raises(diagnosis.NotFiniteError, match=message):
        trained(tmp_path, model_cls=model_cls, steps_per_execution=steps_per_execution)


@SLOW
def test_the_weights_are_those_before_the_step(tmp_path: Path):
    loops: list[TrainingLoop] = []
    make_loop = run_module.make_loop
    with pytest.MonkeyPatch.context() as patch:
        # It passes the batch through the model once more, which moves moving averages.
        patch.setattr(diagnosis, "first_not_finite", lambda *args: "something")
        patch.setattr(
            run_module, "make_loop", lambda *args, **options: loops.append(make_loop(*args, **options)) or loops[0]
        )
        with pytest.raises(diagnosis.NotFiniteError):
            trained(tmp_path / "not_finite", model_cls=overflowing, steps_per_execution=6)
    trained(tmp_path / "three_steps", model_cls=partial(overflowing, last=0), num_epochs=1, steps_per_epoch=3)
    expected = load(tmp_path / "three_steps")
    assert_same_weights(loops[0].model, expected)


@SLOW
def test_rolling_back_leaves_the_batch_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    def poisoned(images: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        return tf.where(tf.reduce_any(numbers == chosen), np.inf, images)

    datasets = load_datasets("digits", image_size=16, batch_size=64, seed=1)
    seeds = tf.random.experimental.stateless_split(tf.constant([1, 3], tf.int64), 2)
    chosen = tf.random.stateless_uniform([datasets.images_per_step, 2], seeds[0], 0, tf.int64.max, tf.int64)[0, 0]
    load_data_fn = partial(load_datasets, "digits", image_size=16, batch_size=64, augment_fn=poisoned)
    options = {"load_data_fn": load_data_fn, "backup_every": 2}
    with pytest.raises(diagnosis.NotFiniteError, match=r"Step 4 .* first the images of the batch; strides "):
        trained(tmp_path / "stops", **options)

    trained(tmp_path / "rolls_back", **options, on_not_finite="roll_back")
    (warning,) = [record.getMessage() for record in caplog.records if "leaving its batch out" in record.getMessage()]
    assert "Going back to step 2" in warning
    assert json_of(tmp_path / "rolls_back" / "summary.json")["steps"] == EPOCHS * STEPS - 1

    stopped_at(9, tmp_path / "stopped", **options, on_not_finite="roll_back")
    trained(tmp_path / "stopped", **options, on_not_finite="roll_back")
    assert_same_run(tmp_path / "stopped", tmp_path / "rolls_back")


@SLOW
def test_two_batches_of_one_execution_are_left_out(tmp_path: Path):
    failing = {2, 4}
    train_steps, left_out = TrainingLoop.train_steps, []

    class Loop(TrainingLoop):
        """Takes the steps of `failing` for not finite, unless their batches are left out."""

        next_step = 0

        def start(self, first_step: int) -> None:
            super().start(first_step)
            self.next_step = first_step

        def train_steps(self, count: int) -> bool:
            steps = range(self.next_step, self.next_step + count)
            finite = next((i for i, step in enumerate(steps) if step in failing), count)
            train_steps(self, finite)
            self.next_step += finite
            return finite == count

        def leave_out_step(self) -> None:
            super().leave_out_step()
            left_out.append(self.next_step)
            self.next_step += 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "TrainingLoop", Loop)
        trained(tmp_path, steps_per_execution=6, num_epochs=1, on_not_finite="roll_back")
    assert left_out == [2, 2, 4]
    assert json_of(tmp_path / "summary.json")["steps"] == STEPS - 2


@SLOW
def test_a_run_that_is_never_finite_ends(tmp_path: Path):
    with pytest.raises(diagnosis.NotFiniteError, match="10 batches have been left out before"):
        trained(tmp_path, model_cls=overflowing, num_epochs=4, on_not_finite="roll_back")


def test_a_policy_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"train\.train\.on_not_finite must be 'stop' or 'roll_back', got 'hope'"):
        trained(tmp_path, on_not_finite="hope")


def test_gradients_and_weights_that_are_not_finite_are_named():
    model = overflowing(10, last=0)
    images, labels = tf.ones([2, 16, 16, 1]), tf.one_hot([0, 1], 10)
    cross_entropy = keras.losses.CategoricalCrossentropy()

    def root(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        return tf.sqrt(tf.reduce_sum(model.get_layer("last").bias ** 2))

    find = partial(diagnosis.first_not_finite, model)
    assert find(cross_entropy, images, labels) == "nothing when the step is repeated by itself"
    assert find(root, images, labels) == "the gradient of net/last/bias"
    assert (
        find(lambda labels, outputs: cross_entropy(labels, outputs) / 0, images, labels) == "the loss of finite outputs"
    )
    diffstride_layers(model)[0].strides.assign([np.nan, 2.0])
    assert find(cross_entropy, images, labels) == "the weights net/learned/strides"
    assert find(cross_entropy, images * np.nan, labels) == "the images of the batch"


# --- Processes -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gin_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small_hybrid.gin"
    path.write_text(SMALL_HYBRID + "train.train.backup_every = 8\n")
    return path


def start(gin_file: Path, cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "diffstride_hybrid.train", f"--gin_file={gin_file}", "--workdir=run", *arguments]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_backup(folder: Path, after: int, process: subprocess.Popen[str]) -> None:
    wait_until(lambda: any(step > after for step in backups_in(folder)), process)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)


STARTING, SAVING = "starting", "saving"
Moment = float | str


def killed_and_restarted(gin_file: Path, folder: Path, moments: Sequence[Moment], *arguments: str) -> int:
    """Kills a run at each moment, then lets it end.

    Args:
        gin_file: its config.
        folder: where to start it.
        moments: before its first backup, while it saves, or so many seconds after it has got further.
        *arguments: more of its own.

    Returns:
        How many backups it was killed in the middle of.
    """
    run, halves = folder / "run", 0
    partial = run / "backup" / ".partial"
    for moment in moments:
        last = max(backups_in(run), default=0)
        with start(gin_file, folder, *arguments) as process:
            if moment == STARTING:
                wait_until((run / "operative_config.gin").exists, process)
            else:
                wait_for_backup(run, last, process)
            if moment == SAVING:
                wait_until(partial.exists, process)
            elif moment != STARTING:
                time.sleep(moment)
            process.kill()
            process.communicate()
        halves += partial.exists()
        assert not (run / "summary.json").exists(), "killed too late"
    with start(gin_file, folder, *arguments) as process:
        _, err = process.communicate()
        assert process.returncode == 0, err
    return halves


def test_a_run_killed_twice_ends_as_one_left_alone(gin_file: Path, tmp_path: Path):
    arguments = ("--gin_bindings=train.train.num_epochs = 5",)
    for name, moments in (("alone", []), ("killed", [0.13, SAVING])):
        (tmp_path / name).mkdir()
        killed_and_restarted(gin_file, tmp_path / name, moments, *arguments)
    assert_same_run(tmp_path / "killed" / "run", tmp_path / "alone" / "run", eager=False)


@SLOW
def test_a_run_killed_ten_times_ends_as_one_left_alone(gin_file: Path, tmp_path: Path):
    arguments = ("--gin_bindings=train.train.num_epochs = 300", "--gin_bindings=train.train.backup_every = 3")
    rng = random.Random(0)
    halves = 0
    for name, moments in (
        ("alone", []),
        ("killed", [STARTING, *[rng.uniform(0, 1.0) for _ in range(6)], *[SAVING] * 3]),
    ):
        (tmp_path / name).mkdir()
        halves += killed_and_restarted(gin_file, tmp_path / name, moments, *arguments)
    assert halves > 0
    assert_same_run(tmp_path / "killed" / "run", tmp_path / "alone" / "run", eager=False)


@SLOW
def test_a_preempted_command_says_so_and_goes_on(gin_file: Path, tmp_path: Path):
    arguments = ("--gin_bindings=train.train.num_epochs = 40",)
    with start(gin_file, tmp_path, *arguments) as process:
        wait_for_backup(tmp_path / "run", 0, process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    assert process.returncode == signals.EXIT_CODE
    stopped = re.search(r"^stopped by SIGTERM after ([\d,]+) steps: start the same command again", err, re.MULTILINE)
    assert "Traceback" not in err
    steps = int(stopped[1].replace(",", ""))
    assert max(backups_in(tmp_path / "run")) == steps
    with start(gin_file, tmp_path, *arguments) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    epochs, within = re.match(r"resuming run after epoch (\d+)(?: and (\d+) steps)?\n", out).groups()
    assert 10 * int(epochs) + int(within or 0) == steps
    assert json_of(tmp_path / "run" / "summary.json")["steps"] == 400
