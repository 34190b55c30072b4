r"""Audits a run's model, or a Keras model in a file: consistency under shifts, aliasing, corruptions, attacks, cost.

python -m diffstride_hybrid.audit --workdir=runs/digits_hybrid
python -m diffstride_hybrid.audit --model=model.keras --value_range=0,1 --output=audit folder_of_class_folders
python -m diffstride_hybrid.audit --model=model.keras --preprocess=mobilenet folder_of_class_folders
python -m diffstride_hybrid.audit --model=resnet.keras --mean=0.5 --std=0.25 folder_of_class_folders
"""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tqdm
from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.audit.auditing import PASSES, audit
from diffstride_hybrid.audit.classifier import data_format_of
from diffstride_hybrid.audit.report import Audit, figure_of
from diffstride_hybrid.common.arguments import spread_indices
from diffstride_hybrid.common.printing import encodable, printable
from diffstride_hybrid.config import saved_runs
from diffstride_hybrid.data.folder_layout import (
    check_no_splits_in_classes,
    is_split_name,
    subfolders,
    warn_of_classes_in_classes,
)
from diffstride_hybrid.data.image_files import find_images, read_image
from diffstride_hybrid.data.pixels import normalize_images
from diffstride_hybrid.models.resnet import Resnet
from diffstride_hybrid.runs import model_card
from diffstride_hybrid.runs.folder import BEST_MODEL, FINAL_MODEL, RunFolder

FLAGS = flags.FLAGS

OF_RUNS, OF_FILES = ("split", "data_dir"), ("value_range", "preprocess", "mean", "std", "image_size")
"""Options that only a run has, and options that only a model in a file has."""


class Subject(NamedTuple):
    """The model and the images of an audit.

    Attributes:
        words: both, for the report.
        model: a classifier.
        images: with values in `options["value_range"]`, and the channels where `options["data_format"]` says.
        labels: integers; None if the right classes are not known.
        options: more arguments for `audit`.
    """

    words: str
    model: keras.Model
    images: np.ndarray
    labels: np.ndarray | None
    options: dict[str, Any]


def define_flags() -> None:
    """Defines the options of the command."""
    command_line.path_flag("workdir", "Folder of a run. Without it, --model is a file and images are named.")
    command_line.path_flag(
        "model", f"A .keras file; of a run, its name in the run's folder, such as {BEST_MODEL}.", FINAL_MODEL
    )
    flags.DEFINE_integer("images", 1000, "How many images at most, spread evenly over all.", lower_bound=1)
    flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which part of a run's data.")
    flags.DEFINE_integer("seed", 0, "Of shifts and noise.", lower_bound=0)
    flags.DEFINE_integer("batch_size", 64, "How many images go through the model at once.", lower_bound=1)
    flags.DEFINE_list("value_range", ["0", "255"], "Black and white as the model in the file takes them.")
    flags.DEFINE_string(
        "preprocess", None, "Module of keras.applications whose preprocess_input the file's model needs."
    )
    for name, words in (("mean", "Mean"), ("std", "Standard deviation")):
        flags.DEFINE_list(
            name, None, f"{words} of each channel, or of all, of images scaled to 0..1, if the file's model needs it."
        )
    flags.DEFINE_integer("image_size", None, "Height and width if the file's model takes any size.", lower_bound=1)
    command_line.path_flag("output", "Folder for the files. The run's own if not given, for its final model.")
    command_line.data_dir_flag("As in the run if not given.")


def main(argv: Sequence[str]) -> None:
    """Audits the model, prints the tables, and writes `audit.json`, `audit.md` and `figures/audit.png`.

    An audit of the final model of a run on its test images goes into the run's folder and model card. Any other one is
    written only if `--output` names a folder.

    Args:
        argv: the name of the command, then files or folders of images if there is no `--workdir`. The folders directly
            in a folder that is named are taken for the classes, in the order of their names.
    """
    is_run = FLAGS.workdir is not None
    for name in OF_FILES if is_run else OF_RUNS:
        if FLAGS[name].present:
            raise ValueError(f"--{name} is not for {'a run' if is_run else 'a model in a file'}: leave it out.")
    is_of_card = is_run and FLAGS.model == FINAL_MODEL and FLAGS.split == "test" and FLAGS.output is None
    place = FLAGS.workdir if is_of_card else FLAGS.output
    subject = _of_run(argv[1:]) if is_run else _of_file(argv[1:])
    folder = None if place is None else RunFolder(place)  # Before the audit: the folder may not be written to.
    bar = tqdm.tqdm(total=PASSES, desc="audit", unit="pass", leave=False, disable=not sys.stderr.isatty())
    with bar:
        results = audit(
            subject.model,
            subject.images,
            subject.labels,
            batch_size=FLAGS.batch_size,
            seed=FLAGS.seed,
            progress=bar.update,
            **subject.options,
        )
    results = dataclasses.replace(results, subject=encodable(subject.words))
    # The files do not depend on who reads the tables.
    if folder is not None:
        _write(folder, results)
        if is_of_card and folder.is_finished():
            model_card.write_model_card(folder, folder.read_json("summary.json"))
    print(printable(results.to_markdown()), end="")
    if folder is None:
        print("\nNothing is written: give --output=FOLDER for the tables and the figure.")
    else:
        print(printable(f"\n{folder.path / 'audit.json'}, audit.md and figures/audit.png are written."))


def _of_run(names: Sequence[str]) -> Subject:
    if names:
        raise ValueError(f"Unexpected argument {names[0]!r}: a run is audited on its own images, --split.")
    name = pathlib.PurePath(FLAGS.model)
    if name.name != FLAGS.model or name.suffix != ".keras":
        raise ValueError(
            f"--model must be a .keras file in the folder of the run, such as {FINAL_MODEL} or {BEST_MODEL}, without "
            f"the folder, got {FLAGS.model}."
        )
    run = saved_runs.load_run(pathlib.Path(FLAGS.workdir), FLAGS.model, FLAGS.data_dir, FLAGS.split)
    datasets = run.datasets
    if datasets.splits[FLAGS.split].size == 0:
        raise ValueError(f"The {FLAGS.split} split of {datasets.name} has no images.")
    words = f"{FLAGS.model}, {FLAGS.split} images of {datasets.name}"
    return Subject(words, run.model, *datasets.some_images(FLAGS.split, FLAGS.images), saved_runs.pixel_options(run))


def _of_file(names: Sequence[str]) -> Subject:
    if not names:
        raise ValueError("Give --workdir=RUN, or --model=FILE.keras and, after the options, images or folders of them.")
    path = pathlib.Path(FLAGS.model)
    if (path.parent / "run.json").exists():
        raise ValueError(f"{path} is the model of a run: give --workdir={path.parent} --model={path.name}.")
    model = saved_runs.load_model_file(path)
    data_format = data_format_of(model) or keras.config.image_data_format()
    shape, (low, high) = _image_shape(model, data_format), _value_range()
    preprocess = _preprocess(model, shape[-1], data_format)
    found = [
        (file, _class_of(file, pathlib.Path(name))) for name in names for file in find_images([name], recursive=True)
    ]
    _check_no_splits(names, {name for _, name in found if name is not None}, model.output_shape[-1])
    chosen = [found[i] for i in spread_indices(len(found), FLAGS.images)]
    images = low + (high - low) / 255 * _read([file for file, _ in chosen], shape).astype(np.float32)
    if data_format == "channels_first":
        images = np.moveaxis(images, -1, 1)
    return Subject(
        f"{FLAGS.model}, images of {', '.join(names)}",
        model,
        np.clip(images, low, high),
        _labels([name for _, name in found], [name for _, name in chosen], model.output_shape[-1]),
        {"value_range": (low, high), "preprocess": preprocess, "data_format": data_format},
    )


def _class_of(file: pathlib.Path, named: pathlib.Path) -> str | None:
    """The name of the folder that a file lies in, directly in the folder that the user named."""
    parts = file.relative_to(named).parts
    return parts[0] if len(parts) > 1 else None


def _check_no_splits(names: Sequence[str], classes: set[str], num_classes: int) -> None:
    """Refuses folders that are splits of a data set, or hold some: the labels would be wrong, or images of training."""
    if classes and all(is_split_name(name) for name in classes):
        example = min(classes, key=lambda name: (not name.lower().startswith("test"), name))
        folder = next(path for name in names if (path := pathlib.Path(name, example)).is_dir())
        raise ValueError(
            f"The folders {', '.join(sorted(classes))} are splits and no classes: name the folder of one split, such "
            f"as {folder}."
        )
    if len(classes) != num_classes:  # Then they are not taken for the model's classes.
        return
    for folder in filter(pathlib.Path.is_dir, map(pathlib.Path, names)):
        inside = [entry.name for entry in subfolders(folder) if entry.name in classes]
        check_no_splits_in_classes(folder, inside)
        warn_of_classes_in_classes(folder, inside)


def _labels(all_names: Sequence[str | None], names: Sequence[str | None], num_classes: int) -> np.ndarray | None:
    """The classes of images by the names of their folders, and a line that says what is taken for them."""
    classes = sorted({name for name in all_names if name is not None})
    if None in all_names or len(classes) != num_classes:
        print(
            f"The right classes are not known: the model has {num_classes} classes, and there are {len(classes)} "
            f"folders of images{' and images outside of them' if None in all_names else ''}.",
            file=sys.stderr,
        )
        return None
    order = ", ".join(f"{i} {name}" for i, name in enumerate(classes))
    print(f"The folders are taken for the model's classes in this order: {order}.", file=sys.stderr)
    return np.array([classes.index(name) for name in names])


def _read(files: Sequence[pathlib.Path], shape: tuple[int, int, int]) -> np.ndarray:
    """The images of files. Every file that cannot be read is named as an error."""
    images = []
    for file in files:
        try:
            images.append(read_image(file, shape))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
    if len(images) < len(files):
        raise ValueError(f"{len(files) - len(images)} of {len(files)} files cannot be read as images.")
    return np.stack(images)


def _image_shape(model: keras.Model, data_format: str) -> tuple[int, int, int]:
    """(height, width, channels) of the images that a model takes."""
    shape = getattr(model, "input_shape", None)
    if shape is None:
        raise ValueError(f"{FLAGS.model} is not built: call the model on an image before it is saved.")
    if not isinstance(shape, tuple) or len(shape) != 4:
        raise ValueError(f"audit takes models of one image, and {FLAGS.model} takes inputs of shape {shape}.")
    if data_format == "channels_first":
        shape = (shape[0], *shape[2:], shape[1])
    fixed = shape[1:3]
    if FLAGS.image_size is not None and None not in fixed and fixed != (FLAGS.image_size,) * 2:
        raise ValueError(
            f"--image_size={FLAGS.image_size} is for a model that takes images of any size, and {FLAGS.model} takes "
            f"{fixed[0]}x{fixed[1]}: leave it out."
        )
    height, width = (length or FLAGS.image_size for length in fixed)
    if None in (height, width):
        raise ValueError(f"{FLAGS.model} takes images of any size: give --image_size.")
    return height, width, shape[-1]


def _value_range() -> tuple[float, float]:
    try:
        low, high = map(float, FLAGS.value_range)
    except ValueError as error:
        given = ",".join(FLAGS.value_range)
        raise ValueError(f"--value_range must be two numbers such as 0,1, got {given}.") from error
    return low, high


def _preprocess(model: keras.Model, channels: int, data_format: str) -> Any:
    """What the options say must happen to pixels before the model in a file takes them. None if nothing must."""
    others = [name for name in ("value_range", "preprocess") if FLAGS[name].present]
    if FLAGS.mean is None and FLAGS.std is None:
        if isinstance(model, Resnet) and not others:
            raise ValueError(
                f"{FLAGS.model} is a network of this package, which takes normalized images: give --mean and --std of "
                "its training images, as run.json of its run or convert_google tells them, or give --value_range if it "
                "takes pixels."
            )
        if FLAGS.preprocess is not None and _value_range() != (0, 255):
            raise ValueError("--value_range is not for a model with --preprocess, which takes pixels from 0 to 255.")
        return _preprocess_input(data_format)
    if FLAGS.mean is None or FLAGS.std is None:
        raise ValueError("--mean and --std belong together: give both.")
    if others:
        raise ValueError(f"--{others[0]} is not for a model with --mean and --std: leave it out.")
    along_channels = (channels, 1, 1) if data_format == "channels_first" else (channels,)
    mean, std = (_statistic(name, channels).reshape(along_channels) for name in ("mean", "std"))
    return functools.partial(normalize_images, mean=mean, std=std)


def _statistic(name: str, channels: int) -> np.ndarray:
    """The value of --mean or --std, for each channel."""
    given = ",".join(FLAGS[name].value)
    try:
        values = np.array([float(text) for text in FLAGS[name].value])
    except ValueError as error:
        raise ValueError(f"--{name} must be numbers such as 0.5,0.4,0.4, got {given}.") from error
    if len(values) not in (1, channels):
        raise ValueError(f"--{name} must be one number, or one for each of the {channels} channels, got {given}.")
    above = values > 0 if name == "std" else values >= 0
    if not (above & (values <= 1)).all():  # NaN fails too.
        allowed = "above 0 and at most 1" if name == "std" else "from 0 to 1"
        raise ValueError(f"--{name} must be {allowed}, as of images scaled to 0..1, got {given}.")
    return np.broadcast_to(values, channels)


def _preprocess_input(data_format: str) -> Any:
    if FLAGS.preprocess is None:
        return None
    module = getattr(keras.applications, FLAGS.preprocess, None)
    if not hasattr(module, "preprocess_input"):
        known = [
            name for name in dir(keras.applications) if hasattr(getattr(keras.applications, name), "preprocess_input")
        ]
        raise ValueError(f"--preprocess must be one of {', '.join(known)}, got {FLAGS.preprocess}.")
    return functools.partial(module.preprocess_input, data_format=data_format)


def _write(folder: RunFolder, results: Audit) -> None:
    folder.write_text("audit.json", results.to_json())
    folder.write_text("audit.md", results.to_markdown())
    (folder.path / "figures").mkdir(exist_ok=True)
    folder.write_figure("figures/audit.png", figure_of(json.loads(results.to_json())))


if __name__ == "__main__":
    command_line.run(main, define_flags, takes_arguments=True)
