"""Records a run's config, and loads a run's model, loss and data from its folder."""

from __future__ import annotations

import difflib
import pathlib
import zipfile
from typing import NamedTuple

import gin
import keras
from absl import logging

from diffstride_hybrid.config import gin_files
from diffstride_hybrid.data.datasets import Datasets
from diffstride_hybrid.runs.folder import RunFolder


def record_config(folder: RunFolder) -> None:
    """Records the config that a run uses, and warns of unused bindings.

    Args:
        folder: of the run.

    Raises:
        ValueError: it was begun with another config.
        OSError: its config is damaged.
    """
    for binding in gin_files.unread_bindings():
        logging.warning("%s is bound, but nothing in this run reads it", binding)
    if not folder.writes:
        return
    config = gin.operative_config_str()
    path = folder.path / "operative_config.gin"
    if path.exists():
        try:
            begun_with = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise OSError(f"{path} is damaged: {error}.") from error
        if begun_with != config and config.startswith(begun_with):
            raise OSError(f"{path} is damaged: it is cut off after {len(begun_with):,} characters.")
        lines = difflib.unified_diff(begun_with.splitlines(), config.splitlines(), n=0)
        changed = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
        if changed:
            raise ValueError(f"{folder.path} was begun with another config: {'; '.join(changed)}")
    folder.write_text("operative_config.gin", config)


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
    gin_files.parse([str(config_path)], bindings)
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
