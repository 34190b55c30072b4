r"""Trains a model as gin files say.

python -m diffstride_hybrid.train --gin_file=digits_hybrid
python -m diffstride_hybrid.train --gin_file=cifar10_hybrid --gin_bindings="train.train.num_epochs = 10"
python -m diffstride_hybrid.train --gin_file=cifar10_hybrid --strategy=tpu --tpu=local
"""

from __future__ import annotations

import difflib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import gin
from absl import app, flags, logging

from diffstride_hybrid import command_line, distribution, gin_registry
from diffstride_hybrid.run_folder import RunFolder

_GIN_FILES = flags.DEFINE_multi_string(
    "gin_file", None, "A gin file: its path, or the name of a shipped one. May be given again.", required=True
)
_GIN_BINDINGS = flags.DEFINE_multi_string(
    "gin_bindings", [], "A binding that overrides the files, such as 'train.train.num_epochs = 3'. May be given again."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run. runs/<name of the last gin file> where not given.")
_SEED = flags.DEFINE_integer(
    "seed", None, "Fixes initial weights, order of the data, augmentation and mixup. As bound, or 1, where not given."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TensorFlow Datasets keeps prepared sets.")
_STRATEGY = flags.DEFINE_enum(
    "strategy",
    distribution.STRATEGIES[0],
    distribution.STRATEGIES,
    "Where to train: one device, all GPUs of this machine, the machines that TF_CONFIG names, or a TPU.",
)
_TPU = flags.DEFINE_string("tpu", None, "Name or address of the TPU, 'local' on its own machine.")


def record_config(folder: RunFolder) -> None:
    """Records the config that a run uses, and warns of unused bindings.

    Args:
        folder: of the run.

    Raises:
        ValueError: it was begun with another config.
        OSError: its config is damaged.
    """
    for binding in gin_registry.unread_bindings():
        logging.warning("%s is bound, but nothing in this run reads it", binding)
    if not folder.writes:
        return
    config = gin.operative_config_str()
    path = folder.path / "operative_config.gin"
    if path.exists():
        try:
            begun_with = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise OSError(f"{path} is damaged: {error}.") from error
        if begun_with != config and config.startswith(begun_with):
            raise OSError(f"{path} is damaged: it is cut off after {len(begun_with):,} characters.")
        lines = difflib.unified_diff(begun_with.splitlines(), config.splitlines(), n=0)
        changed = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
        if changed:
            raise ValueError(f"{folder.path} was begun with another config: {'; '.join(changed)}")
    folder.write_text("operative_config.gin", config)


def main(argv: Sequence[str]) -> None:
    """Parses the flags and the gin files, trains, and prints a summary."""
    del argv
    command_line.keep_freed_memory()
    files = [command_line.find_gin_file(name) for name in _GIN_FILES.value]
    bindings = list(_GIN_BINDINGS.value)
    if _SEED.value is not None:
        bindings.append(f"train.train.seed = {_SEED.value}")
    if _DATA_DIR.value is not None:
        bindings.append(f"data.load_datasets.data_dir = {_DATA_DIR.value!r}")
    gin_registry.parse(files, bindings)
    strategy = distribution.make_strategy(_STRATEGY.value, _TPU.value)
    workdir = _WORKDIR.value or _bound_workdir() or f"runs/{pathlib.Path(files[-1]).stem}"
    with strategy.scope():
        summary = gin_registry.train(workdir=workdir, check_folder=record_config)
    if distribution.is_chief(strategy):
        print(format_summary(summary, workdir))


def format_summary(summary: Mapping[str, Any], workdir: str) -> str:
    """A finished run in a few lines."""
    lines = [
        f"test accuracy {summary['test_accuracy']:.2%} after {summary['epochs']} epochs, {summary['steps']:,} steps, "
        f"{summary['training_seconds']:.0f} s of training",
        f"{summary['parameters']:,} parameters, {summary['macs'] / 1e9:.3f} G MACs an image in convolutions and dense "
        f"layers, {summary['pooling_macs'] / 1e9:.3f} G in poolings",
    ]
    for pooling in summary["poolings"]:
        sizes = " -> ".join(f"{height}x{width}" for height, width in (pooling["input_size"], pooling["output_size"]))
        strides = "  strides {:.3f}, {:.3f}".format(*pooling["strides"]) if pooling["strides"] else ""
        lines.append(f"  {pooling['layer']:<24}  {sizes:<16}{strides}".rstrip())
    return "\n".join([*lines, f"files are in {workdir}"])


def _bound_workdir() -> str | None:
    try:
        return gin.query_parameter("train.train.workdir")
    except ValueError:
        return None


if __name__ == "__main__":
    app.run(command_line.reporting_errors(main))
