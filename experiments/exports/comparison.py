"""Runs each export of a run in an environment of its own, and compares it with the Keras model."""

from __future__ import annotations

import json
import pathlib
import subprocess
import tempfile
import time
import venv
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from diffstride_hybrid.config import saved_runs
from diffstride_hybrid.model_tools import exporting

EXPORTS = (
    ("saved_model", "float32"),
    ("litert", "float32"),
    ("litert", "float16"),
    ("litert", "int8"),
    ("onnx", "float32"),
)
"""Each export to compare: its format and its precision."""

RUNTIMES = {"saved_model": "tensorflow", "litert": "ai-edge-litert", "onnx": "onnxruntime"}
"""The package that runs each format."""

SCRIPT = pathlib.Path(__file__).with_name("run_export.py")
"""Runs an export without this package."""

CALIBRATION_IMAGES = 200
"""How many training images the int8 export takes to find the ranges of its numbers."""


def fresh_environment(folder: pathlib.Path, package: str) -> pathlib.Path:
    """Makes a virtual environment that holds one package and its requirements.

    Args:
        folder: the folder of the environment, made here.
        package: name of the package to install.

    Returns:
        Path of the environment's Python.

    Raises:
        RuntimeError: the package cannot be installed.
        OSError: the folder cannot be written.
    """
    python = folder / "bin" / "python"
    try:
        venv.create(folder, with_pip=True, symlinks=True)
        command = [str(python), "-m", "pip", "install", "-q", package]
        subprocess.run(command, capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        said = error.stderr or error.output or ""
        said = said.decode(errors="replace") if isinstance(said, bytes) else said
        raise RuntimeError(f"{package} cannot be installed into a fresh environment: {said[-300:]}") from error
    return python


def run_alone(
    python: pathlib.Path, model: pathlib.Path, format: str, images: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Runs an exported model by `run_export.py`.

    Args:
        python: the Python of the environment.
        model: the exported model, as `exporting.export` wrote it.
        format: its format: 'saved_model', 'litert' or 'onnx'.
        images: float32 `[count, height, width, channels]`, normalized as the model takes them.

    Returns:
        The model's outputs for the images, and the record that the script printed.

    Raises:
        RuntimeError: the script failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, outputs = pathlib.Path(folder) / "images.npy", pathlib.Path(folder) / "outputs.npy"
        np.save(given, images)
        # -I keeps packages of this folder and of the caller's variables out of reach.
        command = [str(python), "-I", str(SCRIPT), str(model), format, str(given), str(outputs)]
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{model} does not run in {python}: {result.stderr[-1000:]}")
        return np.load(outputs), json.loads(result.stdout)


def milliseconds_in_keras(model: keras.Model, images: np.ndarray) -> float:
    """Times a compiled Keras model on single images, in the way `run_export.py` times an export.

    Args:
        model: the model.
        images: float32 `[count, height, width, channels]`, normalized as the model takes them.

    Returns:
        The median time for one image, in milliseconds.
    """
    predict = tf.function(lambda image: model(image, training=False), autograph=False, reduce_retracing=True)
    seconds = []
    for i in range(110):
        image = images[i % len(images)][None]
        began = time.perf_counter()
        predict(image).numpy()
        seconds.append(time.perf_counter() - began)
    return 1e3 * float(np.median(seconds[10:]))


def compared(run: saved_runs.Run, saved_model: pathlib.Path, image_count: int) -> list[dict[str, Any]]:
    """Exports a model to every format, and compares each export in a fresh environment with the Keras model.

    Args:
        run: the run whose model to export, in float32.
        saved_model: the `.keras` file of the model.
        image_count: how many test images to compare on, at most.

    Returns:
        The rows of the CSV file, with the columns `report.COLUMNS`. The first row is that of the Keras model.

    Raises:
        RuntimeError: an environment cannot be made, is not isolated, or does not run an export.
    """
    images, labels = run.datasets.first_images("test", image_count)
    calibration, _ = run.datasets.first_images("train", CALIBRATION_IMAGES)
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
            _check_isolation(package, record)
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


def _check_isolation(package: str, record: Mapping[str, Any]) -> None:
    """Raises RuntimeError if more was at hand than the runtime, by the record that `run_export.py` printed."""
    needed = ["keras", "tensorflow"] if package == "tensorflow" else []
    if record["installed"] or record["loaded"] != needed:
        raise RuntimeError(f"The environment of {package} is not isolated: {record}.")
