"""Arguments and data sets that are refused, each with a message that names the mistake."""

import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from support import tiny_datasets
from support.batches import BATCH

from diffstride_hybrid.common.errors import one_line
from diffstride_hybrid.data.augmentation import augment
from diffstride_hybrid.data.loading import load_datasets


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cifar11"}, r"Unknown data set 'cifar11': .* did you mean .*'cifar10'"),
        ({"name": "cifar-10"}, r"Unknown data set 'cifar-10': .* did you mean .*'cifar10'"),
        ({"name": "diggits"}, r"Unknown data set 'diggits': .* did you mean 'digits'"),
        (
            {"name": "qqqqqqqqqq"},
            r"Unknown data set 'qqqqqqqqqq': data\.load_datasets\.name is 'digits', [^?]*$",
        ),
        ({"name": 10}, r"data\.load_datasets\.name .*10"),
        ({"name": "ag_news_subset"}, r"'ag_news_subset' cannot be used: it does not pair images with one class label"),
        ({"name": "wmt14_translate"}, r"'wmt14_translate' cannot be used: it does not pair images with one class"),
        ({"batch_size": 61}, r"batch_size is too large: cifar10 has 60 training images, and one step takes 61\."),
        ({"batch_size": 31, "mixup_alpha": 0.2}, r"batch_size is too large: .* 60 training images, .* takes 62\."),
        ({"batch_size": 0}, r"data\.load_datasets\.batch_size must be a whole number of at least 1, got 0\."),
        ({"batch_size": 2.5}, r"data\.load_datasets\.batch_size must be a whole number of at least 1, got 2\.5\."),
        ({"batch_size": "8"}, r"data\.load_datasets\.batch_size must be a whole number of at least 1, got '8'\."),
        ({"batch_size": None}, r"data\.load_datasets\.batch_size must be a whole number of at least 1, got None\."),
        ({"image_size": 0}, r"data\.load_datasets\.image_size must be a whole number of at least 1, got 0\."),
        ({"mixup": "both"}, r"data\.load_datasets\.mixup must be one of 'pairs', 'batch', got 'both'\."),
        ({"mixup_alpha": -0.1}, r"data\.load_datasets\.mixup_alpha must be a number of at least 0, got -0\.1\."),
        ({"mixup_alpha": np.nan}, r"data\.load_datasets\.mixup_alpha must be a number of at least 0, got nan\."),
        ({"mixup_alpha": "0.2"}, r"data\.load_datasets\.mixup_alpha must be a number of at least 0, got '0\.2'\."),
        ({"validation_fraction": 1.0}, r"validation_fraction must be at least 0 and below 1, got 1\.0\."),
        ({"validation_fraction": -0.1}, r"validation_fraction must be at least 0 and below 1, got -0\.1\."),
        ({"validation_fraction": 0.999}, r"validation_fraction.* no training images"),
        ({"training_images": 68}, r"training_images must be at most the 67 of cifar10, got 68\."),
        ({"training_images": 0}, r"training_images must be a whole number of at least 1, got 0\."),
        (
            {"training_images": 1438, "name": "digits"},
            r"training_images must be at most the 1,437 of digits, got 1,438\.",
        ),
        ({"validation_fraction": 0.9999, "name": "digits"}, r"validation_fraction.* no training images"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_named(tiny_data_dir: Path, options: dict[str, Any], message: str):
    arguments = {"name": "cifar10", "batch_size": BATCH, "data_dir": str(tiny_data_dir), **options}
    with pytest.raises(ValueError, match=message):
        load_datasets(**arguments)


@pytest.mark.parametrize("pad_size", [-1, 1.5, "2"])
def test_a_pad_size_that_is_not_a_whole_number_is_refused(load: Any, pad_size: Any):
    with pytest.raises(ValueError, match=rf"pad_size must be a whole number of at least 0, got {pad_size!r}\."):
        load(augment_fn=partial(augment, pad_size=pad_size)).training()


@pytest.mark.parametrize("augment_fn", ["flip", lambda images, seed: images[:, 1:]], ids=["text", "another shape"])
def test_what_does_not_augment_is_refused(load: Any, augment_fn: Any):
    with pytest.raises(ValueError, match=r"data\.load_datasets\.augment_fn must "):
        load(augment_fn=augment_fn)


def test_a_set_without_a_test_split_is_refused(tmp_path: Path):
    tiny_datasets.prepare("cifar10", tmp_path, {"train": 20})
    with pytest.raises(ValueError, match=r"'cifar10' cannot be used: it needs a 'train' and a 'test' .* has train\."):
        load_datasets("cifar10", batch_size=4, data_dir=str(tmp_path))


@pytest.mark.parametrize("long", [0, 1000])
def test_a_failed_download_says_what_and_why(long: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_network(builder: Any) -> None:
        raise ConnectionError(f"Network is unreachable.{' Why' * long}\nand more lines")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_network)
    with pytest.raises(OSError) as caught:
        load_datasets("cifar10", batch_size=4, data_dir=str(tmp_path))
    expected = (
        rf"'cifar10' is not prepared under {re.escape(str(tmp_path))}.* not be downloaded: Network is unreachable.*; "
        r"try again, or prepare it from files: python -m diffstride_hybrid\.prepare --name=cifar10 --source=FOLDER "
        r"--data_dir=(.*)$"
    )
    found = re.search(expected, one_line(caught.value))
    assert found is not None and shlex.split(found[1]) == [str(tmp_path)]


def test_a_set_that_has_to_be_downloaded_by_hand_says_so(tmp_path: Path):
    with pytest.raises(OSError, match=r"'imagenet2012' is not prepared under .* --name=imagenet2012 --source="):
        load_datasets("imagenet2012", batch_size=4, image_size=32, data_dir=str(tmp_path))
