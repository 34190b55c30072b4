"""Each export of a run beside its Keras model, in an environment of its own."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from diffstride_hybrid.config import saved_runs
from diffstride_hybrid.data import datasets
from diffstride_hybrid.model_tools import exporting

EXPORTS = (
    ("saved_model", "float32"),
    ("litert", "float32"),
    ("litert", "float16"),
    ("litert", "int8"),
    ("onnx", "float32"),
)

RUNTIMES = {"saved_model": "tensorflow", "litert": "ai-edge-litert", "onnx": "onnxruntime"}

SCRIPT = pathlib.Path(__file__).with_name("run_export.py")

CALIBRATION_IMAGES = 200


def fresh_environment(folder: pathlib.Path, package: str) -> pathlib.Path:
    """Makes a virtual environment with one package and what that needs.

    Args:
        folder: where to make it.
        package: to install.

    Returns:
        Its Python.

    Raises:
        RuntimeError: the package cannot be installed.
    """
    python = folder / "bin" / "python"
    for command in ([sys.executable, "-m", "venv", folder], [python, "-m", "pip", "install", "-q", package]):
        result = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{package} cannot be installed into a fresh environment: {result.stderr[-300:]}")
    return python


def run_alone(
    python: pathlib.Path, model: pathlib.Path, format: str, images: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Runs an exported model by `run_export.py`.

    Args:
        python: of the environment.
        model: what `exporting.export` has written.
        format: of it.
        images: normalised, `[images, height, width, channels]`.

    Returns:
        What the model gives, and what the script says.

    Raises:
        RuntimeError: the script failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, outputs = pathlib.Path(folder) / "images.npy", pathlib.Path(folder) / "outputs.npy"
        np.save(given, images)
        # Isolated, so that neither this folder nor the caller's variables lend it any package.
        command = [str(python), "-I", str(SCRIPT), str(model), format, str(given), str(outputs)]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{model} does not run in {python}: {result.stderr[-1000:]}")
        return np.load(outputs), json.loads(result.stdout)


def milliseconds_in_keras(model: keras.Model, images: np.ndarray) -> float:
    """The median time for one image by the Keras model, compiled, measured as `run_export.py` does."""
    predict = tf.function(lambda image: model(image, training=False), autograph=False, reduce_retracing=True)
    seconds = []
    for i in range(110):
        image = images[i % len(images)][None]
        began = time.perf_counter()
        predict(image).numpy()
        seconds.append(time.perf_counter() - began)
    return 1e3 * float(np.median(seconds[10:]))


def compared(run: saved_runs.Run, saved_model: pathlib.Path, image_count: int) -> list[dict[str, Any]]:
    """Exports a model to every format, and compares what each gives in a fresh environment with what Keras gives.

    Args:
        run: whose model to export, in float32.
        saved_model: its `.keras` file.
        image_count: how many test images to compare on.

    Returns:
        The rows of the CSV file, the first one for the Keras model.
    """
    images, labels = datasets.first_images(run.datasets, "test", image_count)
    calibration, _ = datasets.first_images(run.datasets, "train", CALIBRATION_IMAGES)
    expected = exporting.outputs_of(run.model, images)
    shared = {"run": saved_model.parent.name, "images": len(images)}
    rows = [
        {
            "format": "keras",
            "precision": run.model.dtype_policy.name,
            "runtime": f"tensorflow {tf.__version__}",
            "largest_difference": "",
            "accuracy": f"{exporting.accuracy(expected, labels):.5f}",
            "size_bytes": saved_model.stat().st_size,
            "milliseconds": f"{milliseconds_in_keras(run.model, images):.3f}",
            **shared,
        }
    ]
    pythons: dict[str, pathlib.Path] = {}
    with tempfile.TemporaryDirectory() as folder:
        for format, precision in EXPORTS:
            package = RUNTIMES[format]
            if package not in pythons:
                pythons[package] = fresh_environment(pathlib.Path(folder) / package, package)
            path = pathlib.Path(folder) / f"{format}_{precision}"
            exporting.export(run.model, path, format, run.datasets.image_shape, precision, calibration)
            outputs, record = run_alone(pythons[package], path, format, images)
            needed = ["keras", "tensorflow"] if package == "tensorflow" else []
            if record["installed"] or record["loaded"] != needed:
                raise RuntimeError(f"The environment of {package} is not alone: {record}.")
            rows.append(
                {
                    "format": format,
                    "precision": precision,
                    "runtime": record["runtime"],
                    "largest_difference": f"{np.abs(outputs - expected).max():.3e}",
                    "accuracy": f"{exporting.accuracy(outputs, labels):.5f}",
                    "size_bytes": exporting.size_of(path),
                    "milliseconds": f"{record['milliseconds']:.3f}",
                    **shared,
                }
            )
    return rows
