"""Runs are repeatable, go on after they were stopped, and refuse folders that they must not use."""

import contextlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest
from support.tiny_runs import (
    Stop,
    assert_same_weights,
    contents,
    digits,
    json_of,
    load,
    read,
    rows_of,
    small,
    train,
    train_a_step,
)

from diffstride_hybrid.runs.backups import Backups

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(folder)
    return folder


def test_the_same_seed_gives_the_same_weights_to_the_bit(small_run: Path, tmp_path: Path):
    keras.utils.set_random_seed(99)
    train(tmp_path, steps_per_execution=1)  # Nor does it matter how many steps run in one call.
    assert_same_weights(load(tmp_path), load(small_run))


@pytest.mark.slow
def test_another_seed_gives_other_weights(tmp_path: Path, uncompiled: None):
    runs = [tmp_path / str(seed) for seed in (1, 2)]
    for run in runs:
        train_a_step(run, seed=int(run.name))
    for weight, other in zip(*(load(run).trainable_weights for run in runs), strict=True):
        if weight.name == "kernel":
            assert not np.array_equal(weight.numpy(), other.numpy()), weight.path


@contextlib.contextmanager
def save_no_more_than(steps: int) -> Iterator[None]:
    """Ends a run when it is about to save the backup of a later step."""
    save = Backups.save

    def save_or_stop(backups: Backups, step: int) -> None:
        if step > steps:
            raise InterruptedError("stopped")
        save(backups, step)

    with mock.patch.object(Backups, "save", save_or_stop):
        yield


def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for stop in (
        {"saved_steps": 2},  # The second epoch is recorded, not saved.
        {"callbacks": [Stop("on_epoch_begin", 1)]},  # Between two epochs.
    ):
        with save_no_more_than(stop.pop("saved_steps", 4)), pytest.raises(InterruptedError):
            train(tmp_path, **stop)
        assert not (tmp_path / "summary.json").exists()
    assert len(rows_of(tmp_path / "metrics.csv")) == 2
    train(tmp_path)
    lines = [line.split()[0] + " " + line.split()[-1 if "resuming" in line else 1] for line in read(capsys)]
    assert lines == ["epoch 1/2", "resuming 1", "resuming 1", "epoch 2/2"]

    for name in ("final.keras", "best.keras"):
        assert_same_weights(load(tmp_path, name), load(small_run, name))
    assert (tmp_path / "strides.csv").read_text() == (small_run / "strides.csv").read_text()
    timed = {"seconds", "images_per_second"}
    metrics, expected = (
        [{name: value for name, value in row.items() if name not in timed} for row in rows_of(run / "metrics.csv")]
        for run in (tmp_path, small_run)
    )
    assert metrics == expected
    summary, expected = (json_of(run / "summary.json") for run in (tmp_path, small_run))
    assert summary | {"training_seconds": 0} == expected | {"training_seconds": 0}
    seconds = [float(row["seconds"]) for row in rows_of(tmp_path / "metrics.csv")]  # Of both sittings.
    assert summary["training_seconds"] > sum(seconds) - 0.1


def test_a_folder_with_the_backup_of_another_model_is_refused(tmp_path: Path, uncompiled: None):
    with pytest.raises(InterruptedError):
        train(tmp_path, callbacks=[Stop("on_epoch_begin", 1)])
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}.* another (model|run)"):
        train(tmp_path, model_cls=partial(small, pooling_cls=None))
    assert contents(tmp_path) == before


# --- Folders that cannot be used -------------------------------------------------------------------------------------


def test_a_finished_folder_is_refused_and_kept(small_run: Path):
    before = contents(small_run)
    with pytest.raises(ValueError, match=rf"{small_run} holds a finished run"):
        train(small_run)
    assert contents(small_run) == before


@pytest.mark.parametrize("record", ["{}", "[]", "null"])
def test_a_record_that_says_nothing_is_named(record: str, tmp_path: Path):
    (tmp_path / "run.json").write_text(record)
    with pytest.raises(OSError, match=rf"{tmp_path}/run\.json is damaged: .* or choose another workdir\.$"):
        train(tmp_path)


@pytest.mark.parametrize("below", ["", "run", "run/1"])
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path, below: str):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(OSError, match=rf"The workdir {file / below} cannot be written to"):
        train(file / below)
    assert file.read_text() == "mine"


def test_what_is_in_the_folder_survives_a_failed_start(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="batch_size is too large"):
        train(tmp_path, load_data_fn=partial(digits, batch_size=9999))
    assert contents(tmp_path) == before
