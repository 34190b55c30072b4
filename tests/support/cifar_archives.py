"""Small archives of CIFAR-10 and CIFAR-100 in both layouts in which they are published."""

import io
import pickle
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

SIZES = {"train": 15, "test": 6}
CIFAR_10_FILES = {**{f"data_batch_{i}": "train" for i in range(1, 6)}, "test_batch": "test"}
CIFAR_10_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def cifar_images(file: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels `[count, 3072]` and labels of one file."""
    random = np.random.default_rng(list(file.encode()))
    count = 3 if file.startswith("data_batch") else SIZES[split]
    return random.integers(0, 256, (count, 3072), np.uint8), random.integers(0, 10, count)


def cifar_files(name: str, layout: str) -> dict[str, bytes]:
    """The files of a small CIFAR archive, by their paths in it."""
    parts = CIFAR_10_FILES if name == "cifar10" else {"train": "train", "test": "test"}
    classes = CIFAR_10_CLASSES if name == "cifar10" else [f"class{i:02d}" for i in range(100)]
    coarse = [f"coarse{i:02d}" for i in range(20)]
    files = {}
    for file, split in parts.items():
        images, labels = cifar_images(file, split)
        if layout == "python":
            entries = {b"data": images, b"labels" if name == "cifar10" else b"fine_labels": labels.tolist()}
            entries |= {} if name == "cifar10" else {b"coarse_labels": [3] * len(labels)}
            entries[b"batch_label"] = b""  # Python 3 pickles it as a call of `bytes`.
            files[file] = pickle.dumps(entries, protocol=2)
        else:
            columns = [labels] if name == "cifar10" else [np.full(len(labels), 3), labels]
            files[f"{file}.bin"] = np.column_stack([*(c.astype(np.uint8) for c in columns), images]).tobytes()
    if layout == "python":
        key = b"label_names" if name == "cifar10" else b"fine_label_names"
        meta = {key: [item.encode() for item in classes], b"coarse_label_names": [item.encode() for item in coarse]}
        files["batches.meta" if name == "cifar10" else "meta"] = pickle.dumps(meta, protocol=2)
    elif name == "cifar10":
        files["batches.meta.txt"] = "\n".join([*classes, "", ""]).encode()
    else:
        files["fine_label_names.txt"] = "\n".join([*classes, ""]).encode()
        files["coarse_label_names.txt"] = "\n".join([*coarse, ""]).encode()
    folder = {
        ("cifar10", "binary"): "cifar-10-batches-bin",
        ("cifar10", "python"): "cifar-10-batches-py",
        ("cifar100", "binary"): "cifar-100-binary",
        ("cifar100", "python"): "cifar-100-python",
    }[name, layout]
    return {f"{folder}/{file}": content for file, content in files.items()}


def tar(path: Path, files: Mapping[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def extract(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
