"""Data sets whose files are damaged on the disk, as training meets them."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from support import tiny_datasets
from support.damage import empty, flip_a_bit, truncate
from support.paths import TESTS
from support.tiny_runs import small, train

from diffstride_hybrid.data import sources
from diffstride_hybrid.data.damage import naming_damaged_files
from diffstride_hybrid.data.loading import load_datasets
from diffstride_hybrid.data.sources import image_classification, prepare, tfds_builder

NAME = "fashion_mnist"


@pytest.fixture
def data_dir(tiny_data_dir: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_data_dir / NAME, tmp_path / "data" / NAME)
    return tmp_path / "data"


def shard(data_dir: Path, split: str = "train") -> Path:
    (path,) = data_dir.glob(f"{NAME}/*/*-{split}.tfrecord*")
    return path


def rewrite(path: Path, change: Callable[[tf.train.Example], None]) -> None:
    """Writes all records again, the twentieth changed."""
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    example = tf.train.Example.FromString(records[20])
    change(example)
    records[20] = example.SerializeToString()
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)


def spoil_an_image(example: tf.train.Example) -> None:
    image = example.features.feature["image"].bytes_list
    image.value[0] = image.value[0][:50]


def give_a_label(label: int, example: tf.train.Example) -> None:
    example.features.feature["label"].int64_list.value[0] = label


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "cut off": truncate,
    "flipped bit": flip_a_bit,
    "missing": Path.unlink,
    "image cut off": partial(rewrite, change=spoil_an_image),
    "label too great": partial(rewrite, change=partial(give_a_label, 10)),
    "label below 0": partial(rewrite, change=partial(give_a_label, -1)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_named(damage: str, storage: str, data_dir: Path, tmp_path: Path, uncompiled: None):
    DAMAGES[damage](shard(data_dir))
    load = partial(load_datasets, NAME, data_dir=str(data_dir), batch_size=8, image_size=16)
    with pytest.raises(OSError, match=rf"The files of data set '{NAME}'.* are damaged or incomplete: ") as error:
        train(tmp_path / "run", load_data_fn=load, model_cls=small, steps_per_epoch=20)
    message = str(error.value)
    assert message.endswith("Move them away and prepare the set again.")
    assert "\n" not in message
    assert len(message) < 600
    if damage.startswith("label"):
        assert "A label is out of range" in message


@pytest.mark.parametrize("damage", [name for name in DAMAGES if not name.startswith("label")])
def test_damaged_test_images_are_named(damage: str, data_dir: Path):
    path = shard(data_dir, "test")
    DAMAGES[damage](path)
    with pytest.raises(OSError, match=rf"The files of data set '{NAME}'.* are damaged or incomplete: "):
        load_datasets(NAME, data_dir=str(data_dir), batch_size=8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, rf"The description of data set '{NAME}' is damaged: .* Move its folder away and prepare the set"),
        (empty, rf"The description of data set '{NAME}' is damaged: "),
        (Path.unlink, r"is incomplete, it has no splits: move it away and prepare"),
    ],
)
def test_a_damaged_description_is_named(damage: Callable[[Path], Any], message: str, data_dir: Path):
    (path,) = (data_dir / NAME).rglob("dataset_info.json")
    damage(path)
    with pytest.raises(OSError, match=message):
        load_datasets(NAME, data_dir=str(data_dir), batch_size=8)


def test_an_augmentation_that_fails_is_not_taken_for_damage(
    storage: str, data_dir: Path, tmp_path: Path, uncompiled: None
):
    def failing(images: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_max(images) < -100, ["too bright"])]):
            return tf.identity(images)

    load = partial(load_datasets, NAME, data_dir=str(data_dir), batch_size=8, image_size=16, augment_fn=failing)
    with pytest.raises(tf.errors.InvalidArgumentError, match="too bright"):
        train(tmp_path / "run", load_data_fn=load, model_cls=small)


@pytest.mark.parametrize("error", [tf.errors.ResourceExhaustedError, tf.errors.UnavailableError])
def test_what_the_machine_lacks_is_not_taken_for_damage(error: type[tf.errors.OpError]):
    with pytest.raises(error), naming_damaged_files(NAME):
        raise error(None, None, "out of it [[{{node IteratorGetNext}}]]")


def test_what_a_gpu_cannot_compute_is_not_taken_for_damage():
    with pytest.raises(tf.errors.NotFoundError), naming_damaged_files(NAME):
        raise tf.errors.NotFoundError(None, None, "No algorithm worked! [[{{node conv/Conv2D}}]]")


@pytest.mark.parametrize("error", [RuntimeError("Failed to get url. HTTP code: 404."), AssertionError()])
def test_a_download_that_fails_is_named(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    builder = tfds_builder(NAME, str(tmp_path))
    monkeypatch.setattr(builder, "download_and_prepare", lambda: (_ for _ in ()).throw(error))
    with pytest.raises(OSError, match=rf"'{NAME}' is not prepared .* could not be downloaded: (Failed to|Assertion)"):
        prepare(builder)


def test_a_version_that_is_none_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"Unknown data set 'cifar10:1\.0\.0': "):
        load_datasets("cifar10:1.0.0", data_dir=str(tmp_path))


def test_a_shard_with_fewer_images_than_announced_is_named(
    storage: str, data_dir: Path, tmp_path: Path, uncompiled: None
):
    path = shard(data_dir)
    records = [record.numpy() for record in tf.data.TFRecordDataset(str(path))]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records[:40]:
            writer.write(record)
    load = partial(load_datasets, NAME, data_dir=str(data_dir), batch_size=8, image_size=16)
    with pytest.raises(OSError, match=rf"The files of data set '{NAME}'.* are damaged or incomplete: "):
        train(tmp_path / "run", load_data_fn=load, model_cls=small, steps_per_epoch=20)


def test_one_class_is_refused(data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    of_ten = image_classification

    def of_one(*args: Any) -> Any:
        feature, _, shape = of_ten(*args)
        return feature, ("all",), shape

    monkeypatch.setattr(sources, "image_classification", of_one)
    with pytest.raises(ValueError, match=rf"Data set '{NAME}' cannot be used: it has 1 class, nothing to tell"):
        load_datasets(NAME, data_dir=str(data_dir), batch_size=8)


INTERRUPTED = """
import sys, time
sys.path.insert(0, {tests!r})
from support import tiny_datasets
make = tiny_datasets.EXAMPLES["fashion_mnist"]

def slow(random, split):
    time.sleep(0.05)
    print("example", flush=True)
    return make(random, split)

tiny_datasets.EXAMPLES["fashion_mnist"] = slow
tiny_datasets.prepare("fashion_mnist", {folder!r})
"""


def test_an_interrupted_preparation_is_not_taken_for_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = INTERRUPTED.format(tests=str(TESTS), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        made = (line for line in process.stdout if line == b"example\n")
        for _ in range(10):
            next(made)
        process.kill()
    assert list(tmp_path.rglob("*incomplete*"))

    def no_network(*args: Any, **options: Any) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "_download_and_prepare", no_network, raising=False)
    monkeypatch.setattr(tfds.core.GeneratorBasedBuilder, "_download_and_prepare", no_network)
    with pytest.raises(OSError, match=rf"'{NAME}' is not prepared under .* and could not be downloaded"):
        load_datasets(NAME, data_dir=str(tmp_path), batch_size=8)
    monkeypatch.undo()
    tiny_datasets.prepare(NAME, tmp_path)
    assert load_datasets(NAME, data_dir=str(tmp_path), batch_size=8).splits["train"].size > 0
