r"""Exports the model of a run to a format that runs without this package, and checks it on the run's test images.

python -m diffstride_hybrid.export --workdir=runs/digits_hybrid --format=litert --output=digits.tflite
python -m diffstride_hybrid.export --workdir=runs/digits_hybrid --format=onnx --output=digits.onnx
python -m diffstride_hybrid.export --workdir=runs/digits_hybrid --format=litert --quantization=int8 --output=int8.tflite
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.config import saved_runs
from diffstride_hybrid.model_tools import exporting

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    command_line.workdir_flag()
    command_line.model_flag()
    flags.DEFINE_enum("format", None, exporting.FORMATS, "The format to write.", required=True)
    flags.DEFINE_enum(
        "quantization",
        exporting.QUANTIZATIONS[0],
        exporting.QUANTIZATIONS,
        "For litert: float16 keeps the weights in half precision, int8 computes in whole numbers.",
    )
    command_line.path_flag("output", "What to write: a folder for saved_model, else a file.", required=True)
    flags.DEFINE_integer("images", 1000, "How many test images to check with.", lower_bound=1)
    flags.DEFINE_integer("calibration_images", 200, "How many training images set the ranges of int8.", lower_bound=1)
    command_line.data_dir_flag("As in the run if not given.")


def main(argv: Sequence[str]) -> None:
    """Exports, runs both models on the same images, and says how they compare.

    Args:
        argv: the name of the command.
    """
    del argv
    exporting.check_installed(FLAGS.format)
    output = pathlib.Path(FLAGS.output)
    exporting.check_request(output, FLAGS.format, FLAGS.quantization)
    model, datasets, _ = saved_runs.load_run(pathlib.Path(FLAGS.workdir), FLAGS.model, FLAGS.data_dir)
    calibration = None
    if FLAGS.quantization == "int8":
        calibration, _ = datasets.first_images("train", FLAGS.calibration_images)
    exporting.export(model, output, FLAGS.format, datasets.image_shape, FLAGS.quantization, calibration)
    images, labels = datasets.some_inputs("test", FLAGS.images)
    result = exporting.compare(model, output, FLAGS.format, images, labels)
    print(
        f"on {result.images:,} test images: largest difference {result.largest_difference:.1e}, accuracy "
        f"{result.accuracy:.2%}, of the Keras model {result.keras_accuracy:.2%}"
    )
    print(f"{result.size_bytes / 1e6:.2f} MB, {result.milliseconds:.2f} ms for an image on this machine's CPU")
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (datasets.mean, datasets.std))
    print(f"inputs are images scaled to 0..1, less {mean}, over {std}")
    print(f"saved {output}")


if __name__ == "__main__":
    command_line.run(main, define_flags)
