"""Real data sets of TensorFlow Datasets, prepared from a few random images in place of the ones that they download.

Each builder is a subclass of the registered one, so name, version, features and supervised keys are the same, and
`tfds.builder(name, data_dir=…)` finds the result prepared, in this process and in any other.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

Example = dict[str, Any]

TRAIN_SIZE = 67
TEST_SIZE = 23
SIZES = {
    "cifar10": {"train": TRAIN_SIZE, "test": TEST_SIZE},
    "cifar100": {"train": TRAIN_SIZE, "test": TEST_SIZE},
    "fashion_mnist": {"train": TRAIN_SIZE, "test": TEST_SIZE},
    "imagenet2012": {"train": TRAIN_SIZE, "validation": TEST_SIZE},
}


def random_image(random: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    return random.integers(0, 256, (height, width, channels), np.uint8)


def cifar10(random: np.random.Generator, split: str) -> Example:
    return {"id": "", "image": random_image(random, 32, 32, 3), "label": random.integers(10)}


def cifar100(random: np.random.Generator, split: str) -> Example:
    return {"id": "", "image": random_image(random, 32, 32, 3), "label": random.integers(100), "coarse_label": 0}


def fashion_mnist(random: np.random.Generator, split: str) -> Example:
    return {"image": random_image(random, 28, 28, 1), "label": random.integers(10)}


def imagenet2012(random: np.random.Generator, split: str) -> Example:
    height, width = random.integers(20, 60, 2)
    label = -1 if split == "test" else random.integers(1000)  # The labels of ImageNet's test images are not public.
    return {"image": random_image(random, height, width, 3), "label": label, "file_name": ""}


EXAMPLES: dict[str, Callable[[np.random.Generator, str], Example]] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "fashion_mnist": fashion_mnist,
    "imagenet2012": imagenet2012,
}


def prepare(name: str, data_dir: Path, sizes: Mapping[str, int] | None = None) -> None:
    """Prepares a data set of random images in a folder, `sizes` being the number of examples of each split."""
    sizes = SIZES[name] if sizes is None else sizes
    registered = tfds.builder_cls(name)

    def examples(split: str) -> Iterator[tuple[int, Example]]:
        random = np.random.default_rng(list(f"{name} {split}".encode()))
        for i in range(sizes[split]):
            yield i, EXAMPLES[name](random, split)

    def split_generators(builder: Any, download_manager: Any) -> dict[str, Iterator[tuple[int, Example]]]:
        return {split: examples(split) for split in sizes}

    with tfds.core.registered.skip_registration():
        builder_cls = type(registered.__name__, (registered,), {"name": name, "_split_generators": split_generators})
    builder_cls(data_dir=data_dir).download_and_prepare()
