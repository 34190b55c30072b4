r"""Audits a run's model, or a Keras model in a file: consistency under shifts, aliasing, corruptions, attacks, cost.

python -m diffstride_hybrid.audit --workdir=runs/digits_hybrid
python -m diffstride_hybrid.audit --model=model.keras --value_range=0,1 --output=audit folder_of_class_folders
python -m diffstride_hybrid.audit --model=model.keras --preprocess=mobilenet folder_of_class_folders
"""

from __future__ import annotations

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
from diffstride_hybrid.audit.report import Audit, figure_of
from diffstride_hybrid.config import saved_runs
from diffstride_hybrid.data.image_files import find_images, read_image
from diffstride_hybrid.data.pixels import normalize_images
from diffstride_hybrid.runs import model_card
from diffstride_hybrid.runs.folder import BEST_MODEL, FINAL_MODEL, RunFolder

FLAGS = flags.FLAGS


class Subject(NamedTuple):
    """What is audited.

    Attributes:
        model: a classifier.
        images: with values in `options["value_range"]`.
        labels: integers; None if the right classes are not known.
        options: more arguments for `audit`.
    """

    model: keras.Model
    images: np.ndarray
    labels: np.ndarray | None
    options: dict[str, Any]


def define_flags() -> None:
    """Defines the options of the command."""
    flags.DEFINE_string("workdir", None, "Folder of a run. Without it, --model is a file and images are named.")
    flags.DEFINE_string("model", FINAL_MODEL, f"A .keras file; of a run, {FINAL_MODEL} or {BEST_MODEL}.")
    flags.DEFINE_integer("images", 1000, "How many images at most, spread evenly over all.", lower_bound=1)
    flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which part of a run's data.")
    flags.DEFINE_integer("seed", 0, "Of shifts and noise.", lower_bound=0)
    flags.DEFINE_integer("batch_size", 64, "How many images go through the model at once.", lower_bound=1)
    flags.DEFINE_list("value_range", ["0", "255"], "Black and white as the model in the file takes them.")
    flags.DEFINE_string(
        "preprocess", None, "Module of keras.applications whose preprocess_input the file's model needs."
    )
    flags.DEFINE_integer("image_size", None, "Height and width if the file's model takes any size.", lower_bound=1)
    flags.DEFINE_string("output", None, "Folder for the files; the run's own if not given. No files without either.")
    command_line.data_dir_flag("As in the run if not given.")


def main(argv: Sequence[str]) -> None:
    """Audits the model, prints the tables, and writes `audit.json`, `audit.md` and `figures/audit.png`.

    The model card of a finished run is written anew, with the tables in it.

    Args:
        argv: the name of the command, then files or folders of images if there is no `--workdir`.
    """
    subject = _of_file(argv[1:]) if FLAGS.workdir is None else _of_run(argv[1:])
    bar = tqdm.tqdm(total=PASSES, desc="audit", unit="pass", leave=False, disable=not sys.stderr.isatty())
    with bar:
        results = audit(
            *subject[:3], batch_size=FLAGS.batch_size, seed=FLAGS.seed, progress=bar.update, **subject.options
        )
    print(results.to_markdown(), end="")
    place = FLAGS.output or FLAGS.workdir
    if place is not None:
        _write(RunFolder(place), results)


def _of_run(names: Sequence[str]) -> Subject:
    if names:
        raise ValueError(f"Unexpected argument {names[0]!r}: a run is audited on its own images, --split.")
    if FLAGS.model not in (FINAL_MODEL, BEST_MODEL):
        raise ValueError(f"--model must be {FINAL_MODEL} or {BEST_MODEL} of the run, got {FLAGS.model}.")
    run = saved_runs.load_run(pathlib.Path(FLAGS.workdir), FLAGS.model, FLAGS.data_dir)
    datasets = run.datasets
    if datasets.splits[FLAGS.split].size == 0:
        raise ValueError(f"The {FLAGS.split} split of {datasets.name} has no images.")
    preprocess = functools.partial(normalize_images, mean=datasets.mean, std=datasets.std)
    return Subject(run.model, *datasets.some_images(FLAGS.split, FLAGS.images), {"preprocess": preprocess})


def _of_file(names: Sequence[str]) -> Subject:
    if not names:
        raise ValueError("Give --workdir=RUN, or --model=FILE.keras and, after the options, images or folders of them.")
    model = saved_runs.load_model_file(pathlib.Path(FLAGS.model))
    files = find_images(names, recursive=True)
    classes = sorted({file.parent.name for file in files})
    step = max(1, len(files) // FLAGS.images)
    files = files[::step][: FLAGS.images]
    shape = _image_shape(model)
    low, high = _value_range()
    images = low + (high - low) / 255 * np.stack([read_image(file, shape) for file in files]).astype(np.float32)
    labels = None
    if len(classes) == model.output_shape[-1]:
        labels = np.array([classes.index(file.parent.name) for file in files])
    else:
        print(
            f"The images lie in {len(classes)} folder{'s' * (len(classes) != 1)} and the model has "
            f"{model.output_shape[-1]} classes, so the right classes are not known.",
            file=sys.stderr,
        )
    return Subject(model, images, labels, {"value_range": (low, high), "preprocess": _preprocess()})


def _image_shape(model: keras.Model) -> tuple[int, int, int]:
    """(height, width, channels) of the images that a model takes."""
    shape = model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4:
        raise ValueError(f"audit takes models of one image, and {FLAGS.model} takes inputs of shape {shape}.")
    if keras.config.image_data_format() == "channels_first":
        shape = (shape[0], *shape[2:], shape[1])
    height, width = (length or FLAGS.image_size for length in shape[1:3])
    if None in (height, width):
        raise ValueError(f"{FLAGS.model} takes images of any size: give --image_size.")
    return height, width, shape[-1]


def _value_range() -> tuple[float, float]:
    try:
        low, high = map(float, FLAGS.value_range)
    except ValueError as error:
        raise ValueError(
            f"--value_range must be two numbers such as 0,1, got {','.join(FLAGS.value_range)}."
        ) from error
    return low, high


def _preprocess() -> Any:
    if FLAGS.preprocess is None:
        return None
    module = getattr(keras.applications, FLAGS.preprocess, None)
    if not hasattr(module, "preprocess_input"):
        known = [
            name for name in dir(keras.applications) if hasattr(getattr(keras.applications, name), "preprocess_input")
        ]
        raise ValueError(f"--preprocess must be one of {', '.join(known)}, got {FLAGS.preprocess}.")
    return module.preprocess_input


def _write(folder: RunFolder, results: Audit) -> None:
    folder.write_text("audit.json", results.to_json())
    folder.write_text("audit.md", results.to_markdown())
    (folder.path / "figures").mkdir(exist_ok=True)
    folder.write_figure("figures/audit.png", figure_of(json.loads(results.to_json())))
    if folder.is_finished():
        model_card.write_model_card(folder, folder.read_json("summary.json"))
    print(f"\n{folder.path / 'audit.json'}, audit.md and figures/audit.png are written.")


if __name__ == "__main__":
    command_line.run(main, define_flags, takes_arguments=True)
