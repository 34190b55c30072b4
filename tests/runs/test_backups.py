"""Backups, and files of a run that are damaged or gone."""

import contextlib
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from support.damage import empty, flip_a_bit, truncate
from support.interrupted_runs import DATA, EPOCHS, INDEX, STEPS, At, Fault, assert_same_run, fail, stopped_at, trained
from support.tiny_runs import contents, rows_of, small

from diffstride_hybrid.runs.backups import Backups

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("uncompiled")]

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def begun(eager_steps: Callable[[], AbstractContextManager[None]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after the first of its two epochs."""
    folder = tmp_path_factory.mktemp("begun")
    with eager_steps(), contextlib.redirect_stdout(None):
        stopped_at(EPOCHS * STEPS // 2 + 1, folder)
    return folder


DAMAGES = [truncate, empty, flip_a_bit, Path.unlink]


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


@pytest.mark.parametrize("name", ["strides=[1,2]", "why?", "a*", "back\\slash"])
def test_a_folder_whose_name_tensorflow_takes_for_a_pattern(tmp_path: Path, name: str):
    number = tf.Variable(3.0)
    (tmp_path / name).mkdir()
    backups = Backups(tmp_path / name / "backup", tf.train.Checkpoint(number=number))
    backups.save(6)
    number.assign(0.0)
    assert backups.restore() == 6
    assert number.numpy() == 3.0


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
