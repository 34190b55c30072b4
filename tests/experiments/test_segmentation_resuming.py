"""Which runs of the segmentation experiment count as finished when its command is started again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffstride_hybrid.common.files import rows_as_text
from experiments.segmentation import __main__, camvid, network

SETTINGS = {"widths": "8 24 48 96", "steps": 1440, "versions": "keras 3.15.1"}
EVERY = [(method, seed) for seed in ("1", "2") for method in network.METHODS]


def finished(
    tmp_path: Path, changed: tuple[str, str], runs: Sequence[tuple[str, str]] = EVERY, **values: Any
) -> list[tuple[str, str]]:
    """The runs that need not be trained again, of a file in which one run has other values."""
    rows = []
    for method, seed in runs:
        row = {"method": method, "seed": seed, "epochs": 32, **SETTINGS}
        row |= {"widths": f"9 {seed}"} if method in network.MATCHED else {}
        rows.append(row | (values if (method, seed) == changed else {}))
    (tmp_path / "rows.csv").write_text(rows_as_text(list(rows[0]), rows))
    return [(row["method"], row["seed"]) for row in __main__.finished(tmp_path / "rows.csv", 32, SETTINGS)]


def test_runs_that_are_as_the_command_would_make_them_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert finished(tmp_path, ("max", "1")) == EVERY
    assert not capsys.readouterr().out


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"widths": "4 8 16 32"}, "widths was 4 8 16 32, is 8 24 48 96"),
        ({"steps": 720}, "steps was 720, is 1440"),
        ({"versions": "keras 3.10.0"}, "versions was keras 3.10.0, is keras 3.15.1"),
    ],
)
def test_a_run_made_otherwise_is_made_anew_and_named(
    values: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert finished(tmp_path, ("spectral", "2"), **values) == [run for run in EVERY if run != ("spectral", "2")]
    assert capsys.readouterr().out == f"spectral, seed 2, is left out and made anew: {said}\n"


def test_a_run_matched_to_one_that_is_made_anew_is_made_anew_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    gone = [("diffstride", "1"), ("max_wide", "1")]
    assert finished(tmp_path, ("diffstride", "1"), steps=720) == [run for run in EVERY if run not in gone]
    assert capsys.readouterr().out.splitlines()[1:] == [
        "max_wide, seed 1, is left out and made anew: it was matched to diffstride, which is made anew"
    ]


@pytest.mark.parametrize("others", [[("diffstride", "2")], []], ids=["of another seed", "gone"])
def test_a_run_matched_to_one_that_the_file_lacks_is_made_anew(tmp_path: Path, others: list[tuple[str, str]]):
    runs = [*others, ("max", "1"), ("max_wide", "1")]
    assert finished(tmp_path, ("max", "1"), runs) == [*others, ("max", "1")]


def test_a_matched_run_may_stand_before_its_own(tmp_path: Path):
    assert finished(tmp_path, ("diffstride", "1"), [("max_wide", "1"), ("diffstride", "1")], steps=720) == []


def test_the_settings_are_those_that_a_row_has():
    split = camvid.Split(np.zeros([17, 2, 2, 3], np.uint8), np.zeros([17, 2, 2], np.uint8))
    settings = network.settings(split, 3)
    assert (settings["widths"], settings["steps"]) == (" ".join(map(str, network.WIDTHS)), 3 * 2)
    assert settings["versions"].startswith("diffstride_hybrid ")
