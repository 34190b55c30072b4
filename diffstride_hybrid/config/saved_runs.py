"""Records a run's config, and loads a run's model, loss and data from its folder."""

from __future__ import annotations

import difflib
import functools
import pathlib
import re
import zipfile
from typing import Any, NamedTuple

import gin
import keras
from absl import logging

from diffstride_hybrid.config import gin_files, gin_names
from diffstride_hybrid.data.datasets import Datasets
from diffstride_hybrid.data.pixels import normalize_images
from diffstride_hybrid.runs.folder import BEST_MODEL, RunFolder, read_json
from diffstride_hybrid.training.records import data_as_recorded, recorded_data

_CONFIG = "operative_config.gin"


class Run(NamedTuple):
    """A run whose model is saved.

    Attributes:
        model: as it was saved.
        datasets: the data of the run.
        loss: the loss that the run trains with.
    """

    model: keras.Model
    datasets: Datasets
    loss: keras.losses.Loss


class ImageFormat(NamedTuple):
    """The images that a run's model takes, and the classes that it tells apart.

    Attributes:
        class_names: names of the labels 0, 1, 2, …
        image_shape: (height, width, channels).
        mean: of each channel, of images scaled to 0..1.
        std: standard deviation of each channel, of images scaled to 0..1.
    """

    class_names: list[str]
    image_shape: list[int]
    mean: list[float]
    std: list[float]


def record_config(run_folder: RunFolder) -> None:
    """Writes the config that a run uses into its folder, and warns of bindings that nothing reads.

    Args:
        run_folder: folder of the run.

    Raises:
        ValueError: the run was begun with another config.
        OSError: the config in the folder is damaged.
    """
    workdir = gin_names.bound_workdir()
    for binding in gin_files.unread_bindings():
        # The command reads the bound workdir and passes it to the training, which gin cannot know.
        if binding != "train.train.workdir" or pathlib.Path(workdir) != run_folder.path:
            logging.warning("%s is bound, but nothing in this run reads it", binding)
    if not run_folder.writes:
        return
    config = gin.operative_config_str()
    path = run_folder.path / _CONFIG
    # A start that failed before the first step has left the config behind, and nothing that depends on it.
    if path.exists() and (run_folder.has_begun() or run_folder.backup.exists()):
        _check_same_config(path, config)
    run_folder.write_text(_CONFIG, config)


def _check_same_config(path: pathlib.Path, config: str) -> None:
    """Compares the config of a run with the text of the config that it was begun with.

    A parameter that is not bound and not in the old text is one that an older version of this package or of Keras did
    not have. It has its default, so it does not count. Nor does what a run is to do at a step that is not finite:
    until then it changes nothing.
    """
    try:
        begun_with = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise OSError(f"{path} is damaged: {error}.") from error
    if begun_with != config and config.startswith(begun_with):
        raise OSError(f"{path} is damaged: it is cut off after {len(begun_with):,} characters.")
    # Gin wraps long values, and a line of one says nothing by itself.
    begun_with, config = (re.sub(r"\s*\\?\n[ \t]+", " ", text) for text in (begun_with, config))
    lines = difflib.unified_diff(begun_with.splitlines(), config.splitlines(), n=0)
    changed = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
    changed = [line for line in changed if not _is_new_default(line, begun_with)]
    changed = [line for line in changed if not line[1:].startswith("train.on_not_finite = ")]
    if changed:
        raise ValueError(
            f"{path.parent} was begun with another config: give the old values (-) again, or choose another workdir. "
            f"{'; '.join(changed)}"
        )


def _is_new_default(line: str, begun_with: str) -> bool:
    """Whether a line of a diff adds a parameter that the older config lacks and that nothing binds now."""
    if line.removeprefix("+").startswith("#") or not line.removeprefix("+"):
        return line.startswith("+")
    name = line.removeprefix("+").split(" = ")[0]
    if not line.startswith("+") or f"\n{name} =" in begun_with:
        return False
    try:
        gin.query_parameter(name)
    except ValueError:  # It is not bound.
        return True
    return False


def load_run(workdir: pathlib.Path, model: str, data_dir: str | None = None, split: str = "test") -> Run:
    """Loads the model, the data and the loss of a run, under the current distribution strategy.

    Afterwards the run's own config is bound in gin.

    Args:
        workdir: folder of the run.
        model: name of the model's file, such as 'final.keras'.
        data_dir: folder in which TensorFlow Datasets keeps prepared sets. None for the folder that the run used.
        split: the split that will be measured on.

    Returns:
        The run.

    Raises:
        FileNotFoundError: the folder does not exist, or the run has not saved that model yet.
        OSError: the model's file, the config or the data is damaged, or the data cannot be downloaded.
        ValueError: the file is no model, or a model that would run code of its own, or the data have other classes or
            another size now, or the split has other files.
    """
    network, loss = load_model(workdir, model)
    load_data, seed = (gin_names.bound("train.train", name) for name in ("load_data_fn", "seed"))
    # A binding would not do: in a scope, the run's own would win over it.
    options = {} if data_dir is None else {"data_dir": data_dir}
    path = workdir / "run.json"
    datasets = data_as_recorded(load_data(seed=seed, **options), read_json(path), path, [split])
    return Run(network, datasets, loss)


def pixel_options(run: Run) -> dict[str, Any]:
    """How the model of a run takes pixels.

    Args:
        run: from `load_run`.

    Returns:
        `value_range`, `preprocess` and `data_format` as arguments of `audit`: pixels from 0 to 255 with the channels
        last, normalized as in training.
    """
    normalize = functools.partial(normalize_images, mean=run.datasets.mean, std=run.datasets.std)
    return {"value_range": (0, 255), "preprocess": normalize, "data_format": "channels_last"}


def load_model(workdir: pathlib.Path, model: str) -> tuple[keras.Model, keras.losses.Loss]:
    """Loads the model and the loss of a run without its data, under the current distribution strategy.

    Afterwards the run's own config is bound in gin.

    Args:
        workdir: folder of the run.
        model: name of the model's file, such as 'final.keras'.

    Returns:
        The model and the loss that the run trains with.

    Raises:
        FileNotFoundError: the folder does not exist, or the run has not saved that model yet.
        OSError: the model's file, or the config, is damaged.
        ValueError: the file is no model, or a model that would run code of its own.
    """
    config_path, model_path = workdir / _CONFIG, workdir / model
    if config_path.is_file() and not model_path.is_file():
        _check_finished(workdir, model_path)
    for path in (config_path, model_path):
        if not path.is_file():
            raise FileNotFoundError(f"There is no {path}: --workdir must be the folder of a run that has saved it.")
    gin_files.parse([str(config_path)], [])
    if not {"seed", "load_data_fn", "loss_cls"} <= set(gin.get_bindings("train.train", resolve_references=False)):
        raise OSError(f"{config_path} is damaged: it is not the config of a run.")
    return load_model_file(model_path), gin_names.bound("train.train", "loss_cls")()


def _check_finished(workdir: pathlib.Path, missing: pathlib.Path) -> None:
    """Says what to do about a model that is missing because its run was interrupted."""
    if (workdir / "summary.json").exists() or not (workdir / "run.json").exists():
        return
    best = f", or give --model={BEST_MODEL} where the command has --model" if (workdir / BEST_MODEL).exists() else ""
    raise FileNotFoundError(f"There is no {missing}, because the run is not finished: start it again{best}.")


def load_model_file(path: pathlib.Path) -> keras.Model:
    """Loads a model from a `.keras` file.

    Args:
        path: of the file.

    Returns:
        The model, not compiled.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file is damaged.
        ValueError: the file is no model, or a model that would run code of its own.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no {path}.")
    _check_undamaged(path)
    # A loss or a metric of the user's own would have to be known here, and nobody needs it.
    return keras.models.load_model(path, safe_mode=True, compile=False)


def load_image_format(workdir: pathlib.Path) -> ImageFormat:
    """Reads from a run's record which images its model takes and which classes it tells apart.

    Args:
        workdir: folder of the run.

    Returns:
        The format of the images.

    Raises:
        OSError: the record, run.json, does not exist or is damaged.
    """
    path = workdir / "run.json"
    return ImageFormat(**recorded_data(read_json(path), path, ImageFormat._fields))


def _check_undamaged(path: pathlib.Path) -> None:
    """Compares the checksums in a `.keras` file, which is a ZIP archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            archive.getinfo("config.json")
            damaged = archive.testzip()
    except Exception as error:  # If more than a checksum is damaged, `zipfile` raises errors of many kinds.
        damaged = str(error)
    if damaged is not None:
        raise OSError(f"{path} is damaged ({damaged}).")
