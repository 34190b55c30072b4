"""Finds CIFAR-10 and CIFAR-100 in the layouts that they are published in, for TensorFlow Datasets to prepare.

The binary layout (`cifar-10-binary.tar.gz`) is what TensorFlow Datasets downloads. The Python layout
(`cifar-10-python.tar.gz`) is what Keras and torchvision download. Both are described at
https://www.cs.toronto.edu/~kriz/cifar.html. Public copies of PNG files in class folders serve too.
"""

from __future__ import annotations

import io
import pathlib
import pickle
import tarfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffstride_hybrid.common.errors import first_line
from diffstride_hybrid.data import cifar_images

SIZES = {"train": 50_000, "test": 10_000}
"""Images of each split, as published, of CIFAR-10 and of CIFAR-100."""

_PIXELS = 3 * 32 * 32


class _Layout(NamedTuple):
    """Where a set keeps what.

    Attributes:
        archive: name of the binary archive, without '.tar.gz'.
        binary: folder in the binary archive.
        python: folder in the Python archive.
        python_archives: names that the Python archive may have.
        images: for each binary file with images, the file of the Python layout with the same images.
        labels: keys of the labels in a Python file, in the order in which the binary layout has them.
        names: for each binary file with class names, their key in the Python layout.
        meta: the file of the Python layout with the class names.
    """

    archive: str
    binary: str
    python: str
    python_archives: tuple[str, ...]
    images: dict[str, str]
    labels: tuple[str, ...]
    names: dict[str, str]
    meta: str


_LAYOUTS = {
    "cifar10": _Layout(
        archive="cifar-10-binary",
        binary="cifar-10-batches-bin",
        python="cifar-10-batches-py",
        python_archives=("cifar-10-python.tar.gz", "cifar-10-batches-py.tar.gz", "cifar-10-batches-py-target_archive"),
        images={**{f"data_batch_{i}.bin": f"data_batch_{i}" for i in range(1, 6)}, "test_batch.bin": "test_batch"},
        labels=("labels",),
        names={"batches.meta.txt": "label_names"},
        meta="batches.meta",
    ),
    "cifar100": _Layout(
        archive="cifar-100-binary",
        binary="cifar-100-binary",
        python="cifar-100-python",
        python_archives=("cifar-100-python.tar.gz", "cifar-100-python-target_archive"),
        images={"train.bin": "train", "test.bin": "test"},
        labels=("coarse_labels", "fine_labels"),
        names={"coarse_label_names.txt": "coarse_label_names", "fine_label_names.txt": "fine_label_names"},
        meta="meta",
    ),
}

NAMES = tuple(_LAYOUTS)
"""The sets that this module knows."""


def find(name: str, source: pathlib.Path, scratch: pathlib.Path) -> pathlib.Path | None:
    """Finds a CIFAR set in a folder and shows it as TensorFlow Datasets looks for it: a folder of the archive's name.

    Looked for are, in this order, the binary archive, its folder, the folder of the Python archive, and that archive,
    each under the names that the publisher, torchvision and Keras give it; then PNG files in `train/CLASS` and
    `test/CLASS`. `source` may itself be one of the two folders.

    Args:
        name: of a data set.
        source: folder with the files.
        scratch: folder in which the files are made.

    Returns:
        `scratch`, with files of the binary layout made from those that were found. None if `source` has the binary
        archive, or the set is not a CIFAR set.

    Raises:
        OSError: the files are missing or damaged.
    """
    layout = _LAYOUTS.get(name)
    if layout is None or (source / f"{layout.archive}.tar.gz").is_file():
        return None
    shown = scratch / layout.archive / layout.binary
    for folder in (source / layout.binary, source / layout.archive / layout.binary, source):
        if any((folder / file).is_file() for file in layout.images):
            _check_binary(layout, folder)
            shown.parent.mkdir()
            shown.symlink_to(folder.resolve(), target_is_directory=True)
            return scratch
    read = _python_reader(layout, source)
    if read is not None:
        shown.mkdir(parents=True)
        _write_python_files(read, layout, shown)
    elif cifar_images.has_images(source, name):
        shown.mkdir(parents=True)
        _write_images(source, name, layout, shown)
    else:
        raise OSError(
            f"Data set {name!r} cannot be prepared from {source}: it lacks {layout.archive}.tar.gz, "
            f"{layout.python_archives[0]}, their folders {layout.binary} and {layout.python}, and PNG files in "
            "train/CLASS and test/CLASS."
        )
    return scratch


def _write_python_files(read: Callable[[str], dict[str, Any]], layout: _Layout, shown: pathlib.Path) -> None:
    meta = read(layout.meta)
    for file, key in layout.names.items():
        names = [item.decode() if isinstance(item, bytes) else str(item) for item in _entry(meta, key, layout.meta)]
        _write_names(shown / file, names)
    for file, python_file in layout.images.items():
        (shown / file).write_bytes(_records(read(python_file), layout, python_file))


def _write_images(source: pathlib.Path, name: str, layout: _Layout, shown: pathlib.Path) -> None:
    names = cifar_images.class_names(name)
    coarse = len(layout.labels) > 1
    superclasses = np.array([cifar_images.superclass_of(class_name) for class_name in names] if coarse else [])
    for file, key in layout.names.items():
        _write_names(shown / file, sorted(cifar_images.CIFAR_100) if key.startswith("coarse") else names)
    for split in cifar_images.SPLITS:
        pixels, labels = cifar_images.read_split(source, name, split)
        columns = {"labels": labels, "fine_labels": labels}
        if coarse:
            columns["coarse_labels"] = superclasses[labels]
        files = [file for file in layout.images if file.startswith("test") == (split == "test")]
        for file, part in zip(files, np.array_split(np.arange(len(labels)), len(files))):
            entries = {key: values[part] for key, values in columns.items()} | {"data": pixels[part]}
            (shown / file).write_bytes(_records(entries, layout, file))


def _write_names(path: pathlib.Path, names: Sequence[str]) -> None:
    path.write_text("\n".join(names) + "\n", encoding="utf-8")


def _check_binary(layout: _Layout, folder: pathlib.Path) -> None:
    missing = [file for file in (*layout.images, *layout.names) if not (folder / file).is_file()]
    if missing:
        raise OSError(f"{folder} is incomplete: it lacks {', '.join(missing)}.")
    record = len(layout.labels) + _PIXELS
    for file in layout.images:
        size = (folder / file).stat().st_size
        if size == 0 or size % record:
            raise OSError(f"{folder / file} is damaged: {size:,} bytes are not a whole number of images.")


def _python_reader(layout: _Layout, source: pathlib.Path) -> Callable[[str], dict[str, Any]] | None:
    """Makes the function that reads a file of the Python layout by its name, from a folder or from an archive."""
    for folder in (source / layout.python, source / f"{layout.python}-target" / layout.python, source):
        if (folder / layout.meta).is_file():
            return lambda file: _unpickled(_content(folder / file), folder / file)
    for name in layout.python_archives:
        if (source / name).is_file():
            files = _archive_files(source / name, layout)
            return lambda file: _unpickled(files[file], source / name)
    return None


def _content(path: pathlib.Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise OSError(f"{path.parent} is incomplete: it lacks {path.name}.") from error


def _archive_files(path: pathlib.Path, layout: _Layout) -> dict[str, bytes]:
    wanted = {f"{layout.python}/{file}": file for file in (*layout.images.values(), layout.meta)}
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file = wanted.get(member.name.removeprefix("./"))
                if file is not None:
                    files[file] = archive.extractfile(member).read()
    except Exception as error:  # tarfile, gzip and zlib have errors of their own.
        raise OSError(f"{path} is damaged: {first_line(error)}") from error
    missing = sorted(set(wanted.values()) - set(files))
    if missing:
        raise OSError(f"{path} is incomplete: it lacks {', '.join(missing)}.")
    return files


class _Unpickler(pickle.Unpickler):
    """Reads pickled arrays, lists and bytes. A pickle could name any function to call: these files need few."""

    _ALLOWED = frozenset({"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer", "encode", "bytes"})

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in ("numpy", "_codecs", "builtins", "__builtin__") and name in self._ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it would call {module}.{name}")


def _unpickled(content: bytes, path: pathlib.Path) -> dict[str, Any]:
    try:
        values = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in values.items()}
    except Exception as error:  # A damaged pickle raises errors of many kinds.
        raise OSError(f"{path} is damaged: {first_line(error)}") from error


def _entry(values: dict[str, Any], key: str, file: str) -> Any:
    if key not in values:
        raise OSError(f"{file} is damaged: it has no {key!r}.")
    return values[key]


def _records(values: dict[str, Any], layout: _Layout, file: str) -> bytes:
    """Writes images and labels of a Python file as the binary layout has them: labels, then a plane for each color."""
    images = np.asarray(_entry(values, "data", file))
    labels = [np.asarray(_entry(values, key, file)) for key in layout.labels]
    whole = images.ndim == 2 and images.shape[1] == _PIXELS and images.dtype == np.uint8
    if not whole or any(label.shape != (len(images),) or label.dtype.kind not in "iu" for label in labels):
        raise OSError(f"{file} is damaged: it does not have a label for each image of 3x32x32 bytes.")
    if any(label.size and not 0 <= label.min() <= label.max() < 256 for label in labels):
        raise OSError(f"{file} is damaged: a label is out of range.")
    return np.column_stack([*(label.astype(np.uint8) for label in labels), images]).tobytes()
