"""Every snippet, command, table and link on every page."""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import keras
import numpy as np
import pytest
from absl import flags
from support.command_flags import defined_flags
from support.paths import ROOT

import diffstride_hybrid
from diffstride_hybrid import DiffStride
from diffstride_hybrid.config import gin_files
from diffstride_hybrid.model_tools.exporting import export
from experiments import RESULTS, tables
from experiments.studies import records
from experiments.studies import report as study_report
from experiments.studies.study import load_study

PAGES = (
    "README.md",
    "diffstride_hybrid/README.md",
    "gin_configs/README.md",
    "experiments/README.md",
    "experiments/results/README.md",
    "experiments/results/speed.md",
    "experiments/results/frameworks.md",
    "experiments/results/engines.md",
    "experiments/results/segmentation.md",
    "experiments/results/budget.md",
    "experiments/results/audits.md",
    "experiments/results/cifar.md",
    "tests/README.md",
)
TEXT = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
MOST_LINES = {"README.md": 170}
RESULTS_PAGE = TEXT["experiments/results/README.md"]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT[page], re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """The commands of a page, in its blocks and in its text."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`(python -m [^`]+)`", TEXT[page])
    return [shlex.split(part) for line in lines for part in line.split("&&")]


def module_of(words: list[str]) -> str:
    return words[words.index("-m") + 1] if "-m" in words else ""


OURS = ("diffstride_hybrid", "experiments")
SNIPPETS = [(page, part) for page in PAGES for block in blocks(page, "python") for part in block.split("\n\n")]
PACKAGE_COMMANDS = [(page, words) for page in PAGES for words in commands(page) if module_of(words).startswith(OURS)]
LINKS = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)\s]+)\)", TEXT[page])]
TABLES = [(page, name) for page in PAGES for name in re.findall(r"<!-- table (\w+) -->", TEXT[page])]


def options_of(module: str) -> list[str]:
    found = importlib.util.find_spec(module)
    command = importlib.import_module(f"{module}.__main__" if found.submodule_search_locations else module)
    define = getattr(command, "define_flags", None) or getattr(command, "define_study_flags", None)
    before = set(flags.FLAGS)
    with defined_flags(*([define] if define else [])):
        return sorted(set(flags.FLAGS) - before)


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


# --- What holds for each page ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_a_page_begins_with_its_title_and_has_no_long_lines(page: str):
    assert TEXT[page].startswith("# ")
    assert len(TEXT[page].splitlines()) <= MOST_LINES.get(page, 400)
    outside = re.sub(r"```.*?```", "", TEXT[page], flags=re.DOTALL)
    assert not [line for line in outside.splitlines() if len(line) > 120 and not line.startswith("|")]


@pytest.mark.parametrize(("page", "snippet"), SNIPPETS)
def test_each_snippet_runs(page: str, snippet: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    names = {
        "keras": keras,
        "x": keras.Input((32, 32, 8)),
        "signals": keras.Input((64, 8)),
        "model": keras.Sequential(
            [
                keras.Input((12, 12, 3)),
                DiffStride(2.0),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(10, activation="softmax"),
            ]
        ),
        "images": np.zeros([8, 12, 12, 3], "float32"),
        "labels": np.arange(8),
    }
    names |= {name: getattr(diffstride_hybrid, name) for name in diffstride_hybrid.__all__} | {"export": export}
    exec(snippet, names)
    assert names["x"].shape[-1] in (8, 64)


@pytest.mark.parametrize(
    ("page", "words"), PACKAGE_COMMANDS, ids=lambda part: part if isinstance(part, str) else " ".join(part)
)
def test_each_command_names_a_module_options_and_configs_that_exist(page: str, words: list[str]):
    module = module_of(words)
    known = options_of(module)
    for option in words[words.index("-m") + 2 :]:
        if option == "--":
            known = options_of("diffstride_hybrid.train")
            continue
        if module in ("diffstride_hybrid.predict", "diffstride_hybrid.audit") and not option.startswith("--"):
            continue  # An image.
        name, _, value = option.removeprefix("--").partition("=")
        assert name in known, option
        if name == "gin_file":
            gin_files.find_gin_file(value)
        if name == "study":
            load_study(value)


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_each_link_leads_somewhere(page: str, link: str):
    if link.startswith("https://"):
        return
    path, _, anchor = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.resolve().is_relative_to(ROOT)
    assert target.exists()
    if anchor:
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in map(slug, headings)


@pytest.mark.parametrize(("page", "name"), TABLES)
def test_the_tables_are_those_of_their_rows(page: str, name: str):
    table = tables.standing_tables().get(name)
    if table is None:
        study = load_study(name)
        rows = records.present_rows(study, records.read_whole_rows(records.runs_path(study, RESULTS)))
        cells = len(study.cells())
        # A study that takes many sittings grows row by row. Until it is complete its page says how much of it there is.
        assert len(rows) == cells or f"{len(rows)} of the {cells} runs of `{name}`" in " ".join(TEXT[page].split())
        table = study_report.tables(study, rows)
    assert f"<!-- table {name} -->\n{table}\n<!-- end of table -->" in TEXT[page]


# --- What holds for one page -----------------------------------------------------------------------------------------


def test_the_test_command_is_that_of_ci():
    install, test = (
        re.sub(r"\s+", " ", line.strip())
        for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
        if "pip install -q -e" in line or line.endswith("-m pytest")
    )
    spoken = " ".join(TEXT["README.md"].split())
    assert install in spoken
    assert spoken.index(install) < spoken.index(test)


def test_the_page_of_configs_names_each_with_its_cost():
    listed = {}
    for line in TEXT["gin_configs/README.md"].splitlines():
        if line.startswith("| `") and " G |" in line:
            names, _, cost, *_ = line.strip("| ").split(" | ")
            listed |= dict.fromkeys(re.findall(r"`(\w+)`", names), cost)
    assert set(listed) == {path.stem for path in gin_files.shipped_configs().glob("*.gin")}
    for name, cost in listed.items():
        comment = (gin_files.shipped_configs() / f"{name}.gin").read_text(encoding="utf-8")
        assert f"# Cost: {cost} MACs an image" in comment, name


def test_the_figures_in_the_readme_are_those_of_the_results():
    """A row of the README's one table has the figures of a row on the page of results."""
    rows = re.findall(r"^\| (.+?) \| .+? \| (.+? %) \| (.+?) \|$", TEXT["README.md"], re.MULTILINE)
    assert len(rows) == 6
    for network, accuracy, cost in rows:
        cost = f"{float(cost.removesuffix(' M')) / 1000:.3f} G" if "width 8" in network else cost
        line = [line for line in RESULTS_PAGE.splitlines() if f"| {accuracy}" in line]
        assert line, network
        assert any(cost in candidate for candidate in line), network


@pytest.mark.parametrize("room", [path.parent for path in (ROOT / "diffstride_hybrid").glob("*/__init__.py")])
def test_the_maps_name_each_room(room: Path):
    assert f"(diffstride_hybrid/{room.name})" in TEXT["README.md"] or room.name == "common"
    assert f"]({room.name})" in TEXT["diffstride_hybrid/README.md"]
