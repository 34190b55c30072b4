"""Batches of data sets in tests: reads them, compares them, undoes what the pipelines did to the images."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from diffstride_hybrid.data.augmentation import augment
from diffstride_hybrid.data.datasets import ALL, Datasets, Shard
from support.tiny_datasets import TRAIN_SIZE

BATCH = 8
VALIDATION_SIZE = 7  # A tenth of the training images, rounded.
STEPS = (TRAIN_SIZE - VALIDATION_SIZE) // BATCH
RANDOM = {"augment_fn": augment, "mixup_alpha": 0.2, "mixup": "batch"}


def take(dataset: tf.data.Dataset, count: int = -1) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(dataset.take(count).as_numpy_iterator())


def evaluated(datasets: Datasets, split: str, shard: Shard = ALL) -> list[tuple[np.ndarray, np.ndarray]]:
    """The batches of a split without the images that fill up the last ones."""
    batches = []
    for images, labels, weights in datasets.evaluation(split, shard).as_numpy_iterator():
        assert len(images) == len(labels) == len(weights) == datasets.batch_size // shard.count
        assert not images[weights == 0].any()
        batches.append((images[weights == 1], labels[weights == 1]))
    return batches


def assert_same(batches: Iterable[Any], others: Iterable[Any]) -> None:
    for (images, labels), (other_images, other_labels) in zip(batches, others, strict=True):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


def stored(tiny_data_dir: Path, name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels as TensorFlow Datasets gives them."""
    dataset = tfds.builder(name, data_dir=tiny_data_dir).as_dataset(split=split, as_supervised=True, batch_size=-1)
    return tuple(part.numpy() for part in dataset)


def unnormalized(datasets: Datasets, images: np.ndarray) -> np.ndarray:
    levels = 255 * (images * np.array(datasets.std) + datasets.mean)
    np.testing.assert_allclose(levels, levels.round(), atol=1e-3)
    return levels.round().astype(np.uint8)


def fingerprints(datasets: Datasets, batches: Iterable[Any]) -> list[bytes]:
    """The images of batches as bytes, one after another, so that images can be compared and looked up."""
    return [image.tobytes() for images, _ in batches for image in unnormalized(datasets, images)]
