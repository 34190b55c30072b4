"""Trains a model as gin files say.

python -m diffstride_hybrid.train --gin_file=digits_hybrid
python -m diffstride_hybrid.train --gin_file=cifar10_hybrid --gin_bindings="train.train.num_epochs = 10"
python -m diffstride_hybrid.train --gin_file=cifar10_hybrid --strategy=tpu --tpu=local
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.common import distribution
from diffstride_hybrid.config import gin_files, gin_names
from diffstride_hybrid.config.saved_runs import record_config

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    command_line.gin_flags()
    command_line.path_flag("workdir", "Folder of the run. If not given, runs/<name of the last gin file>.")
    flags.DEFINE_integer(
        "seed",
        None,
        "Fixes initial weights, order of the data, augmentation and mixup. If not given, the bound seed, or 1.",
    )
    command_line.data_dir_flag()
    command_line.strategy_flags()


def main(argv: Sequence[str]) -> None:
    """Parses the flags and the gin files, trains, and prints a summary.

    Args:
        argv: the name of the command.
    """
    del argv
    command_line.keep_freed_memory()
    files = [gin_files.find_gin_file(name) for name in FLAGS.gin_file]
    gin_files.parse(files, [*FLAGS.gin_bindings, *_bindings_of_flags()])
    strategy = distribution.make_strategy(FLAGS.strategy, FLAGS.tpu)
    workdir = FLAGS.workdir or gin_names.bound_workdir() or f"runs/{pathlib.Path(files[-1]).stem}"
    with strategy.scope():
        summary = gin_names.configured_train(workdir=workdir, check_folder=record_config)
    if distribution.is_chief(strategy):
        print(format_summary(summary, workdir))


def format_summary(summary: Mapping[str, Any], workdir: str) -> str:
    """Describes a finished run in a few lines.

    Args:
        summary: what `training.run.train` returns and writes into summary.json.
        workdir: folder of the run.

    Returns:
        Accuracy, cost, the size of each pooling's maps and its strides, and the folder.
    """
    lines = [
        f"test accuracy {summary['test_accuracy']:.2%} after {summary['epochs']} epochs, {summary['steps']:,} steps, "
        f"{summary['training_seconds']:.0f} s of training",
        f"{summary['parameters']:,} parameters, {summary['macs'] / 1e9:.3f} G MACs an image in convolutions and dense "
        f"layers, {summary['pooling_macs'] / 1e9:.3f} G in poolings",
    ]
    for pooling in summary["poolings"]:
        sizes = " -> ".join(f"{height}x{width}" for height, width in (pooling["input_size"], pooling["output_size"]))
        strides = ", ".join(f"{stride:.3f}" for stride in pooling["strides"] or ())
        strides = f"  strides {strides}" if strides else ""
        lines.append(f"  {pooling['layer']:<24}  {sizes:<16}{strides}".rstrip())
    return "\n".join([*lines, f"files are in {workdir}"])


def _bindings_of_flags() -> list[str]:
    bindings = []
    if FLAGS.seed is not None:
        bindings.append(f"train.train.seed = {FLAGS.seed}")
    if FLAGS.data_dir is not None:
        bindings.append(f"data.load_datasets.data_dir = {FLAGS.data_dir!r}")
    return bindings


if __name__ == "__main__":
    command_line.run(main, define_flags)
