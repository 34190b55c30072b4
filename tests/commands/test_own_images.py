"""A folder of a user's own images: it trains, resumes, evaluates, predicts and exports."""

import json
import re
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.commands import Result, assert_one_clear_line, options_of, run_here
from support.interrupted_runs import assert_same_run, stopped_at, trained

from diffstride_hybrid.config import saved_runs
from diffstride_hybrid.data.loading import load_datasets
from diffstride_hybrid.model_tools import exporting

CLASSES = {"hell und weiß": 200, "dunkel": 60}
"""Names of classes, and the mean of their pixels."""


def fill(root: Path, count: int) -> None:
    random = np.random.default_rng(0)
    for name, level in CLASSES.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(level - 50, level + 50, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"bild {i}.{('png', 'bmp', 'tif')[i % 3]}")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("own") / "photos"
    fill(root / "train", 40)
    fill(root / "test", 6)
    return root


@pytest.fixture(scope="module")
def run(photos: Path, eager_steps: Any) -> tuple[Path, Result]:
    folder = photos.parent / "run"
    bindings = {"data.load_datasets.name": repr(str(photos)), "data.load_datasets.batch_size": 12}
    with eager_steps():
        result = run_here("train", "--gin_file=digits_hybrid", *options_of(bindings), f"--workdir={folder}")
    assert result.code == 0, result.err
    return folder, result


def test_it_trains_and_is_evaluated(run: tuple[Path, Result]):
    folder, result = run
    accuracy = result.out.split("test accuracy ")[1].split("%")[0]
    evaluated = run_here("evaluate", f"--workdir={folder}")
    assert f"test accuracy {accuracy}%" in evaluated.out
    assert "on 12 images" in evaluated.out


def test_it_predicts_class_folders_and_says_the_accuracy(run: tuple[Path, Result], photos: Path, tmp_path: Path):
    folder, result = run
    accuracy = result.out.split("test accuracy ")[1].split("%")[0]
    table = tmp_path / "table.csv"
    command = ["predict", f"--workdir={folder}", "--top=1", "--recursive", f"--csv={table}"]
    predicted = run_here(*command, str(photos / "test"))
    assert predicted.code == 0, predicted.err
    assert f"accuracy {accuracy}% of 12 images in folders with the names of classes" in predicted.out
    assert len(predicted.out.splitlines()) == 13
    assert table.read_text(encoding="utf-8").startswith("file,dunkel,hell und weiß")

    image = tmp_path / "bild.png"
    Image.new("RGB", (16, 16)).save(image)
    assert "accuracy" not in run_here("predict", f"--workdir={folder}", str(image)).out
    assert_one_clear_line(run_here("predict", f"--workdir={folder}", str(photos / "test")), "--recursive")


def test_it_is_exported(run: tuple[Path, Result], tmp_path: Path):
    folder, _ = run
    exported = run_here("export", f"--workdir={folder}", "--format=litert", f"--output={tmp_path / 'model.tflite'}")
    assert exported.code == 0, exported.err
    assert "on 12 test images" in exported.out


def test_an_export_is_checked_on_images_of_all_classes(
    run: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A folder is sorted by class, so its first images are all of one class."""
    seen = []

    def compare(model: Any, path: Any, kind: str, images: np.ndarray, labels: np.ndarray) -> Any:
        seen.append((images, labels))
        raise ValueError("seen")

    monkeypatch.setattr(exporting, "compare", compare)
    monkeypatch.setattr(exporting, "export", lambda *given: None)
    options = ["--format=litert", f"--output={tmp_path / 'model.tflite'}", "--images=4"]
    assert_one_clear_line(run_here("export", f"--workdir={run[0]}", *options), "seen")
    ((images, labels),) = seen
    assert len(images) == 4 and (labels.sum(0) > 0).all()
    loaded = saved_runs.load_run(run[0], "final.keras").datasets
    np.testing.assert_array_equal(images[0], loaded.first_images("test", 1)[0][0])


def test_it_resumes_only_with_the_same_images(photos: Path, tmp_path: Path, uncompiled: None):
    options = {"load_data_fn": partial(load_datasets, str(photos), batch_size=12), "backup_every": 2}
    trained(tmp_path / "alone", **options)
    stopped_at(9, tmp_path / "stopped", **options)
    (photos / "train" / "neu").mkdir()
    Image.new("RGB", (16, 16)).save(photos / "train/neu/bild.png")
    with pytest.raises(ValueError, match=r"class names of .* changed since .*stopped was begun: neu new"):
        trained(tmp_path / "stopped", **options)
    (photos / "train/neu/bild.png").rename(photos / "train/dunkel/neu.png")
    (photos / "train/neu").rmdir()
    with pytest.raises(ValueError, match=r"split sizes of .* changed since .*stopped was begun: .*72.*73"):
        trained(tmp_path / "stopped", **options)
    (photos / "train/dunkel/neu.png").unlink()
    trained(tmp_path / "stopped", **options)
    assert_same_run(tmp_path / "stopped", tmp_path / "alone")


@pytest.fixture(scope="module")
def undivided(tmp_path_factory: pytest.TempPathFactory, eager_steps: Any) -> tuple[Path, Path]:
    """A folder of classes, of which a share is held out for testing, and a run."""
    root = tmp_path_factory.mktemp("undivided")
    fill(root / "photos", 40)
    bindings = {"data.load_datasets.name": repr(str(root / "photos")), "data.load_datasets.batch_size": 12}
    with eager_steps():
        result = run_here("train", "--gin_file=digits_hybrid", *options_of(bindings), f"--workdir={root / 'run'}")
    assert result.code == 0, result.err
    return root / "photos", root / "run"


@pytest.mark.parametrize(
    ("command", "split"),
    [
        (["evaluate"], "test"),
        (["evaluate", "--split=validation"], "validation"),
        (["evaluate", "--split=train"], "train"),
        (["audit.__main__", "--split=validation"], "validation"),
        (["export", "--format=saved_model", "--output=exported"], "test"),
    ],
)
def test_images_that_were_trained_on_are_not_taken_for_others(
    command: list[str], split: str, undivided: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One more image, and others are held out."""
    photos, run = undivided
    monkeypatch.chdir(tmp_path)
    new = photos / "dunkel/a.png"
    Image.new("RGB", (16, 16)).save(new)
    try:
        result = run_here(command[0], f"--workdir={run}", *command[1:])
    finally:
        new.unlink()
    assert_one_clear_line(result, f"The {split} images of {photos} are not the files", str(run), "put the files back")


def test_the_folder_of_a_run_may_move_and_an_older_record_says_less(undivided: tuple[Path, Path], tmp_path: Path):
    photos, run = undivided
    before = run_here("evaluate", f"--workdir={run}").out
    assert "test accuracy" in before
    moved = shutil.copytree(photos, tmp_path / "moved")
    older = shutil.copytree(run, tmp_path / "run")
    config = older / "operative_config.gin"
    config.write_text(re.sub(r"(load_datasets\.name = )(\\\s+)?\S+", rf"\1{str(moved)!r}", config.read_text()))
    words = before.split(", /")[0]
    assert words in run_here("evaluate", f"--workdir={older}").out
    Image.new("RGB", (16, 16)).save(moved / "dunkel/a.png")
    assert_one_clear_line(run_here("evaluate", f"--workdir={older}"), "are not the files")
    record = json.loads((older / "run.json").read_text())
    assert record["data"].pop("files_digests").keys() == {"train", "validation", "test"}
    (older / "run.json").write_text(json.dumps(record))
    assert "test accuracy" in run_here("evaluate", f"--workdir={older}").out


def test_a_divided_folder_may_get_more_images_to_test_on(run: tuple[Path, Result], photos: Path):
    folder, _ = run
    extra = photos / "test/dunkel/mehr.png"
    Image.new("RGB", (16, 16)).save(extra)
    try:
        assert "test accuracy" in run_here("evaluate", f"--workdir={folder}").out
    finally:
        extra.unlink()


def test_a_run_does_not_resume_with_other_files_of_the_same_number(photos: Path, tmp_path: Path, uncompiled: None):
    options = {"load_data_fn": partial(load_datasets, str(photos), batch_size=12), "backup_every": 2}
    stopped_at(3, tmp_path / "stopped", **options)
    path = next((photos / "train/dunkel").iterdir())
    path.rename(path.with_name(f"a{path.suffix}"))
    try:
        with pytest.raises(
            ValueError, match=r"The (train|validation) images of .* are not the files.* as when the run"
        ):
            trained(tmp_path / "stopped", **options)
    finally:
        path.with_name(f"a{path.suffix}").rename(path)


def test_a_run_does_not_resume_with_another_seed(photos: Path, tmp_path: Path, uncompiled: None):
    """The seed decides which images are held out, so that the files seem to have changed."""
    options = {"load_data_fn": partial(load_datasets, str(photos), batch_size=12), "backup_every": 2}
    stopped_at(3, tmp_path, seed=3, **options)
    with pytest.raises(ValueError, match=r"was begun with another seed, 3, got 1: give the first one again"):
        trained(tmp_path, **options)


def test_a_run_is_evaluated_with_the_normalization_that_it_was_trained_with(run: tuple[Path, Result], photos: Path):
    """The mean of the training images changes when images are added. That of the run must not."""
    folder, _ = run
    before = run_here("evaluate", f"--workdir={folder}").out
    mean = saved_runs.load_image_format(folder).mean
    for i in range(40):
        Image.new("RGB", (16, 16), "white").save(photos / f"train/dunkel/weiß{i}.png")
    try:
        assert run_here("evaluate", f"--workdir={folder}").out == before
        assert list(saved_runs.load_run(folder, "final.keras").datasets.mean) == mean
        assert list(load_datasets(str(photos), batch_size=12, image_size=16).mean) != mean
    finally:
        for path in (photos / "train/dunkel").glob("weiß*"):
            path.unlink()
