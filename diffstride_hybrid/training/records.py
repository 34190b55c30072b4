"""The values of `run.json` and `summary.json`: how a run was computed, and its results."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import platform
import sys
from collections.abc import Collection, Iterable
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.common import distribution
from diffstride_hybrid.common.versions import checkout_commit, versions_of
from diffstride_hybrid.data.datasets import Datasets
from diffstride_hybrid.model_tools.inspection import short_path, strides_by_path
from diffstride_hybrid.training.loop import TrainingLoop
from diffstride_hybrid.training.progress import Progress

PACKAGES = ("diffstride_hybrid", "tensorflow", "keras", "numpy", "tensorflow-datasets")
"""The packages whose versions a run records."""


def run_record(loop: TrainingLoop, seed: int) -> dict[str, Any]:
    """The values of `run.json`.

    Args:
        loop: of the run.
        seed: of the run.

    Returns:
        Versions, command, devices, precision, the size of the model and the data set, as JSON can hold them.
    """
    model, datasets = loop.model, loop.datasets
    return {
        "seed": seed,
        "versions": {"python": platform.python_version()} | versions_of(PACKAGES),
        "commit": checkout_commit(),
        "command": _command(),
        "started_in": _working_folder(),
        "devices": [device.name for device in tf.config.list_logical_devices()],
        "strategy": distribution.strategy_name(loop.strategy),
        "replicas": loop.strategy.num_replicas_in_sync,
        "workers": distribution.worker_count(loop.strategy),
        "jit_compile": loop.jit_compile,
        "dtype_policy": model.dtype_policy.name,
        "parameters": model.count_params(),
        "macs": loop.cost().macs,
        "data": _data_record(datasets) | _digests(datasets),
    }


def data_as_recorded(
    datasets: Datasets, record: Any, path: pathlib.Path, splits: Collection[str], resumes: bool = False
) -> Datasets:
    """Makes sure that a run's data are those that it began with, and normalizes them as they were then.

    Args:
        datasets: the data, loaded anew.
        record: the values of `run.json`.
        path: of `run.json`, for messages.
        splits: those that will be used. If the images are a user's own folder, their files must have the names that
            they had. A record of an earlier version does not say which names.
        resumes: whether training goes on, so that the splits must have as many images as they had.

    Returns:
        The data, with the mean and standard deviation of each channel from the record. They may differ from those
        measured now if the files or this package have changed.

    Raises:
        OSError: the record does not describe any data.
        ValueError: the classes or the shape of the images, the files of `splits`, the labels of a validation split that
            was drawn from a set of TensorFlow Datasets or, with `resumes`, the sizes of the splits have changed.
    """
    cure = " If nothing has changed there, bind data.load_datasets as when the run was begun." if resumes else ""
    now = _data_record(datasets)
    begun = recorded_data(record, path, now)
    for name in ("class_names", "image_shape", *(["split_sizes"] if resumes else [])):
        if begun[name] != now[name]:
            raise ValueError(
                f"The {name.replace('_', ' ')} of {datasets.name} changed since {path.parent} was begun: "
                f"{_difference(begun[name], now[name])}.{cure}"
            )
    digests, digests_now = record["data"].get("files_digests", {}), _digests(datasets).get("files_digests", {})
    labels, labels_now = (each.get("labels_digest") for each in (record["data"], _digests(datasets)))
    if {"train", "validation"} & set(splits) and None not in (labels, labels_now) and labels != labels_now:
        raise ValueError(
            f"The validation images of {datasets.name} are not those that {path.parent} was begun with: the set was "
            "prepared from other files, in another order, so images that the run was trained on may be among them. "
            "Give the --data_dir of the run, or prepare the set from the same files."
        )
    for split in splits:
        # Images that are held out are drawn from all names: one new name, and others are held out.
        if split in digests and digests[split] != digests_now.get(split):
            raise ValueError(
                f"The {split} images of {datasets.name} are not the files with which {path.parent} was begun, so "
                "images that it was trained on may be among those held out: put the files back as they were, or train "
                f"anew in another workdir.{cure}"
            )
    return dataclasses.replace(datasets, mean=tuple(begun["mean"]), std=tuple(begun["std"]))


def check_seed(record: Any, path: pathlib.Path, seed: int) -> None:
    """Makes sure that a run goes on with the seed that it began with: it decides which images are held out.

    Args:
        record: the values of `run.json`.
        path: of `run.json`, for the message.
        seed: given now.

    Raises:
        ValueError: the run began with another seed.
    """
    begun = record.get("seed", seed) if isinstance(record, dict) else seed
    if begun != seed:
        raise ValueError(
            f"{path.parent} was begun with another seed, {begun}, got {seed}: give the first one again, or choose "
            "another workdir."
        )


def recorded_data(record: Any, path: pathlib.Path, names: Iterable[str]) -> dict[str, Any]:
    """What `run.json` says of a run's data.

    Args:
        record: the values of `run.json`.
        path: of `run.json`, for the message.
        names: of the entries, such as 'class_names'.

    Returns:
        The entries.

    Raises:
        OSError: one of them is missing.
    """
    try:
        return {name: record["data"][name] for name in names}
    except (KeyError, TypeError) as error:
        raise OSError(f"{path} is damaged: it does not say which images the run was trained on.") from error


def _data_record(datasets: Datasets) -> dict[str, Any]:
    """What `run.json` says of the data, as JSON gives it back."""
    return {
        "name": datasets.name,
        "image_shape": list(datasets.image_shape),
        "class_names": list(datasets.class_names),
        "mean": list(datasets.mean),
        "std": list(datasets.std),
        "split_sizes": {name: split.size for name, split in datasets.splits.items()},
    }


def _command() -> list[str]:
    """The command as it can be given again. Of a module that it runs, Python gives the path in place of the name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return sys.argv if spec is None else ["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]]


def _working_folder() -> str | None:
    """The folder that the process works in; None if it was deleted."""
    with contextlib.suppress(FileNotFoundError):
        return os.getcwd()
    return None


def _digests(datasets: Datasets) -> dict[str, Any]:
    """What tells which images are held out.

    Of a user's own folder these are the hashes of the file names by the names of the splits, of a set of TensorFlow
    Datasets the hash of the labels of its validation split.
    """
    files = {name: split.files_digest for name, split in datasets.splits.items() if split.files_digest is not None}
    labels = datasets.splits["validation"].labels_digest
    return ({"files_digests": files} if files else {}) | ({} if labels is None else {"labels_digest": labels})


def _difference(before: Any, after: Any) -> str:
    if isinstance(before, list) and isinstance(before[0], str):
        gone, new = ([name for name in one if name not in other] for one, other in ((before, after), (after, before)))
        if gone or new:
            return "; ".join(f"{', '.join(names)} {what}" for names, what in ((gone, "gone"), (new, "new")) if names)
    return f"{before} before, {after} now"


def summarize(
    loop: TrainingLoop, test: dict[str, float], progress: Progress, macs_budget: int | None
) -> dict[str, Any]:
    """The values of `summary.json`.

    Args:
        loop: of the run, at its end.
        test: `loss` and `accuracy` on the test images.
        progress: of the run.
        macs_budget: the target in MACs for one image; None if the run has no budget, and then the values have none.

    Returns:
        Accuracies and losses as fractions, times in seconds, MACs for one image, and strides and sizes of the poolings.
        `steps` counts updates of the weights: fewer than the batches if gradients are accumulated or batches left out.
    """
    model, cost = loop.model, loop.cost()
    strides = strides_by_path(model)
    return {
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "best_validation_accuracy": progress.best_accuracy,
        "epochs": progress.epochs_done,
        "steps": keras.ops.convert_to_numpy(loop.optimizer.iterations).item(),
        "training_seconds": round(progress.training_seconds, 1),
        "retraces": progress.retraces,
        "parameters": model.count_params(),
        "macs": cost.macs,
        **({} if macs_budget is None else {"macs_budget": macs_budget}),
        "pooling_macs": cost.pooling_macs,
        "poolings": [
            {
                "layer": short_path(model, path),
                "strides": strides.get(path),
                "input_size": list(input_size),
                "output_size": list(output_size),
            }
            for path, (input_size, output_size) in cost.pooling_sizes().items()
        ],
    }
