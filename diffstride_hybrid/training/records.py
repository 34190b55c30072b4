"""What a run writes about itself: `run.json` and `summary.json`."""

from __future__ import annotations

import importlib.metadata
import pathlib
import platform
import subprocess
import sys
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.common import distribution
from diffstride_hybrid.model_tools.inspection import strides_by_path
from diffstride_hybrid.model_tools.macs import macs
from diffstride_hybrid.training.loop import TrainingLoop
from diffstride_hybrid.training.progress import Progress


def run_record(loop: TrainingLoop, seed: int) -> dict[str, Any]:
    model, datasets = loop.model, loop.datasets
    packages = ("diffstride_hybrid", "tensorflow", "keras", "numpy", "tensorflow-datasets")
    return {
        "seed": seed,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "commit": _commit(),
        "command": sys.argv,
        "devices": [device.name for device in tf.config.list_logical_devices()],
        "strategy": distribution.strategy_name(loop.strategy),
        "replicas": loop.strategy.num_replicas_in_sync,
        "workers": distribution.worker_count(loop.strategy),
        "jit_compile": loop.jit_compile,
        "dtype_policy": model.dtype_policy.name,
        "parameters": model.count_params(),
        "macs": macs(model, datasets.image_shape).macs,
        "data": {
            "name": datasets.name,
            "image_shape": datasets.image_shape,
            "class_names": datasets.class_names,
            "mean": datasets.mean,
            "std": datasets.std,
            "split_sizes": {name: split.size for name, split in datasets.splits.items()},
        },
    }


def summarize(loop: TrainingLoop, num_epochs: int, progress: Progress) -> dict[str, Any]:
    model, datasets = loop.model, loop.datasets
    test = loop.evaluate("test")
    cost = macs(model, datasets.image_shape)
    strides = strides_by_path(model)
    return {
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "best_validation_accuracy": progress.best_accuracy,
        "epochs": num_epochs,
        "steps": keras.ops.convert_to_numpy(loop.optimizer.iterations).item(),
        "training_seconds": round(progress.training_seconds, 1),
        "retraces": progress.retraces,
        "parameters": model.count_params(),
        "macs": cost.macs,
        "pooling_macs": cost.pooling_macs,
        "poolings": [
            {
                "layer": path.removeprefix(f"{model.name}/"),
                "strides": strides.get(path),
                "input_size": list(input_size),
                "output_size": list(output_size),
            }
            for path, (input_size, output_size) in cost.pooling_sizes().items()
        ],
    }


def _commit() -> str | None:
    """The commit of the checkout that the package runs from, None where it is installed."""
    package = pathlib.Path(__file__).parents[1]
    changed = ("status", "--porcelain", "--untracked-files=no", "--", ".", "../gin_configs")
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(package), *command], capture_output=True, text=True, check=True).stdout
            for command in (("rev-parse", "HEAD"), changed)
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head.strip()}-dirty" if changes.strip() else head.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
