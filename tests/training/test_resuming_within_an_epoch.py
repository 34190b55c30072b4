"""A run stopped within an epoch goes on there."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.interrupted_runs import At, Fault, assert_same_run, backups_in, fail, stopped_at, trained
from support.tiny_runs import read, small

from diffstride_hybrid import DiffStride

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("uncompiled")]

SLOW = pytest.mark.slow


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
