"""The experiment that times the way to the first step."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from support.command_flags import defined_flags
from support.paths import ROOT

from experiments.first_step import __main__ as command
from experiments.first_step import report


def run(*options: str) -> None:
    with defined_flags(command.define_flags):
        flags.FLAGS(["first_step", *options])
        command.main([])


def row(network: str, version: str, seconds: float) -> dict[str, Any]:
    parts = {part: seconds / len(report.PARTS) for part in report.PARTS}
    return {"network": network, "version": version, **parts, "tracing": 0.1, "operations": 1234, **report.total(parts)}


def test_the_total_is_the_sum_of_the_parts():
    assert report.total(dict.fromkeys(report.PARTS, 0.5)) == {"total": 2.5}


def test_the_table_has_medians_and_the_share_of_the_version_before():
    rows = [row("digits", "this version", seconds) for seconds in (4.0, 5.0, 9.0)]
    rows += [row("digits", "before", seconds) for seconds in (20.0, 10.0, 8.0)]
    head, _, this, before = report.table(rows).splitlines()
    assert head.startswith("| network | version | import | data | model | begin | first step | of it tracing | total |")
    assert this == "| digits | this version |" + " 1.00 s |" * 5 + " 0.10 s | 5.00 s, 0.50 of before | 1,234 |"
    assert before.endswith("| 10.00 s | 1,234 |")


@pytest.mark.parametrize(
    ("option", "culprit"), [("--networks=cats", "got cats"), ("--against=/nowhere", "got '/nowhere'")]
)
def test_what_cannot_be_timed_is_named(option: str, culprit: str, tmp_path: Path):
    with pytest.raises(ValueError, match=culprit):
        run(option, f"--csv={tmp_path / 'rows.csv'}")


@pytest.mark.slow
def test_a_training_is_timed_by_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "rows.csv"
    run("--networks=digits", "--repeats=1", f"--csv={path}")
    with path.open() as file:
        (found,) = csv.DictReader(file)
    assert 0 < float(found["tracing"]) < float(found["first step"]) < float(found["total"])
    assert int(found["operations"]) > 500
    assert "| digits, width 8 | this version |" in capsys.readouterr().out


def test_a_training_that_fails_is_named(tmp_path: Path):
    (tmp_path / "diffstride_hybrid").mkdir()
    (tmp_path / "diffstride_hybrid" / "__init__.py").write_text("raise SystemExit('nothing works')")
    with pytest.raises(RuntimeError, match="ended before its second step: nothing works"):
        command.time_of_parts(str(tmp_path), [])
