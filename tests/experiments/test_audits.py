"""Audits of a study's runs: rows, table, figure, and the command that makes them."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from support.command_flags import defined_flags
from support.paths import TESTS
from support.small_study import SMALL
from support.study_folders import finish

from diffstride_hybrid import audit
from diffstride_hybrid.audit.report import Audit
from diffstride_hybrid.common.files import read_rows, rows_as_text, write_whole
from experiments import audits
from experiments.studies import audited, records
from experiments.studies import flags as study_flags


@pytest.fixture(scope="module")
def small_audit() -> Audit:
    layers = [keras.layers.MaxPooling2D(2), keras.layers.Conv2D(3, 3, strides=2), keras.layers.GlobalMaxPooling2D()]
    model = keras.Sequential([keras.Input((16, 16, 1)), *layers])
    images = np.random.default_rng(0).integers(0, 256, (36, 16, 16, 1))
    return audit(model, images, labels=np.arange(36) % 3)


def test_a_row_has_the_means_of_an_audit(small_audit: Audit):
    cell = SMALL.cells()[0]
    row = audited.row_of(cell, small_audit, "abc")
    assert {name: row[name] for name in records.KEY} == {
        "data": "digits",
        "method": "strided",
        "variant": "",
        "strides": "2,2,2",
        "seed": "1",
    }
    kept, of_convolution = small_audit.poolings
    assert of_convolution.energy_kept is None
    shares = {
        "accuracy": small_audit.accuracy,
        "consistency": np.mean(list(small_audit.consistency.values())),
        **{name.replace(", ", "_"): share for name, share in small_audit.consistency.items()},
        "worst_case": small_audit.worst_case_consistency,
        "worst_case_accuracy": small_audit.worst_case_accuracy,
        "energy_kept": kept.energy_kept,
        "aliased": (kept.aliased + of_convolution.aliased) / 2,
        "shift_error": (kept.shift_error + of_convolution.shift_error) / 2,
        "corruptions": np.mean(list(small_audit.corruptions.values())),
        **{kind: np.mean(by_level) for kind, by_level in small_audit.corruptions.items()},
        **{f"fgsm_{strength}": small_audit.attacks[f"{strength}/255"] for strength in (1, 4)},
    }
    assert {name: float(row[name]) for name in shares} == pytest.approx(shares, abs=1e-5)
    counts = {"images": 36, "macs": small_audit.macs, "pooling_macs": small_audit.pooling_macs}
    assert {name: int(row[name]) for name in counts} == counts
    assert row.keys() - shares.keys() - counts.keys() - {*records.KEY} == {"parameters", "commit", "config"}
    assert (row["parameters"], row["commit"]) == (str(small_audit.parameters), "abc")


def rows_of(small_audit: Audit, accuracies: dict[tuple[str, int], float]) -> list[dict[str, str]]:
    rows = []
    for cell in SMALL.cells():
        if cell.strides == (2, 2, 2) and (accuracy := accuracies.get((cell.method.name, cell.seed))) is not None:
            rows.append(audited.row_of(cell, dataclasses.replace(small_audit, accuracy=accuracy), "abc"))
    return rows


def test_the_table_and_the_figure_have_each_method_with_its_spread(small_audit: Audit):
    accuracies = {("strided", 1): 0.8, ("strided", 2): 0.9, ("learned", 1): 0.7}
    rows = rows_of(small_audit, accuracies)
    lines = audited.table(SMALL, rows).splitlines()
    assert lines[2].startswith("| 2,2,2 | `strided` | 85.00 ± 7.07 % |") and lines[2].endswith("| 2 |")
    assert lines[3].startswith("| 2,2,2 | `learned` | 70.00 % |") and lines[3].endswith("| 1 |")
    assert len(lines) == 4
    without = [{**row, "energy_kept": ""} for row in rows]
    assert " |  | " in audited.table(SMALL, without)
    figure = audited.drawing(SMALL, rows)
    assert [len(axes.containers) for axes in figure.axes] == [2, 2, 2, 2]
    for name, axes in zip(audited.DRAWN, figure.axes):
        ((of_macs, share),) = axes.containers[1].lines[0].get_xydata()
        assert (of_macs, share) == pytest.approx((small_audit.macs / 1e6, 100 * float(rows[-1][name])))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["strided", "learned", "strides 2,2,2"]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    flags.FLAGS.mark_as_parsed()
    monkeypatch.setattr(study_flags, "load_study", {"small": SMALL}.get)
    folders = {"runs": str(tmp_path / "runs"), "results": str(tmp_path / "results")}

    def run() -> str:
        with defined_flags(audits.define_flags), flagsaver.flagsaver(study="small", images=10, **folders):
            audits.main([])
        return capsys.readouterr().out

    return run


def test_the_command_audits_each_finished_run_once(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="No run of small is finished"):
        command()
    cell = SMALL.cells()[0]
    folder = finish(cell, tmp_path / "runs")
    for name in ("final.keras", "operative_config.gin", "run.json"):
        shutil.copy(TESTS / "fixtures" / "finished" / name, folder)
    out = command()
    assert f"{cell.name}: accuracy" in out and "| 2,2,2 | `strided` |" in out
    rows = read_rows(tmp_path / "results" / "small_audits.csv")
    assert [row["method"] for row in rows] == ["strided"] and rows[0]["images"] == "10"
    assert (tmp_path / "results" / "small_audits.png").stat().st_size > 10_000
    monkeypatch.setattr(audits, "audit_of_run", None)  # Nothing is audited again.
    assert command() == audited.table(SMALL, rows) + "\n"
    path = tmp_path / "results" / "small_audits.csv"
    write_whole(path, rows_as_text(list(rows[0]), [*rows, {**rows[0], "seed": "2", "config": "of before"}]))
    assert command() == audited.table(SMALL, rows) + "\n"
    assert read_rows(path) == rows  # As the table and the figure have it.


def test_audits_of_another_version_of_the_study_are_not_in_the_standing_table(small_audit: Audit, tmp_path: Path):
    rows = rows_of(small_audit, {("strided", 1): 0.8, ("learned", 1): 0.7})
    old = [rows[0], {**rows[1], "config": "of before"}]
    write_whole(tmp_path / "small_audits.csv", rows_as_text(list(rows[0]), old))
    assert audited.standing_tables({"small": SMALL}, tmp_path) == {"small_audits": audited.table(SMALL, rows[:1])}
    write_whole(tmp_path / "small_audits.csv", rows_as_text(list(rows[0]), old[1:]))
    with pytest.raises(ValueError, match=r"small_audits\.csv has no run of the present study"):
        audited.standing_tables({"small": SMALL}, tmp_path)


def test_what_has_changed_since_it_was_audited_is_left_out(small_audit: Audit, tmp_path: Path):
    cell, runs = SMALL.cells()[0], str(tmp_path)
    row = audited.row_of(cell, small_audit, "abc")
    assert audited.still_valid([row], SMALL, runs, 36) == [row]
    assert audited.still_valid([{**row, "config": "0"}, {**row, "seed": "77"}], SMALL, runs, 36) == []
    with pytest.raises(
        ValueError, match=r"made of 36 images and its run is missing in .*: give --images=36, or remove"
    ):
        audited.still_valid([row], SMALL, runs, 10)
    finish(cell, runs)  # At commit abc.
    assert audited.still_valid([row], SMALL, runs, 36) == [row]
    assert audited.still_valid([row], SMALL, runs, 10) == []
    assert audited.still_valid([{**row, "commit": "d"}], SMALL, runs, 36) == []
