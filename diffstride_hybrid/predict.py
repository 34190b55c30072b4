r"""Says what the model of a run sees in image files, by its most probable classes.

python -m diffstride_hybrid.predict --workdir=runs/digits_hybrid photo.png
python -m diffstride_hybrid.predict --workdir=runs/digits_hybrid --top=1 --csv=predictions.csv folder_of_images
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.common.files import rows_as_text, write_whole
from diffstride_hybrid.config import saved_runs
from diffstride_hybrid.data.images import find_images, normalised, read_image

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    command_line.workdir_flag()
    command_line.model_flag()
    flags.DEFINE_integer("top", 3, "How many classes to print for an image.", lower_bound=1)
    flags.DEFINE_string("csv", None, "A file to write with the probability of every class, a row an image.")


_BATCH = 64


def main(argv: Sequence[str]) -> None:
    """Reads the images, fits them to the network, and prints a line for each."""
    if len(argv) < 2:
        raise ValueError("No image was given: name files, or folders of them, after the options.")
    files = find_images(argv[1:])
    workdir = pathlib.Path(FLAGS.workdir)
    model, loss = saved_runs.load_model(workdir, FLAGS.model)
    record = json.loads((workdir / "run.json").read_text(encoding="utf-8"))["data"]
    names, rows, unread = record["class_names"], [], 0
    for first in range(0, len(files), _BATCH):
        read, images = [], []
        for file in files[first : first + _BATCH]:
            try:
                images.append(read_image(file, record["image_shape"]))
                read.append(file)
            except ValueError as error:
                print(f"error: {error}", file=sys.stderr)
                unread += 1
        if not read:
            continue
        outputs = model(normalised(np.stack(images), record["mean"], record["std"]), training=False)
        outputs = tf.cast(outputs, tf.float32)
        probabilities = (tf.nn.softmax(outputs) if getattr(loss, "from_logits", False) else outputs).numpy()
        for file, values in zip(read, probabilities):
            best = np.argsort(-values, kind="stable")[: FLAGS.top]
            print(f"{file}: {', '.join(f'{names[label]} {values[label]:.2%}' for label in best)}")
            rows.append({"file": file, **{name: f"{value:.6f}" for name, value in zip(names, values)}})
    if FLAGS.csv:
        write_whole(pathlib.Path(FLAGS.csv), rows_as_text(["file", *names], rows))
    if unread:
        raise ValueError(f"{unread} of {len(files)} files cannot be read as images.")


if __name__ == "__main__":
    command_line.run(main, define_flags, takes_arguments=True)
