"""What `predict` prints and writes, of a model that needs no training."""

import csv
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image
from support.commands import Result, run_here

from diffstride_hybrid import predict
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


def give_outputs(monkeypatch: pytest.MonkeyPatch, outputs: list[float], loss: keras.losses.Loss) -> None:
    """Makes the run's network give these outputs for every image, and its loss another one."""
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.layers[-1].set_weights([np.zeros((48, 3)), np.array(outputs)])
    monkeypatch.setattr(saved_runs, "load_model", lambda *args: (model, loss))


@pytest.mark.parametrize(
    ("loss", "shares"),
    [
        (keras.losses.BinaryCrossentropy(from_logits=True), ["0.500000", "0.731059", "0.268941"]),
        (keras.losses.BinaryFocalCrossentropy(from_logits=True), ["0.500000", "0.731059", "0.268941"]),
        (keras.losses.CategoricalCrossentropy(from_logits=True), ["0.244728", "0.665241", "0.090031"]),
        (keras.losses.CategoricalFocalCrossentropy(from_logits=True), ["0.244728", "0.665241", "0.090031"]),
    ],
)
def test_logits_become_the_probabilities_that_the_loss_takes_them_for(
    loss: keras.losses.Loss, shares: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    give_outputs(monkeypatch, [0.0, 1.0, -1.0], loss)
    result = predicted(f"--csv={tmp_path / 'table.csv'}", draw(tmp_path / "a.png"))
    assert result.code == 0 and result.err == ""
    assert table(tmp_path / "table.csv")[1][1:] == shares


@pytest.mark.parametrize("loss", [keras.losses.MeanSquaredError(), keras.losses.CategoricalHinge()])
def test_outputs_that_are_no_probabilities_are_not_printed_as_percentages(
    loss: keras.losses.Loss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    give_outputs(monkeypatch, [0.0, 1.25, -0.5], loss)
    for name in ("a.png", "b.png"):
        draw(tmp_path / name)
    result = predicted("--top=2", tmp_path)
    assert result.code == 0
    assert result.out == "".join(f"{tmp_path / name}: 2 1.2500, file 0.0000\n" for name in ("a.png", "b.png"))
    (warning,) = result.err.splitlines()
    assert warning.startswith("warning: the outputs of final.keras are no probabilities")
    assert "from -0.5 to 1.25" in warning


def test_after_the_warning_no_output_is_printed_as_a_percentage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Outputs between 0 and 1 are no probabilities either if those of another image are not."""
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.GlobalAveragePooling2D()])
    monkeypatch.setattr(saved_runs, "load_model", lambda *args: (model, keras.losses.MeanSquaredError()))
    monkeypatch.setattr(predict, "normalize_images", lambda images, mean, std: images / np.float32(127.5))
    for name, gray in (("a.png", 255), ("b.png", 51)):
        Image.new("RGB", (4, 4), (gray, gray, gray)).save(tmp_path / name)
    lines = predicted("--top=1", tmp_path).out.splitlines()
    assert [line.split()[-1] for line in lines] == ["2.0000", "0.4000"]


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


def test_a_name_that_is_not_utf_8_is_escaped(tmp_path: Path, out_to: Callable[..., Any]):
    path = tmp_path / os.fsdecode(b"f\xff.png")
    draw(tmp_path / "a.png").rename(path)
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    assert out_to(stream, "predict", "--workdir=run", f"--csv={tmp_path / 'table.csv'}", path) == 0
    for text in (stream.buffer.getvalue().decode(), table(tmp_path / "table.csv")[1][0]):
        assert "f\\udcff.png" in text


def test_a_table_is_whole_though_nobody_reads_the_lines(tmp_path: Path, out_to: Callable[..., Any]):
    reader, writer = os.pipe()
    os.close(reader)
    for i in range(3):
        draw(tmp_path / f"{i}.png")
    with open(writer, "w", 1) as stream:
        assert out_to(stream, "predict", "--workdir=run", f"--csv={tmp_path / 'table.csv'}", tmp_path) == 1
    assert len(table(tmp_path / "table.csv")) == 4
