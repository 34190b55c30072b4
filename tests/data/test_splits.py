"""Splits, evaluation in order, normalization, images of different sizes."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from support import tiny_datasets
from support.batches import BATCH, RANDOM, assert_same, evaluated, fingerprints, stored, take, unnormalized
from support.tiny_datasets import TEST_SIZE, TRAIN_SIZE

from diffstride_hybrid.data.datasets import Datasets
from diffstride_hybrid.data.loading import load_datasets
from diffstride_hybrid.training import records
from diffstride_hybrid.training.records import data_as_recorded


@pytest.mark.parametrize(("fraction", "validation_size"), [(0.0, 0), (0.1, 7)])
def test_splits_are_disjoint_and_complete(
    load: Any, storage: str, tiny_data_dir: Path, fraction: float, validation_size: int
):
    datasets = load(validation_fraction=fraction)
    sizes = {"train": TRAIN_SIZE - validation_size, "validation": validation_size, "test": TEST_SIZE}
    assert {name: split.size for name, split in datasets.splits.items()} == sizes
    images = {name: fingerprints(datasets, evaluated(datasets, name)) for name, size in sizes.items() if size}
    assert {name: len(set(images.get(name, ()))) for name in sizes} == sizes
    assert not set(images["train"]) & set(images.get("validation", ()))
    assert not set(images["train"]) & set(images["test"])
    everything = [image.tobytes() for image in stored(tiny_data_dir, "cifar10", "train")[0]]
    assert images["train"] + images.get("validation", []) == everything


@pytest.mark.parametrize("name", ["cifar10", "digits"])
def test_a_part_of_the_training_images_is_the_first_of_them(load: Any, storage: str, name: str):
    whole, part = (
        load_datasets(name, batch_size=BATCH, data_dir=load.keywords["data_dir"], **images)
        for images in ({"validation_fraction": 0.0}, {"training_images": 40, "validation_fraction": 0.25})
    )
    assert {split: part.splits[split].size for split in ("train", "validation")} == {"train": 30, "validation": 10}
    assert part.splits["test"].size == whole.splits["test"].size
    seen = [image for split in ("train", "validation") for image in fingerprints(part, evaluated(part, split))]
    assert seen == fingerprints(whole, evaluated(whole, "train"))[:40]


def test_the_validation_split_does_not_depend_on_the_seed(load: Any, storage: str):
    first, other = (evaluated(load(seed=seed, **RANDOM), "validation") for seed in (1, 2))
    assert_same(first, other)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_evaluation_gives_each_image_once_in_order(load: Any, storage: str, tiny_data_dir: Path, name: str):
    datasets = load_datasets(name, batch_size=BATCH, data_dir=str(tiny_data_dir), **RANDOM)
    batches = evaluated(datasets, "test")
    assert [len(images) for images, _ in batches] == [8, 8, 7]
    images, labels = (np.concatenate(parts) for parts in zip(*batches))
    expected_images, expected_labels = stored(tiny_data_dir, name, "test")
    assert images.dtype == labels.dtype == np.float32
    np.testing.assert_array_equal(unnormalized(datasets, images), expected_images)
    np.testing.assert_array_equal(labels, np.eye(datasets.num_classes)[expected_labels])


def test_some_images_are_spread_over_the_split(load: Any, storage: str, tiny_data_dir: Path):
    images, labels = stored(tiny_data_dir, "cifar10", "test")
    assert TEST_SIZE == 23
    for count, indices in ((3, [0, 7, 15]), (15, [i * 23 // 15 for i in range(15)]), (23, range(23)), (99, range(23))):
        found_images, found_labels = load().some_images("test", count)
        np.testing.assert_array_equal(found_images, images[list(indices)])
        np.testing.assert_array_equal(found_labels, labels[list(indices)])
        assert found_images.dtype == np.uint8


@pytest.mark.parametrize(("name", "channels"), [("digits", 1), ("fashion_mnist", 1), ("folder", 3)])
def test_training_images_have_mean_zero_and_unit_deviation(
    tiny_data_dir: Path, tmp_path: Path, name: str, channels: int
):
    if name == "folder":
        name = str(tmp_path)
        for i in range(20):
            (tmp_path / f"class{i % 2}").mkdir(exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, [[[50, 100, 250]]], (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"class{i % 2}/{i}.png")
    datasets = load_datasets(name, batch_size=min(BATCH, 8), data_dir=str(tiny_data_dir))
    images = np.concatenate([images for images, _ in evaluated(datasets, "train")]).astype("float64")
    assert len(datasets.mean) == len(datasets.std) == channels
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(images.std(axis=(0, 1, 2)), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("cifar10:3.0.2", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("cifar100", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("imagenet2012", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_some_sets_have_their_customary_normalization(
    tiny_data_dir: Path, name: str, mean: tuple[float, ...], std: tuple[float, ...]
):
    datasets = load_datasets(name, batch_size=BATCH, image_size=32, data_dir=str(tiny_data_dir))
    assert (datasets.mean, datasets.std) == (mean, std)


def test_digits_are_real_images_without_a_download():
    datasets = load_datasets("digits", batch_size=100)
    assert datasets.image_shape == (32, 32, 1)
    assert {name: split.size for name, split in datasets.splits.items()} == {
        "train": 1293,
        "validation": 144,
        "test": 360,
    }
    labels = np.concatenate([labels for _, labels in evaluated(datasets, "test")])
    np.testing.assert_allclose(labels.sum(axis=0), 36, atol=1)  # Every class in the share that it has.
    assert load_datasets("digits", image_size=8).image_shape == (8, 8, 1)


def test_images_of_different_sizes_need_image_size(tiny_data_dir: Path):
    load_imagenet = partial(load_datasets, "imagenet2012", batch_size=BATCH, data_dir=str(tiny_data_dir))
    with pytest.raises(ValueError, match=r"'imagenet2012' differ in size: set data\.load_datasets\.image_size"):
        load_imagenet()


def test_images_of_different_sizes_are_resized_whole(storage: str, tiny_data_dir: Path):
    datasets = load_datasets("imagenet2012", batch_size=BATCH, image_size=24, data_dir=str(tiny_data_dir))
    assert datasets.image_shape == (24, 24, 3)
    assert datasets.num_classes == 1000
    assert datasets.splits["test"].size == TEST_SIZE
    assert take(datasets.training(), 1)[0][0].shape == (BATCH, 24, 24, 3)
    resized = np.concatenate([unnormalized(datasets, images) for images, _ in evaluated(datasets, "test")])
    builder = tfds.builder("imagenet2012", data_dir=tiny_data_dir)
    originals = [image for image, _ in builder.as_dataset(split="validation", as_supervised=True).as_numpy_iterator()]
    assert len({image.shape for image in originals}) > TEST_SIZE // 2
    for image, original in zip(resized, originals, strict=True):
        height, width = (round(24 * side / max(original.shape)) for side in original.shape[:2])
        filled = np.argwhere(image.any(axis=-1))
        np.testing.assert_allclose(np.ptp(filled, axis=0) + 1, [height, width], atol=1)
        np.testing.assert_allclose(filled.min(axis=0), [(24 - height) / 2, (24 - width) / 2], atol=1)
        np.testing.assert_allclose(image[tuple(filled.T)].mean(), original.mean(), rtol=0.05)


def test_a_test_split_without_labels_is_not_used(tmp_path: Path):
    tiny_datasets.prepare("imagenet2012", tmp_path, {"train": 20, "validation": 9, "test": 10})
    datasets = load_datasets("imagenet2012", batch_size=4, image_size=8, data_dir=str(tmp_path))
    assert datasets.splits["test"].size == 9


def test_what_is_held_out_is_known_by_its_labels(storage: str, tiny_data_dir: Path, tmp_path: Path):
    """A set that was prepared from other files has its images in another order, and others are held out."""
    datasets = load_datasets("cifar10", batch_size=8, data_dir=str(tiny_data_dir))
    record = {"data": run_data(datasets)}
    path = tmp_path / "run.json"
    assert data_as_recorded(datasets, record, path, ["validation"]) == datasets
    held_out = f"train[{datasets.splits['train'].size}:]"
    labels = [label for _, label in tfds.load("cifar10", data_dir=tiny_data_dir, split=held_out, as_supervised=True)]
    digest = hashlib.sha256(np.array(labels, "<i8").tobytes()).hexdigest()
    assert digest.startswith(record["data"]["labels_digest"])
    other = {"data": {**record["data"], "labels_digest": "of another order"}}
    for splits in (["validation"], ["train"], ["train", "validation", "test"]):
        with pytest.raises(ValueError, match=r"validation images of cifar10 are not those that .* was begun with"):
            data_as_recorded(datasets, other, path, splits)
    assert data_as_recorded(datasets, other, path, ["test"]) == datasets
    older = {"data": {name: value for name, value in record["data"].items() if name != "labels_digest"}}
    assert data_as_recorded(datasets, older, path, ["validation"]) == datasets
    assert "labels_digest" not in run_data(
        load_datasets("cifar10", 8, data_dir=str(tiny_data_dir), validation_fraction=0)
    )


def run_data(datasets: Datasets) -> dict[str, Any]:
    """What `run.json` says of the data."""
    return records._data_record(datasets) | records._digests(datasets)
