"""Preparing sets of TensorFlow Datasets from small archives in the layouts of the real ones."""

import errno
import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.cifar_archives import SIZES, cifar_files, cifar_images, extract, tar

from diffstride_hybrid.data.cifar_images import CIFAR_100, class_names
from diffstride_hybrid.data.loading import load_datasets
from diffstride_hybrid.data.local_files import LocalFiles, prepare_from_files
from diffstride_hybrid.data.sources import tfds_builder


def prepared(name: str, source: Path, data_dir: Path) -> dict[str, int]:
    builder = tfds_builder(name, str(data_dir))
    prepare_from_files(builder, source)
    return {split: info.num_examples for split, info in builder.info.splits.items()}


def assert_nothing_left(data_dir: Path) -> None:
    assert not data_dir.exists() or not list(data_dir.iterdir())


pytestmark = pytest.mark.usefixtures("warned")


ARCHIVES = {
    ("cifar10", "binary"): "cifar-10-binary.tar.gz",
    ("cifar10", "python"): "cifar-10-python.tar.gz",
    ("cifar100", "binary"): "cifar-100-binary.tar.gz",
    ("cifar100", "python"): "cifar-100-python.tar.gz",
}


@pytest.mark.parametrize("form", ["archive", "folder", "inside"])
@pytest.mark.parametrize("layout", ["binary", "python"])
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_prepared_from_both_layouts(tmp_path: Path, warned: list[str], name: str, layout: str, form: str):
    source, data_dir = tmp_path / "source", tmp_path / "data"
    source.mkdir()
    files = cifar_files(name, layout)
    if form == "archive":
        tar(source / ARCHIVES[name, layout], files)
    else:
        extract(source, files)
    place = source / next(iter(files)).split("/")[0] if form == "inside" else source
    assert prepared(name, place, data_dir) == SIZES
    assert any("train split of " + name in message and "50000 as published" in message for message in warned)
    assert ("its checksum differs" in " ".join(warned)) == (layout == "binary" and form == "archive")

    datasets = load_datasets(name, batch_size=2, data_dir=str(data_dir), validation_fraction=0)
    images, labels = datasets.splits["test"].arrays
    expected_images, expected_labels = cifar_images("test_batch" if name == "cifar10" else "test", "test")
    expected = {
        (int(label), image.reshape(3, 32, 32).transpose(1, 2, 0).tobytes())
        for image, label in zip(expected_images, expected_labels)
    }
    assert {(int(label), image.tobytes()) for image, label in zip(images, labels)} == expected
    assert datasets.class_names[3] == ("cat" if name == "cifar10" else "class03")
    assert [entry.name for entry in (data_dir / name).iterdir()] == ["3.0.2"]


def draw_classes(root: Path, name: str) -> dict[bytes, str]:
    """Draws two images of each class for training and one for testing. Returns the class of each, by its pixels."""
    random = np.random.default_rng(0)
    drawn = {}
    for split, count in (("train", 2), ("test", 1)):
        for class_name in class_names(name):
            (root / split / class_name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / class_name / f"{i}.png")
                drawn[pixels.tobytes()] = class_name
    return drawn


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_prepared_from_png_files(tmp_path: Path, name: str):
    drawn = draw_classes(tmp_path / "source", name)
    classes = len(class_names(name))
    assert prepared(name, tmp_path / "source", tmp_path / "data") == {"train": 2 * classes, "test": classes}
    datasets = load_datasets(name, batch_size=2, data_dir=str(tmp_path / "data"), validation_fraction=0)
    assert list(datasets.class_names) == class_names(name)
    for split in ("train", "test"):
        images, labels = datasets.splits[split].arrays
        assert [drawn[image.tobytes()] for image in images] == [datasets.class_names[label] for label in labels]
        assert labels.tolist() != sorted(labels.tolist())
    if name == "cifar100":
        builder = tfds_builder(name, str(tmp_path / "data"))
        coarse, fine = builder.info.features["coarse_label"], builder.info.features["label"]
        for example in builder.as_dataset(split="test"):
            superclass = coarse.int2str(int(example["coarse_label"]))
            assert fine.int2str(int(example["label"])) in CIFAR_100[superclass].split()


def test_png_files_of_another_size_are_named(tmp_path: Path):
    draw_classes(tmp_path / "source", "cifar10")
    Image.new("RGB", (31, 32)).save(tmp_path / "source/train/frog/odd.png")
    with pytest.raises(OSError, match=r"odd\.png is no image of CIFAR: it has 32x31 pixels"):
        prepared("cifar10", tmp_path / "source", tmp_path / "data")
    assert_nothing_left(tmp_path / "data")


@pytest.mark.parametrize("layout", ["binary", "python"])
@pytest.mark.parametrize("how", ["cut off", "no archive", "empty"])
def test_a_damaged_archive_is_named_and_leaves_nothing(tmp_path: Path, layout: str, how: str):
    archive = tmp_path / "source" / ARCHIVES["cifar10", layout]
    archive.parent.mkdir()
    tar(archive, cifar_files("cifar10", layout))
    content = archive.read_bytes()
    archive.write_bytes({"cut off": content[: len(content) // 2], "no archive": b"<html>404</html>", "empty": b""}[how])
    with pytest.raises(OSError, match=f"{archive.name} is damaged"):
        prepared("cifar10", archive.parent, tmp_path / "data")
    assert_nothing_left(tmp_path / "data")


def test_a_damaged_file_in_a_folder_is_named(tmp_path: Path):
    files = cifar_files("cifar10", "binary")
    files["cifar-10-batches-bin/data_batch_2.bin"] = files["cifar-10-batches-bin/data_batch_2.bin"][:-1]
    extract(tmp_path / "source", files)
    with pytest.raises(OSError, match=r"data_batch_2\.bin is damaged"):
        prepared("cifar10", tmp_path / "source", tmp_path / "data")
    (tmp_path / "source/cifar-10-batches-bin/data_batch_2.bin").unlink()
    with pytest.raises(OSError, match=r"it lacks data_batch_2\.bin"):
        prepared("cifar10", tmp_path / "source", tmp_path / "data")
    assert_nothing_left(tmp_path / "data")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path):
    class Harmful:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "harmed",))

    files = cifar_files("cifar10", "python")
    files["cifar-10-batches-py/data_batch_1"] = pickle.dumps(Harmful())
    extract(tmp_path / "source", files)
    with pytest.raises(OSError, match="data_batch_1 is damaged: it would call"):
        prepared("cifar10", tmp_path / "source", tmp_path / "data")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    "break_it",
    [
        lambda entries: entries | {b"labels": entries[b"labels"][:-1]},
        lambda entries: entries | {b"labels": [300] * 3},
        lambda entries: entries | {b"data": entries[b"data"].astype(float)},
        lambda entries: {b"data": entries[b"data"]},
    ],
)
def test_python_files_that_do_not_fit_are_refused(tmp_path: Path, break_it):
    files = cifar_files("cifar10", "python")
    path = "cifar-10-batches-py/data_batch_1"
    files[path] = pickle.dumps(break_it(pickle.loads(files[path])))
    extract(tmp_path / "source", files)
    with pytest.raises(OSError, match="data_batch_1 is damaged"):
        prepared("cifar10", tmp_path / "source", tmp_path / "data")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "rock_paper_scissors", "imagenet2012"])
def test_what_is_missing_is_named(tmp_path: Path, name: str):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/notes.txt").touch()
    wanted = {
        "cifar10": "cifar-10-binary.tar.gz, cifar-10-python.tar.gz",
        "cifar100": "cifar-100-binary.tar.gz, cifar-100-python.tar.gz",
        "rock_paper_scissors": "rps-test-set.zip, rps.zip",
        "imagenet2012": "ILSVRC2012",
    }[name]
    with pytest.raises(OSError, match=f"cannot be prepared from {tmp_path / 'source'}: .*{wanted}"):
        prepared(name, tmp_path / "source", tmp_path / "data")
    assert_nothing_left(tmp_path / "data")


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (300, 300, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(path: Path, files: Mapping[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("form", ["archives", "unpacked into folders", "unpacked here"])
def test_archives_that_a_builder_goes_over(tmp_path: Path, form: str):
    """In this set both archives hold a folder of the archive's name, and the builder takes images by their paths."""
    source = tmp_path / "source"
    source.mkdir()
    files = {
        "rps": {f"rps/{name}/{name}{i}.png": png(i) for name in ("rock", "paper", "scissors") for i in range(2)},
        "rps-test-set": {f"rps-test-set/rock/rock{i}.png": png(i) for i in range(2)},
    }
    for archive, content in files.items():
        if form == "archives":
            zipped(source / f"{archive}.zip", content)
        else:
            extract(source / archive if form == "unpacked into folders" else source, content)
    assert prepared("rock_paper_scissors", source, tmp_path / "data") == {"train": 6, "test": 2}


@pytest.mark.parametrize("form", ["archive", "unpacked into a folder", "unpacked here"])
def test_archives_that_a_builder_unpacks(tmp_path: Path, form: str):
    """Here too the folder in the archive has the archive's name. The images are TIFF."""
    source, name = tmp_path / "source", "Kather_texture_2016_image_tiles_5000"
    source.mkdir()
    buffer = io.BytesIO()
    Image.fromarray(np.full((150, 150, 3), 9, np.uint8)).save(buffer, "TIFF")
    classes = ["tumor", "stroma", "complex", "lympho", "debris", "mucosa", "adipose", "empty"]
    files = {f"{name}/{i + 1:02d}_{classes[i].upper()}/a.tif": buffer.getvalue() for i in range(8)}
    if form == "archive":
        zipped(source / f"{name}.zip", files)
    else:
        extract(source / name if form == "unpacked into a folder" else source, files)
    assert prepared("colorectal_histology", source, tmp_path / "data") == {"train": 8}


def test_a_damaged_zip_is_named(tmp_path: Path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/rps.zip").write_bytes(b"PK no")
    zipped(tmp_path / "source/rps-test-set.zip", {})
    with pytest.raises(OSError, match=r"rps\.zip is damaged"):
        prepared("rock_paper_scissors", tmp_path / "source", tmp_path / "data")
    assert_nothing_left(tmp_path / "data")


def test_archives_without_images_leave_nothing(tmp_path: Path):
    (tmp_path / "source").mkdir()
    for name in ("rps.zip", "rps-test-set.zip"):
        zipped(tmp_path / "source" / name, {"other/file.txt": b""})
    with pytest.raises(OSError, match="cannot be prepared from"):
        prepared("rock_paper_scissors", tmp_path / "source", tmp_path / "data")
    assert_nothing_left(tmp_path / "data")


@pytest.mark.parametrize("after_it_was_asked", [False, True])
def test_a_set_that_another_process_has_just_prepared_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_it_was_asked: bool
):
    """The folder of the other process is in place before this one moves its own there, or begins."""
    extract(tmp_path / "source", cifar_files("cifar10", "binary"))
    builder = tfds_builder("cifar10", str(tmp_path / "data"))
    theirs = Path(builder.data_dir) / "theirs.tfrecord"

    def download_and_prepare(**options: Any) -> None:
        if after_it_was_asked:
            builder._make_download_manager(download_dir=options["download_dir"], download_config=None)
        theirs.parent.mkdir()
        theirs.touch()
        if after_it_was_asked:
            raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(type(builder), "_make_download_manager", lambda self, **options: None)
    monkeypatch.setattr(builder, "download_and_prepare", download_and_prepare)
    with pytest.raises(OSError, match="cannot be prepared from"):
        prepare_from_files(builder, tmp_path / "source")
    assert theirs.exists()


def test_a_prepared_set_is_left_as_it_is(tmp_path: Path):
    extract(tmp_path / "source", cifar_files("cifar10", "binary"))
    assert prepared("cifar10", tmp_path / "source", tmp_path / "data") == SIZES
    (tmp_path / "elsewhere").mkdir()
    assert prepared("cifar10", tmp_path / "elsewhere", tmp_path / "data") == SIZES


def test_no_file_is_looked_for_outside_of_the_folder(tmp_path: Path):
    """Joined to a folder, a name that begins with '/' would stand for a file in the root of the file system."""
    files = LocalFiles(tmp_path, tmp_path, {})
    names = {address: files._names(address) for address in ("https://host/a.gz", "https://host/b/a.gz")}
    assert names == {"https://host/a.gz": ["a.gz", "a.gz"], "https://host/b/a.gz": ["a.gz", "b/a.gz"]}
