r"""Exports the model of a run to a format that runs without this package, and checks it on the run's test images.

python -m diffstride_hybrid.export --workdir=runs/digits_hybrid --format=litert --output=digits.tflite
python -m diffstride_hybrid.export --workdir=runs/digits_hybrid --format=onnx --output=digits.onnx
python -m diffstride_hybrid.export --workdir=runs/digits_hybrid --format=litert --quantization=int8 --output=int8.tflite
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import app, flags

from diffstride_hybrid import command_line, exporting, run_loading, training

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_MODEL = flags.DEFINE_enum(
    "model", training.FINAL_MODEL, [training.FINAL_MODEL, training.BEST_MODEL], "Which of the run's models."
)
_FORMAT = flags.DEFINE_enum("format", None, exporting.FORMATS, "The format to write.", required=True)
_QUANTIZATION = flags.DEFINE_enum(
    "quantization",
    exporting.QUANTIZATIONS[0],
    exporting.QUANTIZATIONS,
    "For litert: float16 keeps the weights in half precision, int8 computes in whole numbers.",
)
_OUTPUT = flags.DEFINE_string("output", None, "What to write: a folder for saved_model, else a file.", required=True)
_IMAGES = flags.DEFINE_integer("images", 1000, "How many test images to check with.", lower_bound=1)
_CALIBRATION_IMAGES = flags.DEFINE_integer(
    "calibration_images", 200, "How many training images set the ranges of int8.", lower_bound=1
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where TensorFlow Datasets keeps prepared sets, if not as in the run."
)


def main(argv: Sequence[str]) -> None:
    """Exports, runs both models on the same images, and says how they compare."""
    del argv
    workdir, output = pathlib.Path(_WORKDIR.value), pathlib.Path(_OUTPUT.value)
    run = run_loading.load_run(workdir, _MODEL.value, _DATA_DIR.value)
    calibration = None
    if _QUANTIZATION.value == "int8":
        calibration, _ = run_loading.first_images(run.datasets, "train", _CALIBRATION_IMAGES.value)
    exporting.export(run.model, output, _FORMAT.value, run.datasets.image_shape, _QUANTIZATION.value, calibration)
    images, labels = run_loading.first_images(run.datasets, "test", _IMAGES.value)
    result = exporting.compare(run.model, output, _FORMAT.value, images, labels)
    print(
        f"on {result.images:,} test images: largest difference {result.largest_difference:.1e}, accuracy "
        f"{result.accuracy:.2%}, of the Keras model {result.keras_accuracy:.2%}"
    )
    print(f"{result.size_bytes / 1e6:.2f} MB, {result.milliseconds:.2f} ms for an image on this machine's CPU")
    mean, std = (", ".join(f"{value:.4f}" for value in values) for values in (run.datasets.mean, run.datasets.std))
    print(f"inputs are images scaled to 0..1, less {mean}, over {std}")
    print(f"saved {output}")


if __name__ == "__main__":
    app.run(command_line.reporting_errors(main))
