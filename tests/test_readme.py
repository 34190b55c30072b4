import importlib
import importlib.util
import json
import re
import shlex
from pathlib import Path

import keras
import numpy as np
import pytest
from absl import flags
from support.command_flags import defined_flags

from diffstride_hybrid import DiffStride
from diffstride_hybrid.config import gin_files
from experiments import RESULTS, tables
from experiments.studies import records
from experiments.studies import report as study_report
from experiments.studies.study import load_study
from experiments.tpu_compile import report as tpu_report

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(part) for line in lines for part in line.split("&&")]


OURS = ("diffstride_hybrid", "experiments")
PACKAGE_COMMANDS = [words for words in commands() if "-m" in words and words[words.index("-m") + 1].startswith(OURS)]


@pytest.mark.parametrize("snippet", [part for block in blocks("python") for part in block.split("\n\n")])
def test_each_snippet_runs(snippet: str):
    names = {
        "keras": keras,
        "x": keras.Input((32, 32, 8)),
        "signals": keras.Input((64, 8)),
        "model": keras.Sequential(
            [DiffStride(2.0), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10, activation="softmax")]
        ),
        "images": np.zeros([8, 12, 12, 3], "float32"),
        "labels": np.arange(8),
    }
    exec("from diffstride_hybrid import *\nfrom diffstride_hybrid.callbacks import CropRefresh\n" + snippet, names)
    assert names["x"].shape[-1] in (8, 64)


def options_of(module: str) -> list[str]:
    found = importlib.util.find_spec(module)
    command = importlib.import_module(f"{module}.__main__" if found.submodule_search_locations else module)
    before = set(flags.FLAGS)
    with defined_flags(getattr(command, "define_flags", None) or command.define_study_flags):
        return sorted(set(flags.FLAGS) - before)


@pytest.mark.parametrize("words", PACKAGE_COMMANDS, ids=" ".join)
def test_each_command_names_a_module_options_and_configs_that_exist(words: list[str]):
    module = words[words.index("-m") + 1]
    known = options_of(module)
    for option in words[words.index("-m") + 2 :]:
        if option == "--":
            known = options_of("diffstride_hybrid.train")
            continue
        if module == "diffstride_hybrid.predict" and not option.startswith("--"):
            continue  # An image.
        name, _, value = option.removeprefix("--").partition("=")
        assert name in known, option
        if name == "gin_file":
            gin_files.find_gin_file(value)


def test_the_test_command_is_that_of_ci():
    install, test = (
        re.sub(r"\s+", " ", line.strip())
        for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
        if "pip install" in line or "pytest" in line
    )
    spoken = " ".join(README.split())
    assert install in spoken
    assert spoken.index(install) < spoken.index(test)


def test_the_readme_names_each_family_of_configs():
    for name in ("digits_hybrid", "cifar10_hybrid", "fashion_mnist_hybrid"):
        assert name in README


def test_the_tables_of_the_tpu_compiler_are_those_of_its_lines():
    lines = (ROOT / "experiments" / "results" / "tpu_compile.jsonl").read_text(encoding="utf-8").splitlines()
    for table in tpu_report.tables([json.loads(line) for line in lines]).split("\n\n"):
        assert table in README


@pytest.mark.parametrize("name", re.findall(r"<!-- table (\w+) -->", README))
def test_the_tables_are_those_of_their_rows(name: str):
    table = tables.standing_tables().get(name)
    if table is None:
        study = load_study(name)
        rows = records.read_rows(records.runs_path(study, RESULTS))
        assert len(rows) == len(study.cells())
        table = study_report.tables(study, rows)
    assert f"<!-- table {name} -->\n{table}\n<!-- end of table -->" in README


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_each_file_that_is_linked_exists(path: str):
    assert (ROOT / path).exists()
