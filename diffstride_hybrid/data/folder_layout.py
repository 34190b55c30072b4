"""How folders of images divide them: into classes, into splits, or in an order that nothing can be learned from."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from absl import logging

from diffstride_hybrid.data.image_files import SUFFIXES, images_in

TRAIN, TEST, VALIDATION = "train", "test", ("validation", "val", "valid")
"""The folders that splits are read from."""

_SPLITS = {TRAIN, "training", TEST, "testing", *VALIDATION, "dev", "eval", "evaluation", "holdout"}

_MAY_BE_CLASSES = {TRAIN, "training", "valid", "dev", "eval"}
"""Those of them that may name a class as well, such as trains, if no other one is beside."""

_ENDING = re.compile(r"[ _-]?(set|images|data|split)$")
"""What may follow the name of a split, as in 'test_set'."""

_NAMED = 5
"""How many files a message names at most."""


def is_split_name(name: str) -> bool:
    """Tells whether a folder of this name most likely divides images, such as 'Test', 'val' or 'training_set'.

    Args:
        name: of the folder, in any case.
    """
    return _ENDING.sub("", name.lower()) in _SPLITS


def may_name_a_class(name: str) -> bool:
    """Tells whether the name of a split can be that of a class too, such as 'train'.

    Args:
        name: for which `is_split_name` is true.
    """
    return name.lower() in _MAY_BE_CLASSES


def subfolders(folder: pathlib.Path) -> list[pathlib.Path]:
    """Lists the folders in a folder, sorted. Those whose names begin with '.' are left out.

    Args:
        folder: that may not exist.
    """
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def some(names: Iterable[Any]) -> str:
    """The first names of many, for a message.

    Args:
        names: or paths.
    """
    names = [str(name) for name in names]
    return ", ".join([*names[:_NAMED], *(["…"] if len(names) > _NAMED else [])])


def looks_like_classes(folder: pathlib.Path) -> bool:
    """Tells whether a folder exists and at least two of the folders in it hold images, at any depth.

    Args:
        folder: that may not exist.
    """
    return sum(_holds_images(entry) for entry in subfolders(folder)) > 1


def check_no_splits_in_classes(folder: pathlib.Path, class_names: Sequence[str]) -> None:
    """Refuses classes that are divided themselves: the images of all their parts would count as one split.

    Args:
        folder: with a folder for each class.
        class_names: names of these folders.

    Raises:
        ValueError: each of them has a folder with the name of a split, or one of them has two.
    """
    splits = {name: [inner for inner in _inside(folder / name) if is_split_name(inner)] for name in class_names}
    divided = [name for name in class_names if len(splits[name]) > 1] or (all(splits.values()) and list(class_names))
    if divided:
        first, parts = divided[0], splits[divided[0]]
        raise ValueError(
            f"{folder / first} would be taken for a class with all that is in its folder{'s' * (len(parts) > 1)} "
            f"{' and '.join(parts)}: put the splits above the classes, as in {TRAIN}/{first} and {TEST}/{first}, or "
            "rename what is no split."
        )


def warn_of_classes_in_classes(folder: pathlib.Path, class_names: Sequence[str]) -> None:
    """Warns of folders that hold nothing but the same folders: these may be the classes, and those parts of a set.

    It is no error, since the images of each class may be sorted further, such as into 'day' and 'night'.

    Args:
        folder: with the folders.
        class_names: names of these folders, which are taken for classes.
    """
    inside = [_inside(folder / name) for name in class_names]
    if len(inside) < 2 or len(inside[0]) < 2 or any(names != inside[0] for names in inside):
        return
    if any(images_in(folder / name, recursive=False)[0] for name in class_names):
        return
    if not all(_holds_images(folder / name / inner) for name in class_names for inner in inside[0]):
        return
    logging.warning(
        "The folders %s of %s are taken for classes, and each holds nothing but the folders %s: if these are the "
        "classes, sort all images into %s/CLASS and %s/CLASS, or name %s alone",
        some(class_names),
        folder,
        some(inside[0]),
        TRAIN,
        TEST,
        folder / class_names[0],
    )


def _inside(folder: pathlib.Path) -> list[str]:
    """Names of the folders in a folder. One that cannot be read is told when its images are listed."""
    try:
        return [entry.name for entry in subfolders(folder)]
    except OSError:
        return []


def _holds_images(folder: pathlib.Path) -> bool:
    """Whether there is an image in a folder, at any depth. Unlike `images_in` this stops at the first one."""
    for _, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if any(name.lower().endswith(SUFFIXES) and not name.startswith(".") for name in names):
            return True
    return False
