"""What a run has left: its model, its loss and its data, as the run's own config says."""

from __future__ import annotations

import pathlib
import zipfile
from typing import NamedTuple

import gin
import keras
import numpy as np

from diffstride_hybrid import gin_registry
from diffstride_hybrid.data import Datasets


class Run(NamedTuple):
    """A run that has come as far as a model.

    Attributes:
        model: as saved.
        datasets: those of the run.
        loss: that of the run.
    """

    model: keras.Model
    datasets: Datasets
    loss: keras.losses.Loss


def load_model(workdir: pathlib.Path, model: str, data_dir: str | None = None) -> tuple[keras.Model, keras.losses.Loss]:
    """Loads the model of a run without its data, under the current strategy.

    Args:
        workdir: folder of the run.
        model: name of the model's file.
        data_dir: see `load_run`.

    Returns:
        The model and its loss.

    Raises:
        FileNotFoundError: there is no such folder, or the run has not come that far.
        OSError: the model's file, or the config, is damaged.
        ValueError: it is no model, or one that would run code of its own.
    """
    model_path, config_path = workdir / model, workdir / "operative_config.gin"
    for path in (config_path, model_path):
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no {path}: --workdir must be the folder of a run that has come that far."
            )
    _check_undamaged(model_path)
    bindings = [] if data_dir is None else [f"data.load_datasets.data_dir = {data_dir!r}"]
    gin_registry.parse([str(config_path)], bindings)
    if not {"seed", "load_data_fn", "loss_cls"} <= set(gin.get_bindings("train.train")):
        raise OSError(f"{config_path} is damaged: it is not the config of a run.")
    return keras.models.load_model(model_path, safe_mode=True), gin.get_bindings("train.train")["loss_cls"]()


def _check_undamaged(path: pathlib.Path) -> None:
    """Compares the checksums in a `.keras` file, which is a ZIP archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            archive.getinfo("config.json")
            damaged = archive.testzip()
    except Exception as error:  # What is not a checksum may be damaged too, and then anything is raised.
        damaged = str(error)
    if damaged is not None:
        raise OSError(f"{path} is damaged ({damaged}).")


def load_run(workdir: pathlib.Path, model: str, data_dir: str | None = None) -> Run:
    """Loads what is in the folder of a run, under the current strategy.

    Args:
        workdir: folder of the run.
        model: name of the model's file.
        data_dir: where TensorFlow Datasets keeps prepared sets, if not as in the run.

    Returns:
        The run.

    Raises:
        FileNotFoundError: there is no such folder, or the run has not come that far.
    """
    network, loss = load_model(workdir, model, data_dir)
    bound = gin.get_bindings("train.train")
    return Run(network, bound["load_data_fn"](seed=bound["seed"]), loss)


def first_images(datasets: Datasets, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a split, normalised, and their one-hot labels.

    Args:
        datasets: of a run.
        split: 'train', 'validation' or 'test'.
        count: how many, or all where the split has fewer.

    Returns:
        `[images, height, width, channels]` and `[images, classes]`.
    """
    count = min(count, datasets.splits[split].size)
    batches = datasets.evaluation(split).take(-(-count // datasets.batch_size)).as_numpy_iterator()
    images, labels, _ = (np.concatenate(parts) for parts in zip(*batches))
    return images[:count], labels[:count]
