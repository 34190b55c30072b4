import csv
import dataclasses
import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from absl.testing import flagsaver
from support.command_flags import defined_flags
from support.study_folders import POOLING, finish

from diffstride_hybrid.config import gin_files
from experiments import RESULTS, figures, sweep, tables
from experiments.studies import costs, fingerprint, records
from experiments.studies import flags as study_flags
from experiments.studies import report as study_report
from experiments.studies.grids import fashion_mnist_small
from experiments.studies.study import Cell, Method, Study, Variant, load_study, shard_of, study_names

STUDIES = study_names()
every_study = pytest.mark.parametrize("name", STUDIES)

SMALL = Study(
    name="small",
    purpose="For tests.",
    methods=(
        Method("strided", "{data}_hybrid"),
        Method("learned", "{data}_hybrid"),
        Method("matched", "{data}_hybrid", matched_to="learned", match="maps"),
    ),
    data=("digits",),
    strides=((2, 2, 2), (3, 2, 3)),
    seeds=(1, 2, 3),
    baseline="learned",
)


# --- The grid --------------------------------------------------------------------------------------------------------


def test_the_studies_are_those_of_the_plan():
    assert set(STUDIES) == {
        "cifar10",
        "cifar100",
        "complexity",
        "complexity_small",
        "digits",
        "fashion_mnist_small",
        "imagenet",
        "learning_rate",
        "placement",
    }


@every_study
def test_each_study_names_configs_that_exist_and_itself(name: str):
    study = load_study(name)
    assert study.name == name
    cells = study.cells()
    assert len({cell.name for cell in cells}) == len(cells)
    for gin_file in {cell.gin_file for cell in cells}:
        gin_files.find_gin_file(gin_file)
    for cell in cells:
        assert cell.reference is None or cells.index(cell.reference) < cells.index(cell)


@every_study
@pytest.mark.parametrize("count", [1, 2, 3, 7, 50])
def test_shards_cover_a_grid_once_and_keep_what_is_matched_together(name: str, count: int):
    cells = load_study(name).cells()
    shards = [shard_of(cells, index, count) for index in range(1, count + 1)]
    largest = max(sum(other.reference == cell for other in cells) + 1 for cell in cells)
    assert max(map(len, shards)) - min(map(len, shards)) <= largest
    assert sorted(cell.name for shard in shards for cell in shard) == sorted(cell.name for cell in cells)
    for shard in shards:
        assert all(cell.reference is None or cell.reference in shard for cell in shard)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_papers_grid_has_90_runs_and_36_of_matched_baselines(name: str):
    study = load_study(name)
    cells = study.cells()
    assert sum(cell.reference is None for cell in cells) == 90
    assert len(cells) == 126
    assert {cell.strides for cell in cells} == {(2, 2, 2), (2, 2, 3), (1, 3, 1), (3, 1, 3), (3, 1, 2), (3, 2, 3)}
    assert {cell.seed for cell in cells} == {1, 2, 3}


def test_all_methods_of_the_small_study_have_the_same_budget_of_tuning():
    tuning, study = load_study("learning_rate"), load_study("fashion_mnist_small")
    assert [method.name for method in tuning.methods] == [method.name for method in study.methods]
    assert tuning.bindings == study.bindings
    assert not set(tuning.seeds) & set(study.seeds)
    assert tuning.measure == "validation"


def test_the_rates_of_the_small_study_are_the_best_on_the_validation_images():
    rows = records.read_rows(records.runs_path(load_study("learning_rate"), RESULTS))
    for method, rate in fashion_mnist_small.LEARNING_RATES.items():
        of_method = [row for row in rows if row["method"] == method]
        best = max(of_method, key=lambda row: float(row["validation_accuracy"]))
        assert best["variant"] == f"rate{rate:g}", method


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": (Variant("a/b"),)}, r"letters, digits, '_' and '\.', got 'a/b'"),
        ({"methods": (Method("a-b", "digits_hybrid"),)}, "got 'a-b'"),
        ({"variants": (Variant("a"), Variant("b"))}, "Study small may vary its strides or have variants, not both"),
        ({"methods": (Method("a", "x", matched_to="b", match="maps"),)}, "to an earlier one .* got maps to b"),
        (
            {"methods": (Method("b", "x"), Method("a", "x", matched_to="b", match="map"))},
            "matched in maps or macs to an earlier one that is not matched itself, got map to b",
        ),
    ],
)
def test_a_study_that_cannot_be_is_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_a_study_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"No study 'cifar11': did you mean cifar10"):
        load_study("cifar11")
    with pytest.raises(ValueError, match=r"there are cifar10, .*placement"):
        load_study("../x")


# --- Costs and matches -----------------------------------------------------------------------------------------------


def cell_of(study: str, method: str, strides: tuple[int, int, int] = (2, 2, 2)) -> Cell:
    return next(cell for cell in load_study(study).cells() if (cell.method.name, cell.strides) == (method, strides))


def test_the_cost_of_a_cell_is_that_of_its_end_where_it_is_finished_and_of_its_start_where_not(tmp_path: Path):
    cell = cell_of("fashion_mnist_small", "strided")
    at_the_start = costs.cell_cost(cell, str(tmp_path))
    stem, classifier = 28 * 28 * 9 * 4, 32 * 10
    block_1 = 4 * 28 * 28 * 9 * 4 * 4
    others = sum(size * size * width * width * (9 / 2 + 3 * 9 + 1 / 2) for size, width in ((14, 8), (7, 16), (4, 32)))
    assert at_the_start == (stem + block_1 + others + classifier, {})
    finish(cell, tmp_path, poolings=[POOLING], macs=7)
    assert costs.cell_cost(cell, str(tmp_path)) == (7, {"pooling": ((32, 32), (20, 26))})


def test_matched_maps_have_the_sizes_that_learned_strides_ended_with(tmp_path: Path):
    cell = cell_of("fashion_mnist_small", "strided_matched_maps")
    poolings = [
        {"layer": "pooling", "strides": [1.2, 1.2], "input_size": [28, 28], "output_size": [28, 26]},
        {"layer": "block_2/layer_1/pooling", "strides": [2, 2], "input_size": [28, 26], "output_size": [23, 20]},
        {"layer": "block_3/layer_1/pooling", "strides": [2, 2], "input_size": [23, 20], "output_size": [19, 18]},
        {"layer": "block_4/layer_1/pooling", "strides": [2, 2], "input_size": [19, 18], "output_size": [16, 13]},
        {"layer": "head_pooling", "strides": None, "input_size": [16, 13], "output_size": [8, 6]},
    ]
    finish(cell.reference, tmp_path, poolings=poolings, macs=1)
    bindings = (*cell.gin_bindings, *costs.matched_bindings(cell, str(tmp_path)))
    sizes = costs.initial_cost(cell.gin_file, bindings).pooling_sizes
    expected = {p["layer"]: (tuple(p["input_size"]), tuple(p["output_size"])) for p in poolings[:4]}
    assert sizes == expected


def test_matched_maps_cost_what_learned_strides_cost(tmp_path: Path):
    learned, matched = (cell_of("fashion_mnist_small", name) for name in ("diffstride", "strided_matched_maps"))
    assert costs.cell_cost(learned, str(tmp_path)).macs == costs.cell_cost(matched, str(tmp_path)).macs


@pytest.mark.parametrize(("strides", "macs"), [((2, 2, 2), 3_000_000), ((1, 3, 1), 30_000_000)])
def test_matched_macs_are_the_nearest_that_a_width_gives(tmp_path: Path, strides: Any, macs: int):
    cell = cell_of("fashion_mnist_small", "strided_matched_macs", strides)
    finish(cell.reference, tmp_path, poolings=[], macs=macs)
    (binding,) = costs.matched_bindings(cell, str(tmp_path))
    width = int(binding.removeprefix("resnet.resnet18.width = "))
    at = {
        near: costs.initial_cost(cell.gin_file, (*cell.gin_bindings, f"resnet.resnet18.width = {near}")).macs
        for near in (width - 1, width, width + 1)
    }
    assert min(at, key=lambda near: abs(at[near] - macs)) == width


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
    assert rows[1]["strides_at_start"] == "pooling 2.0000,2.0000"
    assert rows[1]["strides_at_end"] == "pooling 2.5000,1.5000"
    assert rows[1]["sizes_at_end"] == "pooling 32x32 to 20x26"
    assert rows[1]["commit"] == "abc"
    assert "keras 3" in rows[1]["versions"]
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


def test_differences_are_those_of_runs_of_the_same_strides_and_seed():
    (line,) = study_report.difference_table(SMALL, ROWS).splitlines()[2:]
    differences = [-30, -10, -20, -10]
    assert line == (f"| `strided` | -20.00 ± 10.00 | -10.00 | -17.50 ± {statistics.stdev(differences):.2f} | 4 |")


def test_a_table_is_put_between_its_marks():
    text = "a\n<!-- table x -->\nold\n<!-- end of table -->\nb\n<!-- table y -->\nkept\n<!-- end of table -->\n"
    assert tables.replace_table(text, "x", "new \\1") == text.replace("old", "new \\1")
    with pytest.raises(ValueError, match="<!-- table z -->"):
        tables.replace_table(text, "z", "new")


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
        return capsys.readouterr().out

    return run


def test_tables_are_printed_and_put_into_a_file_with_or_without_the_runs(command: Any, tmp_path: Path):
    readme = tmp_path / "README.md"
    standing = tables.standing_tables()
    readme.write_text("".join(f"<!-- table {name} -->\n<!-- end of table -->\n" for name in ("small", *standing)))
    with pytest.raises(ValueError, match=r"No run of small is finished in .*: start python -m experiments.sweep"):
        command(tables)
    for cell in SMALL.cells():
        finish(cell, tmp_path / "runs")
    printed = command(tables, readme=str(readme))
    assert "| `learned` | 90.00 ± 0.00 %" in printed
    assert printed in readme.read_text()
    for table in standing.values():
        assert table in readme.read_text()
    before = readme.read_bytes()
    assert command(tables, readme=str(readme), runs=str(tmp_path / "nowhere")) == printed
    assert readme.read_bytes() == before


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


@pytest.mark.parametrize("module", [sweep, tables, figures])
def test_a_study_must_be_named(command: Any, module: Any):
    with pytest.raises(ValueError, match="--study must name a study: there are cifar10, cifar100"):
        command(module, study=None)


def test_the_sweep_lists_its_shard_and_says_what_it_is_for(command: Any, tmp_path: Path):
    finish(SMALL.cells()[0], tmp_path / "runs")
    *lines, purpose, total = command(sweep, list=True, shard="1/2").splitlines()
    assert purpose == "small: For tests."
    assert total.startswith(f"{len(lines)} runs, 1 finished: ")
    assert lines[0].startswith("finished  digits-strided-2,2,2-seed1  90.00%")
    assert all(line.startswith("to do     ") for line in lines[1:])


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
