r"""Says what the model of a run sees in image files, by its most probable classes.

python -m diffstride_hybrid.predict --workdir=runs/digits_hybrid photo.png
python -m diffstride_hybrid.predict --workdir=runs/digits_hybrid --top=1 --csv=predictions.csv folder_of_images
python -m diffstride_hybrid.predict --workdir=runs/digits_hybrid --recursive folder_of_class_folders
"""

from __future__ import annotations

import contextlib
import csv
import functools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.common.files import whole_file
from diffstride_hybrid.common.printing import printable
from diffstride_hybrid.config import saved_runs
from diffstride_hybrid.config.saved_runs import ImageFormat
from diffstride_hybrid.data.folder_layout import is_split_name
from diffstride_hybrid.data.image_files import find_images, read_image
from diffstride_hybrid.data.pixels import normalize_images
from diffstride_hybrid.model_tools.frozen import inference_function
from diffstride_hybrid.training.checks import OF_EACH_CLASS

FLAGS = flags.FLAGS

_BATCH = 64

_MANY = 2 * _BATCH
"""For more images than these, compiling the model takes less time than it saves."""

_ROUNDING = 1e-6
"""By how much a probability may exceed 1."""


def define_flags() -> None:
    """Defines the options of the command."""
    command_line.workdir_flag()
    command_line.model_flag()
    flags.DEFINE_integer("top", 3, "How many classes to print for an image.", lower_bound=1)
    flags.DEFINE_bool("recursive", False, "Search the folders in a folder too, such as a folder for each class.")
    command_line.path_flag("csv", "A file to write with the probability of every class, a row an image.")


def main(argv: Sequence[str]) -> None:
    """Reads the images, fits them to the network, and prints a line for each.

    If images lie in folders with the names of classes, below a folder that is given, the share of them that the model
    sees as that class is printed. Outputs that are no probabilities are printed as they are, after a warning.

    Args:
        argv: the name of the command, then files or folders of images.
    """
    if len(argv) < 2:
        raise ValueError("No image was given: name files, or folders of them, after the options.")
    images = [(file, pathlib.Path(name)) for name in argv[1:] for file in find_images([name], FLAGS.recursive)]
    workdir = pathlib.Path(FLAGS.workdir)
    model, loss = saved_runs.load_model(workdir, FLAGS.model)
    image_format = saved_runs.load_image_format(workdir)
    names, read, hits, warned = image_format.class_names, 0, [], False
    compiles = len(images) > _MANY
    outputs_of = (
        inference_function(model, image_format.image_shape) if compiles else functools.partial(model, training=False)
    )
    probabilities = _probabilities(outputs_of, loss, image_format)
    with _table(FLAGS.csv, names) as write_row:
        for (file, named), values in _predictions(images, probabilities, image_format.image_shape):
            read += 1
            write_row([str(file), *(f"{value:.6f}" for value in values)])
            best = np.argsort(-values, kind="stable")[: FLAGS.top]
            if not (warned or _are_probabilities(values)):
                _warn_of_outputs(file, values)
                warned = True
            # The table does not depend on who reads the lines.
            with contextlib.suppress(BrokenPipeError) if FLAGS.csv else contextlib.nullcontext():
                print(printable(f"{file}: {_listed(values, best, names, '.4f' if warned else '.2%')}"))
            if (folder := _class_folder(file, named, names)) is not None:
                hits.append(names[best[0]] == folder)
    if hits:
        print(f"accuracy {np.mean(hits):.2%} of {len(hits)} images in folders with the names of classes")
    if read < len(images):
        raise ValueError(f"{len(images) - read} of {len(images)} files cannot be read as images.")


def _are_probabilities(values: np.ndarray) -> bool:
    """Whether the outputs for an image can be probabilities. Those of a network that is trained on squares need not."""
    return bool(((values >= 0) & (values <= 1 + _ROUNDING)).all())


def _warn_of_outputs(file: pathlib.Path, values: np.ndarray) -> None:
    with contextlib.suppress(BrokenPipeError):
        print(
            f"warning: the outputs of {FLAGS.model} are no probabilities: for {file} they go from {values.min():g} to "
            f"{values.max():g}. They are given as they are.",
            file=sys.stderr,
        )


def _listed(values: np.ndarray, labels: Sequence[int], names: Sequence[str], form: str) -> str:
    """Classes and their values in one form."""
    return ", ".join(f"{names[label]} {values[label]:{form}}" for label in labels)


def _class_folder(file: pathlib.Path, named: pathlib.Path, names: Sequence[str]) -> str | None:
    """The class that a folder of a file is named after, no higher than the folder that the user named.

    As in training, the highest such folder below the named one counts, and the named one if there is none. A folder
    such as 'train' is passed over if one below it is that of a class. Of a file that the user named itself, the folder
    that it lies in counts alone.
    """
    highest = file.parent if file == named else named
    below = [folder.name for folder in reversed(file.relative_to(highest).parents) if folder.name in names]
    if len(below) > 1 and is_split_name(below[0]):
        return below[1]
    return next((name for name in (*below, highest.absolute().name) if name in names), None)


@contextlib.contextmanager
def _table(path: str | None, names: Sequence[str]) -> Iterator[Callable[[Sequence[str]], Any]]:
    """A context with a function that writes a row of a CSV file, or does nothing if there is no path."""
    if path is None:
        yield lambda row: None
        return
    with (
        whole_file(pathlib.Path(path)) as partial,
        partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", *names])
        yield writer.writerow


def _predictions(
    images: Sequence[tuple[pathlib.Path, pathlib.Path]],
    probabilities: Callable[[np.ndarray], np.ndarray],
    image_shape: Sequence[int],
) -> Iterator[tuple[tuple[pathlib.Path, pathlib.Path], np.ndarray]]:
    """Gives each image that can be read with the probabilities of its classes, and names the others as errors.

    An image is a file, and the file or folder that the user named.
    """
    for first in range(0, len(images), _BATCH):
        read, pixels = [], []
        for file, named in images[first : first + _BATCH]:
            try:
                pixels.append(read_image(file, image_shape))
                read.append((file, named))
            except ValueError as error:
                with contextlib.suppress(BrokenPipeError):
                    print(f"error: {error}", file=sys.stderr)
        if pixels:
            yield from zip(read, probabilities(np.stack(pixels)))


def _probabilities(
    outputs_of: Callable[[tf.Tensor], tf.Tensor], loss: keras.losses.Loss, image_format: ImageFormat
) -> Callable[[np.ndarray], np.ndarray]:
    """Makes the function that takes uint8 images and gives the probability of each class.

    A loss that takes logits says what makes them probabilities. Outputs for another loss are left as they are.
    """
    takes_logits = getattr(loss, "from_logits", False)
    activation = tf.nn.sigmoid if isinstance(loss, OF_EACH_CLASS) else tf.nn.softmax

    def probabilities(images: np.ndarray) -> np.ndarray:
        outputs = tf.cast(outputs_of(normalize_images(images, image_format.mean, image_format.std)), tf.float32)
        return (activation(outputs) if takes_logits else outputs).numpy()

    return probabilities


if __name__ == "__main__":
    command_line.run(main, define_flags, takes_arguments=True)
