"""Studies and their cells."""

import dataclasses
import re
import types
from pathlib import Path
from typing import Any

import pytest
from support.damage import truncate
from support.small_study import SMALL
from support.study_folders import POOLING, finish

from diffstride_hybrid.config import gin_files
from experiments import RESULTS
from experiments.studies import costs, grids, records
from experiments.studies.grids import cifar_small, fashion_mnist_small
from experiments.studies.study import Cell, Method, Variant, load_study, shard_of, study_names

STUDIES = study_names()
every_study = pytest.mark.parametrize("name", STUDIES)


# --- The grid --------------------------------------------------------------------------------------------------------
def test_the_studies_are_those_of_the_plan():
    assert set(STUDIES) == {
        "budget_small",
        "cifar10",
        "cifar100",
        "cifar100_small",
        "cifar_small",
        "cifar_small_rates",
        "cifar_wide",
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


@pytest.mark.parametrize(
    ("rates", "tuning"), [(fashion_mnist_small, "learning_rate"), (cifar_small, "cifar_small_rates")]
)
def test_the_rates_of_a_small_study_are_the_best_on_the_validation_images(rates: types.ModuleType, tuning: str):
    rows = records.read_rows(records.runs_path(load_study(tuning), RESULTS))
    for method, rate in rates.LEARNING_RATES.items():
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
    with pytest.raises(ValueError, match=r"No study 'cifar11': did you mean 'cifar10'"):
        load_study("cifar11")
    with pytest.raises(ValueError, match=r"there are budget_small, cifar10, .*placement"):
        load_study("../x")


def test_a_module_beside_the_studies_that_is_none_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "rates.py").write_text("RATES = (0.1, 0.2)\n")
    monkeypatch.setattr(grids, "__path__", [*grids.__path__, str(tmp_path)])
    assert study_names() == STUDIES
    with pytest.raises(ValueError, match="No study 'rates': "):
        load_study("rates")


def test_a_damaged_summary_is_named(tmp_path: Path):
    (cell, *_) = SMALL.cells()
    path = finish(cell, tmp_path) / "summary.json"
    truncate(path)
    with pytest.raises(OSError, match=f"{re.escape(str(path))} is damaged"):
        costs.cell_cost(cell, str(tmp_path))


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
