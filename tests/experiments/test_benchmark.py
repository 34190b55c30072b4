import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.benchmark import cases
from experiments.benchmark import report as benchmark_report

CASE = cases.Case("layer", "stem", "released", "float32", 8, 32, 64, 1.0)


def row(case: cases.Case, milliseconds: float, megabytes: float | None, **more: Any) -> dict[str, Any]:
    fields = {**vars(case), "macs": 11_000_000, "milliseconds": milliseconds, "least": milliseconds - 1.0}
    fields |= {"most": milliseconds + 2.0, "megabytes": megabytes, "times_faster": None, "memory_ratio": None}
    return {**fields, **more}


def test_each_place_has_one_counterpart_in_the_release():
    listed = cases.cases(["layer", "sizes", "step"], batch=64)
    assert len(set(listed)) == len(listed)
    counterparts = [other for case in listed if (other := cases.release_case(case))]
    assert {case.place for case in counterparts} == {case.place for case in listed if case.part != "machine"}
    assert len(counterparts) == len({case.place for case in counterparts})
    assert {case.dtype for case in counterparts} == {"float32"}


def test_only_the_parts_that_were_asked_for_are_measured():
    assert {case.part for case in cases.cases(["step"], batch=2)} == {"machine", "step"}


def test_the_table_compares_with_the_release():
    rows = [
        row(CASE, 20.0, 60.0, times_faster=4.0, memory_ratio=0.5),
        row(cases.Case(**{**vars(CASE), "variant": "release"}), 80.0, 120.0, macs=None, times_faster=1.0),
        row(cases.Case(**{**vars(CASE), "place": "block 2"}), 30.0, 60.0, times_faster=9.0, memory_ratio=0.125),
    ]
    lines = benchmark_report.markdown(rows).splitlines()
    assert lines[2] == "| stem | released | 8 | 11.0 M | 20 ms, 4.00x, 0.50 of the memory |"
    assert lines[3] == "| stem | release | 8 |  | 80 ms, 120 MB |"
    assert lines[-1] == "| geometric mean | released | | | 6.00x, 0.25 of the memory |"


def test_without_a_release_its_columns_are_absent():
    table = benchmark_report.markdown([row(CASE, 20.0, None)])
    assert table.splitlines()[2:] == ["| stem | released | 8 | 11.0 M | 20 ms |"]
    assert benchmark_report.line(row(CASE, 20.0, None)).endswith("20.00 ms (19.00 to 22.00)")


def test_rows_and_figure_are_written(tmp_path: Path):
    rows = [row(CASE, 20.0, 60.0), row(cases.Case(**{**vars(CASE), "part": "step", "place": "net"}), 40.0, None)]
    benchmark_report.write_csv(tmp_path / "rows.csv", rows)
    benchmark_report.write_figure(tmp_path / "rows.png", rows)
    with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
        assert [read["milliseconds"] for read in csv.DictReader(file)] == ["20.0", "40.0"]
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_benchmark_measures_every_layer(tmp_path: Path):
    command = [sys.executable, "-m", "experiments.benchmark", "--parts=layer", "--batch=1", "--repeats=1"]
    subprocess.run([*command, f"--output={tmp_path}/rows.csv"], check=True, capture_output=True)
    with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(cases.cases(["layer"], batch=1))
    assert all(float(read["least"]) <= float(read["milliseconds"]) <= float(read["most"]) for read in rows)
    assert all(float(read["megabytes"]) > 0 for read in rows if read["variant"] in ("released", "symmetric"))
