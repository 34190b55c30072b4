"""Commands that a user gives again with something corrected, as their messages advise."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.commands import Result, assert_one_clear_line, options_of, run_here
from support.interrupted_runs import failing_once

from diffstride_hybrid.config import saved_runs

pytestmark = pytest.mark.usefixtures("uncompiled")


def train(folder: Path | None, pooling: dict[str, Any] | None = None, **bindings: Any) -> Result:
    named = {f"train.train.{name}": value for name, value in bindings.items()}
    named |= {"resnet.Resnet.pooling_cls": "@pooling.DiffStride", **(pooling or {})}
    workdir = [] if folder is None else [f"--workdir={folder}"]
    return run_here("train", "--gin_file=base", *workdir, *options_of(named))


def test_a_start_that_was_refused_does_not_bind_the_next_one(tmp_path: Path):
    assert_one_clear_line(train(tmp_path, macs_budget=0.001), "cannot be reached")
    wrong = train(tmp_path, callbacks="[@tf.keras.callbacks.TerminateOnNaN()]")
    assert_one_clear_line(wrong, "cannot have TerminateOnNaN")
    result = train(tmp_path)
    assert result.code == 0, result.err
    assert_one_clear_line(train(tmp_path), "holds a finished run")


@pytest.mark.parametrize("backup_every", [1, pytest.param(None, marks=pytest.mark.slow)])
def test_a_run_that_was_not_finite_goes_on_as_its_message_says(
    backup_every: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = {"steps_per_epoch": 4, "steps_per_execution": 1, "backup_every": backup_every}
    failing_once(monkeypatch, 2)
    stopped = train(tmp_path, **options)
    assert_one_clear_line(stopped, "start the same command with train.train.on_not_finite = 'roll_back' to go on")
    failing_once(monkeypatch, 2)
    result = train(tmp_path, **options, on_not_finite="'roll_back'")
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 3
    assert "train.on_not_finite = 'roll_back'" in (tmp_path / "operative_config.gin").read_text()


def test_the_summary_has_the_one_stride_of_a_layer_that_shares_it(tmp_path: Path):
    result = train(tmp_path, {"pooling.DiffStride.shared_stride": True})
    assert result.code == 0, result.err
    (line,) = (line for line in result.out.splitlines() if "block_2/" in line)
    assert float(line.split("  strides ")[1]) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("is_replaced", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_bound_workdir_is_named_if_an_option_replaces_it(
    is_replaced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    unread: list[str] = []
    monkeypatch.setattr(saved_runs.logging, "warning", lambda _, name: unread.append(name))
    result = train(tmp_path / "option" if is_replaced else None, workdir=f"'{tmp_path / 'bound'}'")
    assert result.code == 0, result.err
    assert (tmp_path / "bound").exists() != is_replaced
    assert unread == (["train.train.workdir"] if is_replaced else [])
