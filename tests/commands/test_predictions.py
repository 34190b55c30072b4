"""What `predict` prints and writes, of a model that needs no training."""

import csv
import io
import os
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from support.commands import Result, parsed_command, run_here

from diffstride_hybrid import command_line, predict
from diffstride_hybrid.config import saved_runs

CLASSES = ["file", "2", "other"]


@pytest.fixture(autouse=True)
def run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose model takes all images for those of the class '2'."""
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(3, "softmax")])
    model.layers[-1].set_weights([np.zeros((48, 3)), np.array([0.0, 1.0, 0.0])])
    image_format = saved_runs.ImageFormat(CLASSES, [4, 4, 3], [0.5] * 3, [0.5] * 3)
    monkeypatch.setattr(saved_runs, "load_model", lambda *args: (model, keras.losses.CategoricalCrossentropy()))
    monkeypatch.setattr(saved_runs, "load_image_format", lambda workdir: image_format)


def draw(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


def predicted(*arguments: str | Path) -> Result:
    return run_here("predict", "--workdir=run", *map(str, arguments))


def table(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_a_class_may_have_the_name_of_a_column(tmp_path: Path):
    path = draw(tmp_path / "a.png")
    assert predicted(f"--csv={tmp_path / 'table.csv'}", path).code == 0
    head, row = table(tmp_path / "table.csv")
    assert head == ["file", *CLASSES]
    assert row == [str(path), "0.211942", "0.576117", "0.211942"]


@pytest.mark.parametrize(
    ("file", "named", "counts"),
    [
        ("2/unlabeled/a.png", "2/unlabeled", False),
        ("2/unlabeled/a.png", "2/unlabeled/a.png", False),
        ("2/a.png", "2", True),
        ("2/a.png", "2/a.png", True),
        ("photos/2/a.png", "photos", True),
        ("other/photos/2/deep/a.png", "other/photos", True),
    ],
)
def test_no_folder_above_the_named_one_counts_as_a_class(file: str, named: str, counts: bool, tmp_path: Path):
    draw(tmp_path / file)
    result = predicted("--recursive", tmp_path / named)
    assert result.code == 0
    assert ("accuracy 100.00% of 1 images" in result.out) == counts


@pytest.mark.parametrize(
    ("file", "named", "folder"),
    [
        ("test/cat/dog/a.png", "test", "cat"),
        ("test/cat/dog/a.png", ".", "cat"),
        ("train/cat/dog/a.png", ".", "cat"),
        ("train/a.png", ".", "train"),
        ("boat/a.png", "boat", None),
        ("dog/boat/a.png", "dog", "dog"),
        ("dog/cat/a.png", "dog", "cat"),
        ("boat/a.png", ".", None),
    ],
)
def test_the_class_of_a_file_is_that_of_training(file: str, named: str, folder: str | None, tmp_path: Path):
    """There it is the folder right below that of the split, whatever lies below."""
    assert predict._class_folder(tmp_path / file, tmp_path / named, ["cat", "dog", "train"]) == folder


def out_to(stream: io.TextIOBase, *arguments: str | Path) -> int:
    """Predicts with another standard output, and returns the exit code."""
    with (
        parsed_command("predict", "--workdir=run", *map(str, arguments)) as (command, remaining),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "stdout", stream)
        try:
            command_line.reporting_errors(command.main, takes_arguments=True)(remaining)
        except SystemExit as ended:
            return ended.code
    return 0


def test_a_name_that_is_not_utf_8_is_escaped(tmp_path: Path):
    path = tmp_path / os.fsdecode(b"f\xff.png")
    draw(tmp_path / "a.png").rename(path)
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    assert out_to(stream, f"--csv={tmp_path / 'table.csv'}", path) == 0
    for text in (stream.buffer.getvalue().decode(), table(tmp_path / "table.csv")[1][0]):
        assert "f\\udcff.png" in text


def test_a_table_is_whole_though_nobody_reads_the_lines(tmp_path: Path):
    reader, writer = os.pipe()
    os.close(reader)
    for i in range(3):
        draw(tmp_path / f"{i}.png")
    with open(writer, "w", 1) as stream:
        assert out_to(stream, f"--csv={tmp_path / 'table.csv'}", tmp_path) == 1
    assert len(table(tmp_path / "table.csv")) == 4
