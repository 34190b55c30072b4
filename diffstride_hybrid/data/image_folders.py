"""A user's own images, in a folder for each class."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from diffstride_hybrid.data.datasets import Split, as_written
from diffstride_hybrid.data.folder_layout import (
    TEST,
    TRAIN,
    VALIDATION,
    check_no_splits_in_classes,
    is_split_name,
    may_name_a_class,
    some,
    subfolders,
    warn_of_classes_in_classes,
)
from diffstride_hybrid.data.image_files import ImageHeader, images_in, read_header, read_image, without_warnings
from diffstride_hybrid.data.splitting import MEMORY_LIMIT_BYTES, division

_FILES_AT_ONCE = 10_000
"""How many files the threads are given at a time."""


class ClassFolders(NamedTuple):
    """The images of a folder, by their split and class.

    Attributes:
        folder: that the user named.
        class_names: names of the labels 0, 1, 2, …, sorted.
        files: paths and labels of each split. There is no 'test' if the folder does not divide its images, and no
            'validation' if the folder has none beside 'test'.
        image_shape: (height, width, channels) of the images: one channel if all files are gray.
        resizes: whether files of another size are resized.
    """

    folder: pathlib.Path
    class_names: tuple[str, ...]
    files: dict[str, list[tuple[str, int]]]
    image_shape: tuple[int, int, int]
    resizes: bool


def is_named_folder(name: Any) -> bool:
    """Tells whether the name of a data set can only be that of a folder: a `Path`, or it begins with '/', '.' or '~'.

    Args:
        name: of a data set.
    """
    if isinstance(name, os.PathLike):
        return True
    return isinstance(name, str) and (os.path.isabs(name) or name.startswith((".", "~")))


def read_folder(name: str | os.PathLike[str], image_size: int | None) -> ClassFolders:
    """Lists the images of a folder and reads the header of each.

    The folder holds `train/CLASS/…` and `test/CLASS/…`, and may hold `validation/CLASS/…` ('val' or 'valid' are other
    names for it, and it stands in for 'test' if there is none); or it holds `CLASS/…`. An image may lie in folders
    below that of its class. Links are followed, and names that begin with '.' are left out.

    Args:
        name: of the folder.
        image_size: height and width that images are resized to. None to leave them as they are.

    Returns:
        The images.

    Raises:
        ValueError: the folder does not exist or is not laid out as above, a class has no images or is not in 'train',
            a file cannot be read, or the images differ in size and `image_size` is None.
    """
    folder = pathlib.Path(name).expanduser()
    if not folder.is_dir():
        raise ValueError(f"data.load_datasets.name = {os.fspath(name)!r} names a folder that does not exist.")
    roots = {"train": folder}
    if subfolders(folder / TRAIN):
        validation = next((folder / name for name in VALIDATION if (folder / name).is_dir()), None)
        test = folder / TEST if (folder / TEST).is_dir() else validation
        if test is None:
            raise ValueError(
                f"{folder} has a folder 'train' and no 'test': add one, or name {folder / TRAIN}, of which a share is "
                "then held out for testing."
            )
        roots = {"train": folder / TRAIN, "test": test}
        if validation not in (None, test):
            roots["validation"] = validation
        unused = [entry for entry in subfolders(folder) if entry not in roots.values()]
        if unused:
            logging.warning("%s is divided into %s, and not used are %s", folder, ", ".join(roots), some(unused))
    class_names = tuple(entry.name for entry in subfolders(roots["train"]))
    splits = [name for name in class_names if is_split_name(name)]
    divide = [name for name in splits if not may_name_a_class(name) or _has_any(folder / name, class_names)]
    if TEST not in roots and (len(splits) > 1 or divide):
        taken = f"folders {' and '.join(splits)} would be taken for classes"
        if len(splits) == 1:
            taken = f"folder {splits[0]} would be taken for a class"
        raise ValueError(
            f"{folder} seems to be divided, but its {taken}: divide all images into '{TRAIN}', '{TEST}' and "
            f"'{VALIDATION[0]}', with a folder for each class in each of them, or rename what is a class."
        )
    if len(class_names) < 2:
        raise ValueError(
            f"{roots['train']} must have a folder of images for each of at least two classes, and has "
            f"{', '.join(class_names) or 'none'}."
        )
    check_no_splits_in_classes(roots["train"], class_names)
    if TEST not in roots:
        warn_of_classes_in_classes(folder, class_names)
    otherwise = {"validation": "; then a share of 'train' is used for validation"}
    if "validation" in roots:
        otherwise["test"] = f"; then {roots['validation'].name!r} is used for testing"
    elif TEST in roots:
        otherwise["test"] = f" and name {folder / TRAIN}, of which a share is then held out for testing"
    files = {split: _labeled_files(root, class_names, split, otherwise.get(split, "")) for split, root in roots.items()}
    headers = _read_all(read_header, [path for split in files.values() for path, _ in split], folder)
    return ClassFolders(folder, class_names, files, _shape(folder, headers, image_size), image_size is not None)


def folder_splits(
    name: str | os.PathLike[str],
    validation_fraction: float,
    training_images: int | None,
    image_size: int | None,
    test_fraction: float,
    seed: int,
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Reads a user's own images from a folder that `read_folder` describes.

    Args:
        name: of the folder.
        validation_fraction: share of the training images set aside for validation, from 0 to below 1. Not used if the
            folder has 'validation' beside 'test'.
        training_images: how many images of the training split to use, with those set aside. None for all.
        image_size: height and width that images are resized to. None to leave them as they are.
        test_fraction: share of each class that is held out for testing if the folder does not divide its images.
        seed: chooses the images that are held out.

    Returns:
        'train', 'validation' and 'test', and the names of the classes.

    Raises:
        ValueError: as `read_folder`, or no image is left for testing, or there are fewer than `training_images`.
    """
    found = read_folder(name, image_size)
    train, test = found.files["train"], found.files.get("test")
    if test is None:
        train, test = _held_out(train, test_fraction, seed)
        if not test:
            raise ValueError(
                f"data.load_datasets.test_fraction = {test_fraction} leaves no image of {name} for testing."
            )
    # Sorted by class they would fill whole batches, and validation, with one class.
    train = [train[index] for index in np.random.default_rng(0).permutation(len(train))]
    validation = found.files.get("validation")
    fraction = validation_fraction if validation is None else 0
    for_training, used = division(name, len(train), training_images, fraction)
    parts = {"train": train[:for_training], "validation": validation or train[for_training:used], "test": test}
    images = sum(len(files) for files in parts.values())
    make = _split_in_memory if images * math.prod(found.image_shape) <= MEMORY_LIMIT_BYTES else _streamed_split
    splits = {part: make(files, found) for part, files in parts.items()}
    for part in splits.keys() - (found.files.keys() - {"train"}):
        # It is drawn from the names of all files. In a folder of its own a split may get more images.
        splits[part] = dataclasses.replace(splits[part], files_digest=_digest(parts[part], found.folder))
    return splits, found.class_names


def _has_any(folder: pathlib.Path, names: Sequence[str]) -> bool:
    return any(entry.name in names for entry in subfolders(folder))


def _labeled_files(root: pathlib.Path, class_names: Sequence[str], split: str, otherwise: str) -> list[tuple[str, int]]:
    """The images of a split, by their classes. `otherwise` says what is used if the user moves the split away."""
    unknown = [entry.name for entry in subfolders(root) if entry.name not in class_names]
    if unknown:
        raise ValueError(f"{root} has classes that 'train' lacks: {some(unknown)}.")
    files: list[tuple[str, int]] = []
    left_out: list[pathlib.Path] = []
    loose, _ = images_in(root, recursive=False)
    if loose:
        logging.warning("%d images in %s are in no folder of a class: %s", len(loose), root, some(loose))
    empty: list[str] = []
    for label, class_name in enumerate(class_names):
        images, others = images_in(root / class_name, recursive=True) if (root / class_name).is_dir() else ([], [])
        files += [(str(path), label) for path in images]
        left_out += others
        if not images:
            empty.append(class_name)
    if left_out:
        logging.warning("%d files in %s do not have names of images: %s", len(left_out), root, some(left_out))
    if empty and split == "train":
        raise ValueError(f"{root} has no images of {some(empty)}: add some, or remove the folder.")
    if not files:
        what = f"has {len(loose):,} images and no folders of classes" if loose else "has no images"
        raise ValueError(f"{root} {what}: sort images into {root / 'CLASS'}, or move {root} away{otherwise}.")
    return files


def _read_all(read: Callable[..., Any], paths: Sequence[str], folder: pathlib.Path, *more: Sequence[Any]) -> list[Any]:
    """Reads files side by side: `read` takes a path and one of each of `more`. Bad files are named together."""

    def attempt(path: str, *others: Any) -> Any:
        try:
            return read(path, *others)
        except ValueError as error:
            return error

    results = []
    with without_warnings(), concurrent.futures.ThreadPoolExecutor() as pool:
        # The pool keeps some 2 kB for each file that it is given, which a million files make gigabytes.
        for first in range(0, len(paths), _FILES_AT_ONCE):
            part = slice(first, first + _FILES_AT_ONCE)
            results += pool.map(attempt, paths[part], *(values[part] for values in more))
    errors = [result for result in results if isinstance(result, ValueError)]
    if errors:
        more = f" So cannot {len(errors) - 1:,} more in {folder}: {some(_paths(results, paths)[1:])}."
        raise ValueError(f"{errors[0]}{more if len(errors) > 1 else ''}")
    return results


def _paths(results: Sequence[Any], paths: Sequence[str]) -> list[str]:
    return [path for path, result in zip(paths, results) if isinstance(result, ValueError)]


def _shape(folder: pathlib.Path, headers: Sequence[ImageHeader], image_size: int | None) -> tuple[int, int, int]:
    channels = 1 if all(header.gray for header in headers) else 3
    sizes = sorted({header.size for header in headers})
    if image_size is not None:
        return image_size, image_size, channels
    if len(sizes) > 1:
        (low, wide), (high, broad) = sizes[0], sizes[-1]
        raise ValueError(
            f"The images in {folder} differ in size, from {low}x{wide} to {high}x{broad}: set "
            "data.load_datasets.image_size to the size they shall have."
        )
    return *sizes[0], channels


def _held_out(
    files: Sequence[tuple[str, int]], fraction: float, seed: int
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Divides files into those for training and those for testing, class by class. Each class keeps one to train on."""
    random = np.random.default_rng(seed)
    train: list[tuple[str, int]] = []
    test: list[tuple[str, int]] = []
    for label in sorted({label for _, label in files}):
        of_class = [file for file in files if file[1] == label]
        held = set(
            random.permutation(len(of_class))[: min(round(fraction * len(of_class)), len(of_class) - 1)].tolist()
        )
        train += [file for index, file in enumerate(of_class) if index not in held]
        test += [file for index, file in enumerate(of_class) if index in held]
    return train, test


def _digest(files: Sequence[tuple[str, int]], folder: pathlib.Path) -> str:
    """A short hash of the names of files, in whatever order they are, and wherever the folder is."""
    names = sorted(os.fsencode(pathlib.Path(path).relative_to(folder).as_posix()) for path, _ in files)
    return hashlib.sha256(b"\0".join(names)).hexdigest()[:16]


def _split_in_memory(files: Sequence[tuple[str, int]], found: ClassFolders) -> Split:
    images = np.empty((len(files), *found.image_shape), np.uint8)

    def read(path: str, place: np.ndarray) -> None:
        place[...] = read_image(path, found.image_shape, found.resizes)

    _read_all(read, [path for path, _ in files], found.folder, images)
    return Split(len(files), arrays=(images, np.array([label for _, label in files], np.int64)))


def _streamed_split(files: Sequence[tuple[str, int]], found: ClassFolders) -> Split:
    paths = np.array([os.fsencode(path) for path, _ in files], object)
    labels = np.array([label for _, label in files], np.int64)

    def stream(first: int, last: int) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices((tf.constant(paths[first:last], tf.string), labels[first:last]))

    def read(path: bytes) -> np.ndarray:
        return read_image(os.fsdecode(path), found.image_shape, found.resizes)

    @as_written
    def decode(path: tf.Tensor) -> tf.Tensor:
        return tf.ensure_shape(tf.numpy_function(read, [path], tf.uint8), found.image_shape)

    return Split(len(files), stream=stream, decode=decode, num_classes=len(found.class_names))
