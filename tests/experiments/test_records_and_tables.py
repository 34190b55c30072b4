"""Rows of runs, and tables of rows."""

import dataclasses
import itertools
import json
import re
import statistics
from pathlib import Path

import pytest
from support.damage import truncate
from support.small_study import SMALL
from support.study_folders import POOLING, finish

from diffstride_hybrid.common.files import rows_as_text
from experiments import tables
from experiments.studies import costs, fingerprint, records
from experiments.studies import report as study_report
from experiments.studies.study import Cell, Method, Study, Variant
from experiments.transfer import report as transfer_report


# --- Records ---------------------------------------------------------------------------------------------------------
def test_each_finished_run_is_a_row_and_each_of_its_epochs_another(tmp_path: Path):
    cells = SMALL.cells()
    for cell in cells[:3]:
        finish(cell, tmp_path / "runs")
    rows, epochs = records.record(SMALL, str(tmp_path / "runs"), tmp_path)
    assert [tuple(row[name] for name in records.KEY) for row in rows] == [
        ("digits", name, "", "2,2,2", "1") for name in ("strided", "learned", "matched")
    ]
    assert rows == records.read_rows(tmp_path / "small.csv")
    assert [(row["method"], row["epoch"]) for row in epochs] == list(
        itertools.product(("strided", "learned", "matched"), ("0", "1", "2"))
    )
    columns = {name: value for name, value in rows[1].items() if name not in (*records.KEY, "config")}
    assert columns == {
        "validation_accuracy": "0.80000",
        "validation_loss": "1.10000",
        "test_accuracy": "0.90000",
        "test_loss": "0.10000",
        "epochs": "2",
        "steps": "80",
        "macs_at_start": "1600000",
        "macs": "1500000",
        "pooling_macs": "1000",
        "parameters": "44926",
        "strides_at_start": "pooling 2.0000,2.0000",
        "strides_at_end": "pooling 2.5000,1.5000",
        "sizes_at_end": "pooling 32x32 to 20x26",
        "training_seconds": "3.5",
        "training_images": "1293",
        "dtype_policy": "float32",
        "versions": "python 3.11.0; keras 3.15.1",
        "commit": "abc",
    }
    assert epochs[3]["loss"] == "" and float(epochs[4]["loss"]) > 0


def test_rows_of_runs_on_another_machine_stay_and_rows_of_no_cell_go(tmp_path: Path):
    cells = SMALL.cells()
    finish(cells[0], tmp_path / "here", accuracy=0.5)
    records.record(SMALL, str(tmp_path / "here"), tmp_path)
    finish(cells[4], tmp_path / "there")
    finish(
        Cell("small", "digits", Method("gone", "digits_hybrid"), Variant(), (1, 1, 1), 1, "m", ()), tmp_path / "there"
    )
    rows, epochs = records.record(SMALL, str(tmp_path / "there"), tmp_path)
    assert [(row["method"], row["strides"]) for row in rows] == [("strided", "2,2,2"), ("learned", "3,2,3")]
    assert len(epochs) == 6
    finish(cells[0], tmp_path / "there", accuracy=0.75)
    rows, _ = records.record(SMALL, str(tmp_path / "there"), tmp_path)
    assert [row["test_accuracy"] for row in rows] == ["0.75000", "0.90000"]
    assert records.record(SMALL, str(tmp_path / "nowhere"), tmp_path)[0] == rows


def test_rows_of_another_version_of_the_study_do_not_stay(tmp_path: Path):
    (cell, *_) = SMALL.cells()
    finish(cell, tmp_path / "runs")
    records.record(SMALL, str(tmp_path / "runs"), tmp_path)
    changed = dataclasses.replace(SMALL, bindings=("train.train.num_epochs = 3",))
    assert records.record(changed, str(tmp_path / "nowhere"), tmp_path) == ([], [])
    assert len(records.record(SMALL, str(tmp_path / "nowhere"), tmp_path)[0]) == 1


def test_a_study_of_the_validation_images_does_not_see_the_others(tmp_path: Path):
    (cell, *_) = SMALL.cells()
    folder = finish(cell, tmp_path / "runs")
    study = dataclasses.replace(SMALL, measure="validation")
    ((row,), _) = records.record(study, str(tmp_path / "runs"), tmp_path)
    assert row["validation_accuracy"] == "0.80000"
    assert not [name for name in row if name.startswith("test")]
    (folder / "metrics.csv").write_text("epoch,loss,accuracy\n1,2.0,0.3\n2,1.0,0.4\n")
    with pytest.raises(ValueError, match=f"{cell.name} has no validation images, which study small compares"):
        records.record(study, str(tmp_path / "runs"), tmp_path)


def test_a_run_of_another_version_of_the_study_is_refused(tmp_path: Path):
    (cell, *_) = SMALL.cells()
    folder = finish(cell, tmp_path)
    fingerprint.check_unchanged(cell, str(tmp_path))
    (folder / fingerprint.CELL_FILE).write_text(
        json.dumps({**fingerprint.description(cell), "gin_bindings": ["a = 1"]})
    )
    with pytest.raises(ValueError, match=r"another version of the study: gin_bindings was \['a = 1'\], is "):
        records.record(SMALL, str(tmp_path), tmp_path)


def test_a_run_that_is_no_longer_matched_is_refused(tmp_path: Path):
    _, learned, matched, *_ = SMALL.cells()
    runs = str(tmp_path / "runs")
    finish(learned, runs)
    finish(matched, runs)
    fingerprint.write_description(matched, runs, costs.matched_bindings(matched, runs))
    unmatched = dataclasses.replace(matched, reference=None)
    with pytest.raises(ValueError, match=r"another version of the study: .*matched was .*, is None\. Move it away"):
        fingerprint.check_unchanged(unmatched, runs)


def test_a_run_that_was_matched_to_another_run_than_the_present_one_is_refused(tmp_path: Path):
    _, learned, matched, *_ = SMALL.cells()
    finish(learned, tmp_path / "runs")
    finish(matched, tmp_path / "runs")
    runs = str(tmp_path / "runs")
    fingerprint.write_description(matched, runs, costs.matched_bindings(matched, runs))
    records.record(SMALL, runs, tmp_path)
    larger = {**POOLING, "output_size": [24, 30]}
    finish(learned, runs, poolings=[larger])
    with pytest.raises(ValueError, match=r"another version of the study: matched was .*, is .*Move it away"):
        records.record(SMALL, runs, tmp_path)


def test_a_row_matched_to_a_run_that_is_trained_anew_does_not_stay(tmp_path: Path):
    _, learned, matched, *_ = SMALL.cells()
    for cell in (learned, matched):
        finish(cell, tmp_path / "there")
    rows, _ = records.record(SMALL, str(tmp_path / "there"), tmp_path)
    finish(learned, tmp_path / "again")  # With the same maps and MACs.
    assert records.record(SMALL, str(tmp_path / "again"), tmp_path)[0] == rows
    finish(learned, tmp_path / "here", poolings=[{**POOLING, "output_size": [24, 30]}])
    rows, epochs = records.record(SMALL, str(tmp_path / "here"), tmp_path)
    assert {row["method"] for row in rows} == {row["method"] for row in epochs} == {"learned"}


def with_another_config_of_learned() -> Study:
    """The small study with another config of the one method that another is matched to."""
    strided, learned, matched = SMALL.methods
    learned = dataclasses.replace(learned, bindings=("train.train.num_epochs = 3",))
    return dataclasses.replace(SMALL, methods=(strided, learned, matched))


def test_a_row_matched_to_a_run_of_another_config_does_not_stay(tmp_path: Path):
    strided, learned, matched, *_ = SMALL.cells()
    for cell in (strided, learned, matched):
        finish(cell, tmp_path / "there")
    rows, _ = records.record(SMALL, str(tmp_path / "there"), tmp_path)
    changed = with_another_config_of_learned()
    assert [row["method"] for row in records.present_rows(changed, rows)] == ["strided"]
    assert [cell.method.name for cell in records.recorded_costs(changed, tmp_path)] == ["strided"]
    kept = [[row["method"] for row in file] for file in records.record(changed, str(tmp_path / "nowhere"), tmp_path)]
    assert kept == [["strided"], ["strided"] * 3]


def test_a_row_matched_to_a_run_without_a_row_is_not_recorded(tmp_path: Path):
    _, learned, matched, *_ = SMALL.cells()
    for cell in (learned, matched):
        finish(cell, tmp_path / "there")
    rows, _ = records.record(SMALL, str(tmp_path / "there"), tmp_path)
    (tmp_path / "small.csv").write_text(rows_as_text(list(rows[1]), rows[1:]))
    assert records.present_rows(SMALL, rows[1:]) == rows[1:]  # An audit may be of a matched run alone.
    assert not records.recorded_costs(SMALL, tmp_path)
    rows, epochs = records.record(SMALL, str(tmp_path / "nowhere"), tmp_path)
    assert (rows, {row["method"] for row in epochs}) == ([], {"learned"})


def test_what_is_here_counts_before_what_is_recorded(tmp_path: Path):
    _, learned, matched, *_ = SMALL.cells()
    finish(learned, tmp_path / "runs")
    here = costs.matched_bindings(matched, str(tmp_path / "runs"))
    recorded = {learned: costs.Cost(1, {"pooling": ((32, 32), (16, 16))})}
    assert costs.matched_bindings(matched, str(tmp_path / "runs"), recorded) == here
    assert costs.matched_bindings(matched, str(tmp_path / "nowhere"), recorded) != here


@pytest.mark.parametrize("name", ["small.csv", "small_epochs.csv"])
@pytest.mark.parametrize("damage", ["<<<<<<< HEAD", "digits,strided", 'digits,strided,,"2,2,2",1'])
def test_a_damaged_line_of_a_csv_file_is_named(name: str, damage: str, tmp_path: Path):
    for cell in SMALL.cells()[:3]:
        finish(cell, tmp_path / "runs")
    records.record(SMALL, str(tmp_path / "runs"), tmp_path)
    lines = (tmp_path / name).read_text().splitlines()
    (tmp_path / name).write_text("\n".join([*lines[:2], damage, *lines[2:]]) + "\n")
    with pytest.raises(OSError, match=rf"{name} is damaged: line 3 is no row of it"):
        records.record(SMALL, str(tmp_path / "nowhere"), tmp_path)


@pytest.mark.parametrize("name", ["run.json", "summary.json", fingerprint.CELL_FILE])
def test_a_damaged_file_of_a_run_is_named(tmp_path: Path, name: str):
    (cell, *_) = SMALL.cells()
    path = finish(cell, tmp_path) / name
    truncate(path)
    with pytest.raises(OSError, match=f"{re.escape(str(path))} is damaged"):
        records.record(SMALL, str(tmp_path), tmp_path)


# --- Tables ----------------------------------------------------------------------------------------------------------
def rows_of(accuracies: dict[tuple[str, str], list[float]]) -> list[records.Row]:
    return [
        {
            "data": "digits",
            "method": method,
            "variant": "",
            "strides": strides,
            "seed": str(seed),
            "test_accuracy": str(accuracy),
            "macs": str(1_000_000 * (seed + 1) if method == "learned" else 2_000_000),
            "pooling_macs": "0" if method == "strided" else "250000",
            "parameters": "1234",
            "training_seconds": str(90 * (seed + 1)),
        }
        for (method, strides), values in accuracies.items()
        for seed, accuracy in enumerate(values)
    ]


ROWS = rows_of(
    {
        ("strided", "2,2,2"): [0.5, 0.6, 0.7],
        ("strided", "3,2,3"): [0.4],
        ("learned", "2,2,2"): [0.8, 0.7, 0.9],
        ("learned", "3,2,3"): [0.5],
    }
)


def test_a_table_gives_mean_deviation_count_and_macs():
    head, rule, *lines = study_report.accuracy_table(SMALL, "digits", ROWS).splitlines()
    assert head == "| method | strides 2,2,2 | strides 3,2,3 | mean | runs | parameters |"
    assert rule.count("---") == 6
    assert lines == [
        "| `strided` | 60.00 ± 10.00 %, 2.0 M | 40.00 %, 2.0 M | 45.00 % | 3 + 1 | 1,234 |",
        "| `learned` | 80.00 ± 10.00 %, 2.0 M + 0.2 M | 50.00 %, 1.0 M + 0.2 M | 65.00 % | 3 + 1 | 1,234 |",
    ]


def test_the_mean_is_that_over_the_strides_and_its_deviation_that_of_the_seeds():
    rows = rows_of({("learned", "2,2,2"): [0.5, 0.7], ("learned", "3,2,3"): [0.3, 0.7]})
    (line,) = study_report.accuracy_table(SMALL, "digits", rows).splitlines()[2:]
    assert f"| 55.00 ± {statistics.stdev([40, 70]):.2f} % | 2 x 2 |" in line


def test_published_figures_have_a_column_of_their_own():
    study = dataclasses.replace(SMALL, published={("digits", "learned"): "99 %"})
    head, _, strided, learned = study_report.accuracy_table(study, "digits", ROWS).splitlines()
    assert head.endswith("| published |")
    assert strided.endswith("| none |") and learned.endswith("| 99 % |")


def test_a_timed_study_shows_the_mean_time_of_training():
    study = dataclasses.replace(SMALL, timed=True)
    head, _, strided, _ = study_report.accuracy_table(study, "digits", ROWS).splitlines()
    assert head.endswith("| parameters | training |")
    assert strided.endswith(f"| {statistics.fmean([1.5, 3, 4.5, 1.5]):.1f} min |")


def test_differences_are_those_of_runs_of_the_same_strides_and_seed():
    (line,) = study_report.difference_table(SMALL, ROWS).splitlines()[2:]
    assert line == "| `strided` | -20.00 ± 10.00 | -10.00 | -20.00 | 4 |"


def test_the_mean_difference_has_the_deviation_of_the_seeds():
    strided = {("strided", "2,2,2"): [0.5, 0.6], ("strided", "3,2,3"): [0.1, 0.3]}
    (line,) = study_report.difference_table(
        SMALL, rows_of(strided | {("learned", "2,2,2"): [0.4, 0.6], ("learned", "3,2,3"): [0.3, 0.7]})
    ).splitlines()[2:]
    assert line.endswith(f"| {statistics.fmean([-5, -20]):.2f} ± {statistics.stdev([-5, -20]):.2f} | 4 |")


@pytest.mark.parametrize("lines", [None, 1, 2])
def test_an_experiment_without_all_its_rows_is_named(
    lines: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Otherwise its table on the page would be replaced by an empty one."""
    path = tmp_path / "transfer.csv"
    if lines is not None:
        path.write_text("".join(transfer_report.CSV.read_text().splitlines(keepends=True)[:lines]))
    monkeypatch.setattr(transfer_report, "CSV", path)
    with pytest.raises(ValueError, match=rf"{path} (is missing, or has no rows|does not have all rows)"):
        tables.standing_tables()


def test_a_table_is_put_between_its_marks():
    text = "a\n<!-- table x -->\nold\n<!-- end of table -->\nb\n<!-- table y -->\nkept\n<!-- end of table -->\n"
    assert tables.replace_table(text, "x", "new \\1") == text.replace("old", "new \\1")
    with pytest.raises(ValueError, match="<!-- table z -->"):
        tables.replace_table(text, "z", "new")
