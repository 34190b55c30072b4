"""Sets of TensorFlow Datasets whose images have more than 8 bits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from diffstride_hybrid.data.loading import load_datasets

LEVELS = {np.uint16: (20_000, 40_000), np.float32: (0.25, 0.5)}


def prepare(data_dir: Path, dtype: type) -> None:
    """Prepares a set 'xray' of gray images of two levels, each the only one of its class."""

    def info(builder: Any) -> Any:
        features = {
            "image": tfds.features.Image(shape=(8, 8, 1), dtype=dtype, encoding_format="png"),
            "label": tfds.features.ClassLabel(names=["low", "high"]),
        }
        return tfds.core.DatasetInfo(
            builder=builder, features=tfds.features.FeaturesDict(features), supervised_keys=("image", "label")
        )

    def examples(builder: Any) -> Any:
        for i in range(20):
            yield i, {"image": np.full((8, 8, 1), LEVELS[dtype][i % 2], dtype), "label": i % 2}

    with tfds.core.registered.skip_registration():
        methods = {
            "VERSION": tfds.core.Version("1.0.0"),
            "_info": info,
            "_generate_examples": examples,
            "_split_generators": lambda builder, _: {split: examples(builder) for split in ("train", "test")},
        }
        builder_cls = type("Xray", (tfds.core.GeneratorBasedBuilder,), methods)
    builder_cls(data_dir=data_dir).download_and_prepare()


@pytest.mark.parametrize("image_size", [None, 8, 16])
def test_sixteen_bits_become_eight(tmp_path: Path, image_size: int | None):
    prepare(tmp_path, np.uint16)
    datasets = load_datasets("xray", 4, image_size=image_size, data_dir=str(tmp_path))
    images, labels = datasets.splits["train"].arrays
    np.testing.assert_array_equal(images.min((1, 2, 3)), np.array([78, 156])[labels])
    np.testing.assert_array_equal(images.max((1, 2, 3)), np.array([78, 156])[labels])


def test_numbers_without_a_known_white_are_refused(tmp_path: Path):
    prepare(tmp_path, np.float32)
    with pytest.raises(ValueError, match="'xray' cannot be used: its images are float32, so which of their numbers"):
        load_datasets("xray", 4, data_dir=str(tmp_path))
