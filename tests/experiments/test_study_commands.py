"""The commands of studies."""

import csv
import dataclasses
import itertools
import statistics
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from absl.testing import flagsaver
from support.command_flags import defined_flags
from support.small_study import SMALL
from support.study_folders import finish

from experiments import RESULTS, figures, sweep, tables
from experiments.studies import flags as study_flags
from experiments.studies import records


# --- Commands --------------------------------------------------------------------------------------------------------
@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the main of a module on the study SMALL, and returns what it printed."""
    flags.FLAGS.mark_as_parsed()
    folders = {"runs": str(tmp_path / "runs"), "results": str(tmp_path / "results")}

    def run(module: Any, **values: Any) -> str:
        monkeypatch.setattr(study_flags, "load_study", {"small": SMALL}.get)
        define_flags = getattr(module, "define_flags", study_flags.define_study_flags)
        with defined_flags(define_flags), flagsaver.flagsaver(**{"study": "small", **folders, **values}):
            module.main([])
        captured = capsys.readouterr()
        return captured.out + captured.err

    return run


def test_tables_are_printed_and_put_into_a_file_with_or_without_the_runs(command: Any, tmp_path: Path):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table small -->\n<!-- end of table -->\n<!-- table speech -->\n<!-- end of table -->\n")
    with pytest.raises(ValueError, match=r"No run of small is finished in .*: start python -m experiments.sweep"):
        command(tables)
    for cell in SMALL.cells():
        finish(cell, tmp_path / "runs")
    printed = command(tables, readme=str(readme))
    assert "| `learned` | 90.00 ± 0.00 %" in printed
    assert printed in readme.read_text()
    assert "<!-- table speech -->\n<!-- end of table -->\n" in readme.read_text()
    before = readme.read_bytes()
    assert command(tables, readme=str(readme), runs=str(tmp_path / "nowhere")) == printed
    assert readme.read_bytes() == before


def test_rows_of_another_version_of_the_study_are_counted(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    strided, learned, *others = SMALL.methods
    for cell in SMALL.cells()[:2]:
        finish(cell, tmp_path / "runs")
    command(tables)
    changed = dataclasses.replace(strided, bindings=(*strided.bindings, "train.train.num_epochs = 3"))
    nowhere = str(tmp_path / "nowhere")
    with monkeypatch.context() as patch:
        patch.setattr(tables, "chosen_study", lambda: dataclasses.replace(SMALL, methods=(changed, learned, *others)))
        printed = command(tables, runs=nowhere)
        assert "`strided`" not in printed and "another version of the study: 1 of 2 rows of" in printed
        patch.setattr(tables, "chosen_study", lambda: dataclasses.replace(SMALL, seeds=(7,)))
        with pytest.raises(ValueError, match=r"small\.csv has no run of the present study: start python -m"):
            command(tables, runs=nowhere)


def test_the_tables_are_put_into_the_page_of_results_only_if_asked_for(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert tables.PAGE == RESULTS / "README.md"
    page, own_page = tmp_path / "page.md", tmp_path / "own.md"
    monkeypatch.setattr(tables, "PAGE", page)
    monkeypatch.setattr(tables, "OWN_PAGES", {"segmentation": own_page})
    standing = tables.standing_tables()
    marks, own_marks = (
        "".join(f"<!-- table {name} -->\n<!-- end of table -->\n" for name in names)
        for names in (standing.keys() - {"segmentation"}, {"segmentation"})
    )
    page.write_text(marks)
    own_page.write_text(own_marks)
    finish(SMALL.cells()[0], tmp_path / "runs")
    printed = command(tables)
    assert page.read_text() == marks
    with pytest.raises(ValueError, match=r"page.md: no place for a table: add the lines '<!-- table small -->'"):
        command(tables, write=True)
    assert (page.read_text(), own_page.read_text()) == (marks, own_marks)
    page.write_text(f"<!-- table small -->\n<!-- end of table -->\n{marks}")
    assert command(tables, write=True).endswith(printed)
    assert standing["segmentation"] in own_page.read_text()
    assert f"<!-- table small -->\n{printed}<!-- end of table -->" in page.read_text()


def test_figures_are_written_and_those_without_a_run_left_out(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ValueError, match=r"start python -m experiments.sweep and then python -m experiments.tables"):
        command(figures)
    for cell in SMALL.cells():
        finish(cell, tmp_path / "runs")
    command(tables)
    drawn = []
    monkeypatch.setattr(figures, "figures_of_run", lambda cell, runs: drawn.append(cell.method.name) or ())
    printed = command(figures)
    names = ["small_curves.png", "small_strides_learned.png", "small_macs.png"]
    assert [Path(line).name for line in printed.splitlines()] == names
    assert sorted(path.name for path in (tmp_path / "results").glob("*.png")) == sorted(names)
    assert drawn == ["learned"]
    assert "no run with learned strides is in" in command(figures, runs=str(tmp_path / "nowhere"))


def test_figures_name_the_file_that_is_missing(command: Any, tmp_path: Path):
    finish(SMALL.cells()[0], tmp_path / "runs")
    command(tables)
    (tmp_path / "results" / "small_epochs.csv").unlink()
    with pytest.raises(ValueError, match=r"There is no .*small_epochs\.csv, or it has no run of the present study"):
        command(figures)


def test_a_path_may_begin_with_the_home_folder():
    """The training takes it so, and a sweep must look for the run where it is."""
    with defined_flags(study_flags.define_study_flags):
        flags.FLAGS(["sweep", "--runs=~/runs", "--results=~/results"])
        assert (flags.FLAGS.runs, flags.FLAGS.results) == (str(Path.home() / "runs"), str(Path.home() / "results"))


@pytest.mark.parametrize("module", [sweep, tables, figures])
def test_a_study_must_be_named(command: Any, module: Any):
    with pytest.raises(ValueError, match="--study must name a study: there are budget_small, cifar10, cifar100"):
        command(module, study=None)


def test_the_sweep_lists_its_shard_and_says_what_it_is_for(command: Any, tmp_path: Path):
    finish(SMALL.cells()[0], tmp_path / "runs")
    *lines, purpose, total = command(sweep, list=True, shard="1/2").splitlines()
    assert purpose == "small: For tests."
    assert total.startswith(f"{len(lines)} runs, 1 finished: ")
    assert lines[0].startswith("finished  digits-strided-2,2,2-seed1  90.00%")
    assert all(line.startswith("to do     ") for line in lines[1:])


def test_runs_whose_times_are_reported_do_not_share_the_machine(command: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sweep, "chosen_study", lambda: dataclasses.replace(SMALL, timed=True))
    with pytest.raises(ValueError, match="small reports how long each run trains, so --jobs must be 1, got 2"):
        command(sweep, jobs=2)


# --- Figures ---------------------------------------------------------------------------------------------------------
def test_figures_are_drawn_from_the_files_alone(tmp_path: Path):
    for cell, accuracy in zip(SMALL.cells(), itertools.cycle((0.5, 0.6, 0.7, 0.9))):
        finish(cell, tmp_path / "runs", accuracy=accuracy)
    records.record(SMALL, str(tmp_path / "runs"), tmp_path)
    drawn = dict(figures.figures_of_rows(SMALL, tmp_path))
    assert list(drawn) == ["curves", "strides_learned", "macs"]
    for figure in drawn.values():
        below = [axes for axes in figure.axes if axes.get_subplotspec().is_last_row()]
        assert all(axes.get_xlabel() for axes in below)
        assert below[0].get_ylabel()
        figure.savefig(tmp_path / "figure.png")
    (line,) = (line for line in drawn["curves"].axes[0].lines if line.get_label() == "strided, validation")
    with open(tmp_path / "small_epochs.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (row["method"], row["strides"]) == ("strided", "2,2,2")]
    at_the_end = [100 * float(row["val_accuracy"]) for row in rows if row["epoch"] == "2"]
    assert len(at_the_end) == 3
    assert list(line.get_ydata()) == pytest.approx([20, statistics.fmean(at_the_end)])


def test_rows_of_another_version_of_the_study_are_not_drawn(tmp_path: Path):
    """The tables leave them out too."""
    cells = SMALL.cells()
    for cell in cells[:2]:
        finish(cell, tmp_path / "runs")
    records.record(SMALL, str(tmp_path / "runs"), tmp_path)
    strided, learned, *others = SMALL.methods
    of_one_method = dataclasses.replace(strided, bindings=(*strided.bindings, "train.train.num_epochs = 3"))
    changed = dataclasses.replace(SMALL, methods=(of_one_method, learned, *others))
    points = {
        name: dict(figures.figures_of_rows(study, tmp_path))["macs"].axes[0].containers
        for name, study in {"before": SMALL, "now": changed}.items()
    }
    assert [len(points[name]) for name in ("before", "now")] == [2, 1]
    of_all = dataclasses.replace(SMALL, bindings=("train.train.num_epochs = 3",))
    with pytest.raises(ValueError, match="it has no run of the present study"):
        list(figures.figures_of_rows(of_all, tmp_path))
