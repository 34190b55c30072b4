"""The commands in the card of a run: they must work as they stand."""

import json
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
from support.paths import TESTS

from diffstride_hybrid.runs.folder import RunFolder
from diffstride_hybrid.runs.model_card import model_card, write_model_card
from diffstride_hybrid.training import records


def card(place: str, name: str, config: str = "config", **more: Any) -> str:
    data = {
        "name": name,
        "image_shape": [8, 8, 1],
        "class_names": ["a", "b"],
        "mean": [0.5],
        "std": [0.5],
        "split_sizes": {"train": 1, "validation": 1, "test": 1},
    }
    summary = {"best_validation_accuracy": None, "poolings": []}
    numbers = (
        "test_accuracy",
        "test_loss",
        "macs",
        "pooling_macs",
        "parameters",
        "epochs",
        "steps",
        "training_seconds",
    )
    run = {
        "seed": 3,
        "data": data | ({} if name == "digits" else {"files_digests": {"test": "0"}}),
        "versions": {},
        "commit": None,
        "command": ["python", "-m", "diffstride_hybrid.train", "--gin_file=base"],
        "dtype_policy": "float32",
        "devices": [],
        "strategy": "one",
        "replicas": 1,
        **more,
    }
    return model_card(place, run, summary | dict.fromkeys(numbers, 1), {}, config, [])


@pytest.mark.parametrize("name", ["photos", "./photos", "../photos"])
def test_a_run_with_a_relative_folder_of_images_is_used_from_where_it_was_started(name: str):
    text = card("/runs/my run", name, started_in="/home/my images")
    use, made_by = text.split("## Use")[1].split("## Made by")
    assert use.count("cd '/home/my images'") == 1
    assert use.index("cd ") < use.index("diffstride_hybrid.evaluate")
    assert use.count("--workdir='/runs/my run'") == 3
    assert "--gin_file='/runs/my run/operative_config.gin'" in use
    assert "cd '/home/my images'\npython -m diffstride_hybrid.train --gin_file=base\n" in made_by
    assert text.startswith("# my run\n")


@pytest.mark.parametrize(
    ("name", "more"),
    [("digits", {"started_in": "/x"}), ("/photos", {"started_in": "/x"}), ("~/p", {"started_in": "/x"}), ("./p", {})],
)
def test_any_other_run_is_used_from_its_own_folder(name: str, more: dict[str, str]):
    use = card("/runs/x", name, **more).split("## Use")[1].split("## Made by")[0]
    assert "cd " not in use
    assert use.count("--workdir=.") == 3


@pytest.mark.parametrize(
    ("config", "there"),
    [
        ("load_datasets.data_dir = 'prepared'", True),
        ("load_datasets.data_dir = \\\n    ('./long/pre'\n     'pared')", True),
        ("place = 'prepared'\nmine/load_datasets.data_dir = %place", True),
        ("import mymodule\nload_datasets.data_dir = None", True),
        ("from my import module", True),
        ("load_datasets.data_dir = '/prepared'", False),
        ("load_datasets.data_dir = '~/prepared'", False),
        ("load_datasets.data_dir = 'gs://bucket/prepared'", False),
        ("load_datasets.data_dir = None\n# import nothing", False),
    ],
)
def test_what_a_config_finds_where_the_run_was_started_is_found_again(config: str, there: bool):
    """A prepared set by its relative path, and a module of the user's own."""
    use = card("/runs/x", "digits", config, started_in="/home/me").split("## Use")[1].split("## Made by")[0]
    assert use.count("cd /home/me\n") == there
    assert use.count("--workdir=/runs/x " if there else "--workdir=. ") >= 2
    assert ("--gin_file=/runs/x/operative_config.gin" in use) == there
    assert "cd " not in card("/runs/x", "digits", config).split("## Use")[1]


def test_a_network_without_poolings_of_this_package_may_have_others():
    poolings = card("/runs/x", "digits").split("## Poolings")[1].split("##")[0]
    assert poolings.strip() == "None of this package."


@pytest.mark.parametrize(
    ("module", "name"), [("diffstride_hybrid.train", "diffstride_hybrid.train"), ("a.b.__main__", "a.b"), (None, None)]
)
def test_a_command_is_recorded_as_it_can_be_given_again(
    module: str | None, name: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    spec = None if module is None else ModuleSpec(module, None)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", spec)
    monkeypatch.setattr(sys, "argv", ["/long/path.py", "--flag"])
    assert records._command() == (["/long/path.py"] if name is None else ["python", "-m", name]) + ["--flag"]


def test_strides_of_a_later_epoch_are_not_those_at_the_start(tmp_path: Path):
    """As `strides.csv` begins if a run goes on after somebody has moved the file away."""
    folder = RunFolder(str(shutil.copytree(TESTS / "fixtures" / "finished", tmp_path / "run")))
    strides = folder.path / "strides.csv"
    head, start, *later = strides.read_text().splitlines()
    assert start.startswith("0,") and later
    rows = {}
    for name, lines in (("whole", [start, *later]), ("later", later), ("none", [])):
        strides.write_text("\n".join([head, *lines]) + "\n")
        write_model_card(folder, folder.read_json("summary.json"))
        text = (folder.path / "README.md").read_text()
        (rows[name],) = [line for line in text.splitlines() if line.startswith("| `pooling` |")]
    assert rows["whole"].startswith("| `pooling` | 1.600, 1.600 |")
    assert rows["later"] == rows["none"] == rows["whole"].replace("1.600, 1.600", "not known")


def test_a_class_folder_need_not_have_a_name_in_utf_8(tmp_path: Path):
    folder = RunFolder(str(shutil.copytree(TESTS / "fixtures" / "finished", tmp_path / "run")))
    run = folder.read_json("run.json")
    run["data"]["class_names"][0] = "K\udce4fer"
    (folder.path / "run.json").write_text(json.dumps(run))
    write_model_card(folder, folder.read_json("summary.json"))
    assert r"K\udce4fer, " in (folder.path / "README.md").read_text(encoding="utf-8")
