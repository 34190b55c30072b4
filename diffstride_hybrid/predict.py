r"""Says what the model of a run sees in image files, by its most probable classes.

python -m diffstride_hybrid.predict --workdir=runs/digits_hybrid photo.png
python -m diffstride_hybrid.predict --workdir=runs/digits_hybrid --top=1 --csv=predictions.csv folder_of_images
python -m diffstride_hybrid.predict --workdir=runs/digits_hybrid --recursive folder_of_class_folders
"""

from __future__ import annotations

import functools
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.common.files import rows_as_text, write_whole
from diffstride_hybrid.config import saved_runs
from diffstride_hybrid.config.saved_runs import ImageFormat
from diffstride_hybrid.data.image_files import find_images, read_image
from diffstride_hybrid.data.pixels import normalize_images
from diffstride_hybrid.model_tools.frozen import inference_function

FLAGS = flags.FLAGS

_BATCH = 64

_MANY = 2 * _BATCH
"""For more images than these, compiling the model takes less time than it saves."""


def define_flags() -> None:
    """Defines the options of the command."""
    command_line.workdir_flag()
    command_line.model_flag()
    flags.DEFINE_integer("top", 3, "How many classes to print for an image.", lower_bound=1)
    flags.DEFINE_bool("recursive", False, "Search the folders in a folder too, such as a folder for each class.")
    flags.DEFINE_string("csv", None, "A file to write with the probability of every class, a row an image.")


def main(argv: Sequence[str]) -> None:
    """Reads the images, fits them to the network, and prints a line for each.

    If images lie in folders with the names of classes, the share of them that the model sees as that class is printed.

    Args:
        argv: the name of the command, then files or folders of images.
    """
    if len(argv) < 2:
        raise ValueError("No image was given: name files, or folders of them, after the options.")
    files = find_images(argv[1:], FLAGS.recursive)
    workdir = pathlib.Path(FLAGS.workdir)
    model, loss = saved_runs.load_model(workdir, FLAGS.model)
    image_format = saved_runs.load_image_format(workdir)
    names, rows, hits = image_format.class_names, [], []
    compiles = len(files) > _MANY
    outputs_of = (
        inference_function(model, image_format.image_shape) if compiles else functools.partial(model, training=False)
    )
    for file, values in _predictions(files, _probabilities(outputs_of, loss, image_format), image_format.image_shape):
        best = np.argsort(-values, kind="stable")[: FLAGS.top]
        print(f"{file}: {', '.join(f'{names[label]} {values[label]:.2%}' for label in best)}")
        if (folder := _class_folder(file, names)) is not None:
            hits.append(names[best[0]] == folder)
        rows.append({"file": file, **{name: f"{value:.6f}" for name, value in zip(names, values)}})
    if FLAGS.csv:
        write_whole(pathlib.Path(FLAGS.csv), rows_as_text(["file", *names], rows))
    if hits:
        print(f"accuracy {np.mean(hits):.2%} of {len(hits)} images in folders with the names of classes")
    if len(rows) < len(files):
        raise ValueError(f"{len(files) - len(rows)} of {len(files)} files cannot be read as images.")


def _class_folder(file: pathlib.Path, names: Sequence[str]) -> str | None:
    """The class that the nearest folder of a file is named after, if there is one."""
    return next((folder.name for folder in file.absolute().parents if folder.name in names), None)


def _predictions(
    files: Sequence[pathlib.Path], probabilities: Callable[[np.ndarray], np.ndarray], image_shape: Sequence[int]
) -> Iterator[tuple[pathlib.Path, np.ndarray]]:
    """Gives each file that can be read with the probabilities of its classes, and names the others as errors."""
    for first in range(0, len(files), _BATCH):
        read, images = [], []
        for file in files[first : first + _BATCH]:
            try:
                images.append(read_image(file, image_shape))
                read.append(file)
            except ValueError as error:
                print(f"error: {error}", file=sys.stderr)
        if images:
            yield from zip(read, probabilities(np.stack(images)))


def _probabilities(
    outputs_of: Callable[[tf.Tensor], tf.Tensor], loss: keras.losses.Loss, image_format: ImageFormat
) -> Callable[[np.ndarray], np.ndarray]:
    """Makes the function that takes uint8 images and gives the probability of each class."""

    def probabilities(images: np.ndarray) -> np.ndarray:
        outputs = tf.cast(outputs_of(normalize_images(images, image_format.mean, image_format.std)), tf.float32)
        return (tf.nn.softmax(outputs) if getattr(loss, "from_logits", False) else outputs).numpy()

    return probabilities


if __name__ == "__main__":
    command_line.run(main, define_flags, takes_arguments=True)
