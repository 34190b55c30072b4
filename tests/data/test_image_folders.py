"""Folders of a user's own images, with the odd files that such folders have."""

import errno
import os
import shutil
import threading
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffstride_hybrid.data import image_files, image_folders, loading
from diffstride_hybrid.data.datasets import Split
from diffstride_hybrid.data.image_files import read_image
from diffstride_hybrid.data.loading import load_datasets, shapes

COLORS = {"blau grün": (10, 20, 200), "red": (200, 30, 20)}
"""Two classes, each of one color, so that a label can be told from the pixels."""

SUFFIXES = ("png", "jpg", "bmp", "gif", "webp", "tif")


def draw(path: Path, color: tuple[int, int, int], size: tuple[int, int] = (8, 8), **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).save(path, **options)


def fill(root: Path, count: int = 6) -> None:
    """Draws `count` images of each class, in all formats by turns."""
    for name, color in COLORS.items():
        for i in range(count):
            draw(root / name / f"bild {i} ä.{SUFFIXES[i % len(SUFFIXES)]}", color)


def assert_labels_fit(images: np.ndarray, labels: np.ndarray) -> None:
    """JPEG, GIF and WebP keep colors only nearly."""
    expected = np.array(list(COLORS.values()))[labels]
    assert np.abs(images.mean((1, 2)) - expected).max() < 8


def loaded(folder: Path, **options: object):
    return load_datasets(str(folder), **{"batch_size": 2, "validation_fraction": 0.25} | options)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_folder_with_train_and_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool):
    fill(tmp_path / "train")
    fill(tmp_path / "test", 2)
    monkeypatch.setattr(image_folders, "_FILES_AT_ONCE", 5)
    if not in_memory:
        monkeypatch.setattr(image_folders, "MEMORY_LIMIT_BYTES", 0)
    datasets = loaded(tmp_path)
    assert datasets.class_names == tuple(COLORS)
    assert {name: split.size for name, split in datasets.splits.items()} == {"train": 9, "validation": 3, "test": 4}
    assert (datasets.splits["train"].arrays is not None) == in_memory
    assert datasets.image_shape == (8, 8, 3)
    assert shapes(str(tmp_path)) == ((8, 8, 3), 2)
    for split in ("train", "validation", "test"):
        images, labels = datasets.first_images(split, 9)
        assert_labels_fit((images * datasets.std + datasets.mean) * 255, labels.argmax(-1))
    images, labels = next(iter(datasets.training()))
    assert_labels_fit((images.numpy() * datasets.std + datasets.mean) * 255, labels.numpy().argmax(-1))


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_a_folder_with_train_validation_and_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool, name: str
):
    for split, count in (("train", 6), (name, 3), ("test", 2)):
        fill(tmp_path / split, count)
    if not in_memory:
        monkeypatch.setattr(image_folders, "MEMORY_LIMIT_BYTES", 0)
    splits = loaded(tmp_path).splits
    assert {name: split.size for name, split in splits.items()} == {"train": 12, "validation": 6, "test": 4}
    assert loaded(tmp_path, training_images=5).splits["train"].size == 5
    shutil.rmtree(tmp_path / "test")
    splits = loaded(tmp_path).splits
    assert {name: split.size for name, split in splits.items()} == {"train": 9, "validation": 3, "test": 6}


def test_both_ways_of_reading_give_the_same_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(tmp_path)
    held = loaded(tmp_path, image_size=5).first_images("test", 9)
    monkeypatch.setattr(image_folders, "MEMORY_LIMIT_BYTES", 0)
    streamed = loaded(tmp_path, image_size=5).first_images("test", 9)
    for one, other in zip(held, streamed):
        np.testing.assert_array_equal(one, other)


def test_a_folder_of_classes_holds_out_a_share_of_each_class(tmp_path: Path):
    fill(tmp_path, 10)
    parts = [loaded(tmp_path, seed=seed, validation_fraction=0).splits for seed in (1, 1, 2)]
    for splits in parts:
        assert np.bincount(splits["test"].arrays[1]).tolist() == [2, 2]
        assert np.bincount(splits["train"].arrays[1]).tolist() == [8, 8]
        assert_labels_fit(*splits["test"].arrays)
    held = [image_folders._held_out([(str(i), i % 2) for i in range(20)], 0.2, seed)[1] for seed in (1, 1, 2)]
    assert held[0] == held[1] != held[2]
    assert loaded(tmp_path, test_fraction=0.5).splits["test"].size == 10


def test_a_class_of_one_image_trains(tmp_path: Path):
    fill(tmp_path, 10)
    draw(tmp_path / "seldom/one.png", (0, 255, 0))
    splits = loaded(tmp_path, validation_fraction=0).splits
    assert np.bincount(splits["train"].arrays[1]).tolist() == [8, 8, 1]
    assert np.bincount(splits["test"].arrays[1]).tolist() == [2, 2]


def test_a_class_may_be_named_train(tmp_path: Path):
    for name in ("boat", "train"):
        for i in range(5):
            draw(tmp_path / name / f"{i}.png", (1, 2, 3))
    assert loaded(tmp_path).class_names == ("boat", "train")


@pytest.mark.parametrize(
    "names", [("Training", "Testing"), ("Train", "Test", "readme"), ("train", "test"), ("training", "valid")]
)
def test_folders_that_divide_images_are_not_taken_for_classes(names: tuple[str, ...], tmp_path: Path):
    """Otherwise the model would learn to tell the test images from the others."""
    for name in names:
        for i in range(5):
            folder = tmp_path / name if name.islower() else tmp_path / name / "boat"
            draw(folder / f"{i}.png", (1, 2, 3))
    splits = " and ".join(sorted(set(names) - {"readme"}))
    message = f"its folders {splits} would be taken for classes: divide all images into 'train', 'test' and 'valid"
    with pytest.raises(ValueError, match=message):
        loaded(tmp_path)


def test_gray_files_make_gray_images(tmp_path: Path):
    for name in COLORS:
        for i in range(5):
            path = tmp_path / name / f"{i}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(np.full((4, 4), 40_000 if i % 2 else 0, np.uint16)).save(path)
    datasets = loaded(tmp_path)
    assert datasets.image_shape == (4, 4, 1)
    assert set(np.unique(datasets.splits["train"].arrays[0])) == {0, 156}
    draw(tmp_path / "red/color.png", (1, 2, 3), (4, 4))
    assert loaded(tmp_path).image_shape == (4, 4, 3)


def test_links_hidden_files_and_deeper_folders(tmp_path: Path, warned: list[str]):
    root = tmp_path / "photos"
    fill(root)
    draw(tmp_path / "elsewhere/deep/a.png", COLORS["red"])
    (root / "red/linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/deep/back").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "red/file.png").symlink_to(tmp_path / "elsewhere/deep/a.png")
    (root / "red/._bild.png").write_bytes(b"notes of macOS")
    (root / ".cache").mkdir()
    (root / "red/Thumbs.db").touch()
    datasets = loaded(root, validation_fraction=0)
    assert sum(split.size for split in datasets.splits.values()) == 13
    assert any("1 files in" in message and "Thumbs.db" in message for message in warned)


def test_of_two_links_to_one_folder_the_first_one_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Whatever order the file system lists them in. An image with a link to it counts under its own name."""
    draw(tmp_path / "elsewhere/1.png", COLORS["red"])
    draw(tmp_path / "photos/z.png", COLORS["red"])
    for name in ("b", "a"):
        (tmp_path / "photos" / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "photos/link.png").symlink_to(tmp_path / "photos/z.png")
    walk = os.walk

    def backwards(*args: Any, **options: Any) -> Any:
        for place, folders, files in walk(*args, **options):
            folders.sort(reverse=True)
            yield place, folders, files

    monkeypatch.setattr(os, "walk", backwards)
    images, _ = image_files.images_in(tmp_path / "photos", recursive=True)
    assert [path.relative_to(tmp_path / "photos").as_posix() for path in images] == ["a/1.png", "z.png"]


def test_what_is_not_used_is_named(tmp_path: Path, warned: list[str]):
    for split in ("train", "test", "Val", "valid"):
        fill(tmp_path / split)
    draw(tmp_path / "train/loose.png", COLORS["red"])
    assert loaded(tmp_path, validation_fraction=0).splits["train"].size == 12
    assert f"{tmp_path} is divided into train, test, validation, and not used are {tmp_path / 'Val'}" in warned
    assert any(f"1 images in {tmp_path / 'train'} are in no folder of a class: " in message for message in warned)


@pytest.mark.parametrize("name", ["test", "Val", "validation", "valid", "train"])
def test_one_folder_that_divides_images_is_no_class(name: str, tmp_path: Path):
    for folder in ("boat", "plane"):
        draw(tmp_path / folder / "a.png", (1, 2, 3))
    for inner in {"valid": ("boat",), "train": ("",), "Val": ("boat", "plane")}.get(name, ("",)):
        draw(tmp_path / name / inner / "a.png", (1, 2, 3))
    if name == "train":
        for i in range(5):
            draw(tmp_path / name / f"{i}.png", (1, 2, 3))
        assert loaded(tmp_path, batch_size=1, validation_fraction=0).class_names == ("boat", "plane", "train")
    else:
        with pytest.raises(
            ValueError, match=f"its folder {name} would be taken for a class: .* rename what is a class"
        ):
            loaded(tmp_path)


def test_a_streamed_name_need_not_be_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(tmp_path)
    os.rename(tmp_path / "red/bild 0 ä.png", os.fsencode(tmp_path / "red") + b"/f\xff.png")
    monkeypatch.setattr(image_folders, "MEMORY_LIMIT_BYTES", 0)
    images, _ = loaded(tmp_path, validation_fraction=0).first_images("train", 12)
    assert len(images) == 10


def test_images_whose_headers_are_wrong_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(tmp_path)
    header = image_folders.read_header
    monkeypatch.setattr(image_folders, "read_header", lambda path: header(path)._replace(size=(6, 8)))
    with pytest.raises(ValueError, match="has 8x8 pixels, which its header does not say, and the others have 6x8"):
        loaded(tmp_path)
    assert loaded(tmp_path, image_size=6).image_shape == (6, 6, 3)


def test_images_lie_upright(tmp_path: Path):
    fill(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in COLORS:
        for path in (tmp_path / name).iterdir():
            path.unlink()
        for i in range(3):
            draw(tmp_path / name / f"{i}.jpg", COLORS[name], (12, 8), exif=exif)
            draw(tmp_path / name / f"{i}.png", COLORS[name], (8, 12))
    assert loaded(tmp_path).image_shape == (12, 8, 3)


def make_empty(root: Path) -> None:
    (root / "red/empty.png").touch()


def make_text(root: Path) -> None:
    (root / "red/text.jpg").write_text("no image")


def make_cut_off(root: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(root / "red/cut.png")
    content = (root / "red/cut.png").read_bytes()
    (root / "red/cut.png").write_bytes(content[: len(content) // 2])


def make_dead_link(root: Path) -> None:
    (root / "red/dead.png").symlink_to(root / "nowhere.png")


def make_float(root: Path) -> None:
    Image.fromarray(np.full((8, 8), 300, np.float32)).save(root / "red/float.tif")


def make_32_bits(root: Path) -> None:
    Image.fromarray(np.full((8, 8), 300, np.int32)).save(root / "red/deep.tif")


@pytest.mark.parametrize(
    ("break_it", "file"),
    [
        (make_empty, "empty.png"),
        (make_text, "text.jpg"),
        (make_cut_off, "cut.png"),
        (make_dead_link, "dead.png"),
        (make_float, "float.tif"),
        (make_32_bits, "deep.tif"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, break_it: Callable[[Path], None], file: str):
    fill(tmp_path)
    break_it(tmp_path)
    with pytest.raises(ValueError, match=f"{file} cannot be read as an image"):
        loaded(tmp_path)


def test_all_that_cannot_be_read_is_counted(tmp_path: Path):
    fill(tmp_path)
    for break_it in (make_empty, make_text, make_dead_link):
        break_it(tmp_path)
    with pytest.raises(ValueError, match=r"dead\.png cannot be read.*2 more in .*empty\.png.*text\.jpg"):
        loaded(tmp_path)


def test_a_streamed_file_that_is_cut_off_is_named_when_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(tmp_path / "train")
    fill(tmp_path / "test")
    make_cut_off(tmp_path / "test")
    monkeypatch.setattr(image_folders, "MEMORY_LIMIT_BYTES", 0)
    datasets = loaded(tmp_path)
    cure = r"cut\.png cannot be read as an image.* Put back the file, or remove it\.$"
    with pytest.raises(OSError, match=cure), datasets.naming_damage():
        datasets.first_images("test", 20)


def test_a_wrong_suffix_does_no_harm(tmp_path: Path):
    fill(tmp_path)
    (tmp_path / "red/bild 0 ä.png").rename(tmp_path / "red/bild 0 ä.jpeg")
    assert_labels_fit(*loaded(tmp_path, validation_fraction=0).splits["train"].arrays)


def test_images_that_differ_in_size_need_a_size(tmp_path: Path):
    fill(tmp_path)
    draw(tmp_path / "red/large.png", COLORS["red"], (20, 16))
    with pytest.raises(ValueError, match=r"differ in size, from 8x8 to 16x20: set data\.load_datasets\.image_size"):
        loaded(tmp_path)
    assert loaded(tmp_path, image_size=8).image_shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("arrange", "culprit"),
    [
        (lambda root: (root / "train/empty").mkdir(), "has no images of empty"),
        (lambda root: draw(root / "test/green/a.png", (0, 255, 0)), "has classes that 'train' lacks: green"),
        (lambda root: (root / "test").rename(root / "exam"), "has a folder 'train' and no 'test'"),
        (lambda root: (root / "train/red").rename(root / "red"), "at least two classes, and has blau grün"),
    ],
)
def test_folders_that_do_not_fit_are_told(tmp_path: Path, arrange: Callable[[Path], None], culprit: str):
    fill(tmp_path / "train")
    fill(tmp_path / "test")
    arrange(tmp_path)
    with pytest.raises(ValueError, match=culprit):
        loaded(tmp_path)


def test_a_name_is_a_folder_only_if_it_is_no_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "photos")
    fill(tmp_path / "digits")
    assert load_datasets("photos", 2).class_names == tuple(COLORS)
    assert load_datasets("digits", 2).num_classes == 10
    assert load_datasets("./digits", 2).class_names == tuple(COLORS)
    assert load_datasets(Path("./digits"), 2).class_names == tuple(COLORS)  # pathlib takes the './' off.
    assert shapes(Path("digits")) == ((8, 8, 3), 2)
    with pytest.raises(ValueError, match=r"'\./nowhere' names a folder that does not exist"):
        load_datasets("./nowhere", 2)
    with pytest.raises(ValueError, match="or a folder of images"):
        load_datasets("nowhere", 2)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, "a"])
def test_the_share_for_testing_is_checked(tmp_path: Path, fraction: object):
    with pytest.raises(ValueError, match="test_fraction must be above 0 and below 1"):
        loaded(tmp_path, test_fraction=fraction)


def test_a_set_in_memory_is_not_held_twice_while_it_is_measured(tmp_path: Path):
    """NumPy's `bincount` makes 64-bit numbers of what it counts."""
    images = np.zeros((2000, 64, 64, 3), np.uint8)
    images[1234] = 255
    tracemalloc.start()
    try:
        shape, mean, std = loading._measure(Split(len(images), arrays=(images, np.zeros(2000, np.int64))), None)
        assert tracemalloc.get_traced_memory()[1] < images.nbytes
    finally:
        tracemalloc.stop()
    assert shape == (64, 64, 3)
    assert mean == pytest.approx([1 / 2000] * 3)
    assert std == pytest.approx([np.sqrt(1 / 2000 - 1 / 2000**2)] * 3)


def test_a_folder_is_not_held_twice_while_it_is_read(tmp_path: Path):
    for i, name in enumerate(COLORS):
        for j in range(40):
            draw(tmp_path / name / f"{j}.png", (i, j, 0), (200, 200))
    tracemalloc.start()
    try:
        splits, _ = image_folders.folder_splits(str(tmp_path), 0.25, None, None, 0.2, seed=1)
        size = sum(split.arrays[0].nbytes for split in splits.values())
        assert tracemalloc.get_traced_memory()[1] < 1.5 * size
    finally:
        tracemalloc.stop()
    for split in splits.values():
        assert split.arrays[0][:, 0, 0, 0].tolist() == split.arrays[1].tolist()


def test_reading_in_threads_leaves_the_filters_of_warnings_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The second thread enters before the first one leaves, and leaves after it."""
    path = tmp_path / "a.png"
    draw(path, (1, 2, 3))
    both, first_left = threading.Barrier(2), threading.Event()

    def read(leaves_first: bool) -> None:
        with image_files._opened(path):
            both.wait(10)
            if not leaves_first:
                first_left.wait(10)
        first_left.set()

    before = warnings.filters[:]
    threads = [threading.Thread(target=read, args=(first,)) for first in (True, False)]
    with warnings.catch_warnings():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == before


def test_oddities_in_files_are_no_warnings(tmp_path: Path):
    """The filters of these tests make errors of warnings."""
    fill(tmp_path)

    def odd(path: str, *more: object) -> np.ndarray:
        warnings.warn("odd", UserWarning, stacklevel=1)
        return read_image(path, (8, 8, 3))

    paths = [str(path) for path in (tmp_path / "red").iterdir()]
    assert len(image_folders._read_all(odd, paths, tmp_path)) == 6


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(tmp_path)
    closed = tmp_path / "red/closed"
    closed.mkdir()
    scan = os.scandir

    def refuse(path: str) -> Any:
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(OSError, match=rf"The folder {closed} cannot be read \(Permission denied\): change"):
        loaded(tmp_path)
    with pytest.raises(OSError, match=rf"The folder {closed} cannot be read"):
        image_files.find_images([tmp_path], recursive=True)


def test_a_share_that_holds_out_nothing_is_told(tmp_path: Path):
    fill(tmp_path, 2)
    with pytest.raises(ValueError, match=r"test_fraction = 0\.1 leaves no image"):
        loaded(tmp_path, test_fraction=0.1)
