"""Runs a study: every cell of its grid is a training process of its own, with a folder of its own.

python -m experiments.sweep --study=fashion_mnist_small --jobs=2
python -m experiments.sweep --study=cifar10 --dry_run
python -m experiments.sweep --study=cifar10 --shard=1/8

A sweep that is stopped, or killed, goes on where it was when it is started again.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator, Sequence

import tensorflow as tf
from absl import flags

from diffstride_hybrid import command_line
from experiments.studies import costs, fingerprint
from experiments.studies.flags import chosen_study, define_study_flags
from experiments.studies.scheduler import LOG_FILE, Sweep, outcome, progress
from experiments.studies.study import Cell, shard_of

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    define_study_flags()
    flags.DEFINE_integer("jobs", 1, "How many runs at a time. The CPU cores are divided among them.", lower_bound=1)
    flags.DEFINE_string("shard", "1/1", "Which part of the grid, such as 2/8 for the second of eight machines.")
    flags.DEFINE_bool("list", False, "Say what is finished and what is not, and run nothing.")
    flags.DEFINE_bool("dry_run", False, "Say what each run costs in MACs, and run nothing.")
    flags.DEFINE_multi_string(
        "train_flag", [], "A flag for diffstride_hybrid.train, such as --data_dir=/data. May be given again."
    )


def parse_shard(text: str) -> tuple[int, int]:
    """Reads 'i/n'; raises ValueError where it is not that, or i is not from 1 to n."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"--shard must be i/n with i from 1 to n, such as 2/8, got {text!r}.")
    return int(match[1]), int(match[2])


def listing(cells: Sequence[Cell], runs: str, measure: str) -> Iterator[str]:
    """A line for each cell: whether it is finished, and how it ended."""
    for cell in cells:
        if cell.is_finished(runs):
            yield f"finished  {cell.name}  {outcome(cell, runs, measure)}"
        elif cell.folder(runs).exists():
            yield f"begun     {cell.name}  {progress(cell, runs)}".rstrip()
        else:
            yield f"to do     {cell.name}"


def dry_run(cells: Sequence[Cell], runs: str) -> Iterator[str]:
    """A line for each cell: what an image costs, after training where the cell is finished, at the start where not."""
    for cell in cells:
        cost = costs.cell_cost(cell, runs)
        when = "after training" if cell.is_finished(runs) else "at the start"
        yield f"{cell.name}  {cost.macs / 1e9:.3f} G MACs {when}"


def main(argv: Sequence[str]) -> None:
    """Runs, or says what would be run."""
    del argv
    tf.config.set_visible_devices([], "GPU")  # The memory of GPUs is for the trainings.
    study = chosen_study()
    cells = shard_of(study.cells(), *parse_shard(FLAGS.shard))
    for cell in cells:
        fingerprint.check_unchanged(cell, FLAGS.runs)
    if FLAGS.list or FLAGS.dry_run:
        lines = dry_run(cells, FLAGS.runs) if FLAGS.dry_run else listing(cells, FLAGS.runs, study.measure)
        for line in lines:
            print(line, flush=True)
        finished = sum(cell.is_finished(FLAGS.runs) for cell in cells)
        print(f"{study.name}: {study.purpose}")
        print(f"{len(cells)} runs, {finished} finished: {_composition(cells)}")
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    sweep = Sweep(cells, FLAGS.runs, FLAGS.jobs, FLAGS.train_flag, study.measure)
    sweep.run()
    if sweep.broken:
        raise RuntimeError(f"{len(sweep.broken)} of {len(cells)} runs are broken: see {LOG_FILE} in their folders.")
    print(f"all {len(cells)} runs are finished, in {FLAGS.runs}/{study.name}")


def _composition(cells: Sequence[Cell]) -> str:
    matched = sum(cell.reference is not None for cell in cells)
    count = len({cell.method.name for cell in cells if cell.reference is None})
    text = f"{len(cells) - matched} of {count} methods"
    return f"{text}, {matched} of strided convolutions matched to one of them" if matched else text


if __name__ == "__main__":
    command_line.run(main, define_flags)
