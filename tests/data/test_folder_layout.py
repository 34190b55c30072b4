"""Folders of images in an order that nothing could be learned from, and folders that are no data set by their name."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffstride_hybrid.data.folder_layout import is_split_name
from diffstride_hybrid.data.loading import load_datasets


def draw(root: Path, *folders: str, names: Sequence[str] = ("1.png", "2.png", "3.png")) -> Path:
    """Images in each of some folders."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.new("RGB", (8, 8), "red").save(root / folder / name)
    return root


def class_names(root: Path) -> tuple[str, ...]:
    return load_datasets(str(root), 2, validation_fraction=0).class_names


@pytest.mark.parametrize(
    ("name", "divides"),
    [
        *((name, True) for name in ("Test", "training_set", "test-images", "val data", "testset", "dev", "holdout")),
        *((name, False) for name in ("tests", "trains", "tea_set", "data", "images", "validated", "boat")),
    ],
)
def test_names_of_splits_are_known(name: str, divides: bool):
    assert is_split_name(name) == divides


@pytest.mark.parametrize("splits", [("test_set", "training_set"), ("holdout", "train_images"), ("dev", "eval")])
def test_folders_named_much_like_splits_are_no_classes(splits: tuple[str, str], tmp_path: Path):
    draw(tmp_path, *(f"{split}/{name}" for split in splits for name in ("cat", "dog")))
    message = f"its folders {splits[0]} and {splits[1]} would be taken for classes: divide all images into 'train'"
    with pytest.raises(ValueError, match=message):
        class_names(tmp_path)


def test_folders_with_the_same_folders_are_named(tmp_path: Path, warned: list[str]):
    draw(tmp_path, *(f"{part}/{name}" for part in ("later", "old") for name in ("cat", "dog")))
    message = (
        f"The folders later, old of {tmp_path} are taken for classes, .* the folders cat, dog: .* sort all images into "
        f"train/CLASS and test/CLASS, or name {tmp_path / 'later'} alone"
    )
    assert class_names(tmp_path) == ("later", "old")
    assert len(warned) == 1 and re.match(message, warned[0])
    assert class_names(tmp_path / "later") == ("cat", "dog")
    assert len(warned) == 1


def test_classes_may_have_folders_within(tmp_path: Path, warned: list[str]):
    parts = [f"{name}/{part}" for name in ("cat", "dog") for part in ("day", "night")]
    assert class_names(draw(tmp_path / "one has more", *parts, "dog/dawn")) == ("cat", "dog")
    assert class_names(draw(tmp_path / "images beside", *parts, "cat")) == ("cat", "dog")
    for name in ("cat", "dog"):
        (tmp_path / f"notes/{name}/boxes").mkdir(parents=True)
    assert class_names(draw(tmp_path / "notes", "cat/images", "dog/images")) == ("cat", "dog")
    divided = draw(tmp_path / "divided", *(f"{split}/{part}" for split in ("train", "test") for part in parts))
    assert class_names(divided) == ("cat", "dog")
    assert warned == []


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (("cat/test", "cat/train", "dog/test", "dog/train"), "cat would be .* in its folders test and train: put the"),
        (("cat", "dog/Test", "dog/train"), "dog would be .* folders Test and train: .* as in train/dog and test/dog"),
        (("cat", "cat/test", "dog", "dog/test"), "cat would be .* in its folder test: put the splits above"),
        (("train/cat/test", "train/dog/test", "test/cat", "test/dog"), "train/cat would be taken for a class with all"),
    ],
)
def test_classes_that_are_divided_themselves_are_refused(folders: Sequence[str], told: str, tmp_path: Path):
    with pytest.raises(ValueError, match=told):
        class_names(draw(tmp_path, *folders))


def test_one_class_may_have_a_folder_with_the_name_of_a_split(tmp_path: Path):
    assert class_names(draw(tmp_path, "cat", "dog/test")) == ("cat", "dog")


@pytest.mark.parametrize(
    ("folders", "culprit", "cure"),
    [
        (["test"], "test has 3 images and no folders of classes", "or move {}/test away and name {}/train, of which a"),
        (["val/cat", "test"], "test has 3 images and no folders of classes", "; then 'val' is used for testing."),
        (["val", "test/cat"], "val has 3 images and no folders of classes", "; then a share of 'train' is used for"),
        (["val/cat", "test/cat/.hidden"], "test has no images", "; then 'val' is used for testing."),
    ],
)
def test_a_split_without_classes_is_told(folders: Sequence[str], culprit: str, cure: str, tmp_path: Path):
    """As Kaggle gives test images, whose labels it keeps."""
    draw(tmp_path, "train/cat", "train/dog", *folders)
    with pytest.raises(ValueError, match=rf"{tmp_path}/{culprit}: .*{cure.format(tmp_path, tmp_path)}"):
        class_names(tmp_path)


@pytest.mark.parametrize(
    ("folders", "is_told"),
    [
        (("digits/even", "digits/odd"), True),
        (("digits/train/even", "digits/test/even"), True),
        (("digits/figures", "digits/backup/.hidden"), False),  # The folder of a run.
        (("digits",), False),
    ],
)
def test_a_folder_that_a_built_in_set_hides_is_named(
    folders: Sequence[str], is_told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: list[str]
):
    monkeypatch.chdir(draw(tmp_path, *folders))
    assert load_datasets("digits", 2).num_classes == 10
    told = "'digits' is the built-in set; for the folder of that name write './digits'"
    assert warned == ([told] if is_told else [])


def test_a_folder_that_a_set_of_tensorflow_datasets_hides_is_named(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warned: list[str]
):
    monkeypatch.chdir(draw(tmp_path, "cifar10/cat", "cifar10/dog"))
    assert load().num_classes == 10
    assert warned == ["'cifar10' is the built-in set; for the folder of that name write './cifar10'"]
    warned.clear()
    monkeypatch.chdir(tmp_path / "cifar10")
    load()
    assert warned == []
