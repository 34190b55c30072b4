"""Runs a study: each cell of its grid is a training process with a folder of its own.

python -m experiments.sweep --study=fashion_mnist_small --jobs=2
python -m experiments.sweep --study=cifar10 --dry_run
python -m experiments.sweep --study=cifar10 --shard=1/8

A sweep that was stopped or killed continues where it was when it is started again.
"""

from __future__ import annotations

import pathlib
import re
import signal
import sys
from collections.abc import Collection, Iterator, Sequence

import tensorflow as tf
from absl import flags

from diffstride_hybrid import command_line
from experiments.studies import costs, fingerprint, records
from experiments.studies.flags import chosen_study, define_study_flags
from experiments.studies.scheduler import LOG_FILE, Sweep, outcome, progress
from experiments.studies.study import Cell, shard_of

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    define_study_flags()
    flags.DEFINE_integer("jobs", 1, "How many runs train at a time. They share the CPU cores evenly.", lower_bound=1)
    flags.DEFINE_string("shard", "1/1", "Which part of the grid to run, such as 2/8 on the second of eight machines.")
    flags.DEFINE_bool(
        "skip_recorded", False, "Do not run what the CSV file of the study has already, from another machine or day."
    )
    flags.DEFINE_bool("list", False, "Print which runs are finished, and run nothing.")
    flags.DEFINE_bool("dry_run", False, "Print the MACs of each run, and run nothing.")
    flags.DEFINE_multi_string(
        "train_flag", [], "A flag for diffstride_hybrid.train, such as --data_dir=/data. Repeat it for more flags."
    )


def parse_shard(text: str) -> tuple[int, int]:
    """Reads a shard.

    Args:
        text: 'i/n', with i from 1 to n.

    Returns:
        i and n.

    Raises:
        ValueError: the text is something else.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"--shard must be i/n with i from 1 to n, such as 2/8, got {text!r}.")
    return int(match[1]), int(match[2])


def listing(cells: Sequence[Cell], runs: str, measure: str, recorded: Collection[Cell] = ()) -> Iterator[str]:
    """Lists how far each cell has come.

    Args:
        cells: of a study.
        runs: the folder that holds a folder for each study.
        measure: which accuracy of a finished run to show, that on the 'test' or on the 'validation' images.
        recorded: cells whose rows are in the CSV file, so that they are not to be run.

    Yields:
        A line for each cell.
    """
    for cell in cells:
        if cell.is_finished(runs):
            yield f"finished  {cell.name}  {outcome(cell, runs, measure)}"
        elif cell in recorded:
            yield f"recorded  {cell.name}"
        elif cell.folder(runs).exists():
            yield f"begun     {cell.name}  {progress(cell, runs)}".rstrip()
        else:
            yield f"to do     {cell.name}"


def dry_run(cells: Sequence[Cell], runs: str) -> Iterator[str]:
    """Lists what an image costs in each cell: after training if the cell is finished, else before it.

    Args:
        cells: of a study.
        runs: the folder that holds a folder for each study.

    Yields:
        A line for each cell.
    """
    for cell in cells:
        cost = costs.cell_cost(cell, runs)
        when = "after training" if cell.is_finished(runs) else "at the start"
        yield f"{cell.name}  {cost.macs / 1e9:.3f} G MACs {when}"


def main(argv: Sequence[str]) -> None:
    """Runs the cells of the shard, or lists them."""
    del argv
    tf.config.set_visible_devices([], "GPU")  # The trainings need the GPU memory.
    study = chosen_study()
    if study.timed and FLAGS.jobs > 1:
        raise ValueError(f"{study.name} reports how long each run trains, so --jobs must be 1, got {FLAGS.jobs}.")
    cells = shard_of(study.cells(), *parse_shard(FLAGS.shard))
    recorded = records.recorded_costs(study, pathlib.Path(FLAGS.results)) if FLAGS.skip_recorded else {}
    for cell in cells:
        fingerprint.check_unchanged(cell, FLAGS.runs, recorded)
    if FLAGS.list or FLAGS.dry_run:
        lines = dry_run(cells, FLAGS.runs) if FLAGS.dry_run else listing(cells, FLAGS.runs, study.measure, recorded)
        for line in lines:
            print(line, flush=True)
        finished = sum(cell.is_finished(FLAGS.runs) for cell in cells)
        print(f"{study.name}: {study.purpose}")
        print(f"{len(cells)} runs, {finished} finished: {_composition(cells)}")
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    sweep = Sweep(cells, FLAGS.runs, FLAGS.jobs, FLAGS.train_flag, study.measure, recorded)
    sweep.run()
    if sweep.broken:
        raise RuntimeError(f"{len(sweep.broken)} of {len(cells)} runs are broken: see {LOG_FILE} in their folders.")
    elsewhere = sum(cell in recorded and not cell.is_finished(FLAGS.runs) for cell in cells)
    known = f", and {elsewhere} of them recorded in {FLAGS.results}" if elsewhere else ""
    print(f"all {len(cells)} runs are finished, in {FLAGS.runs}/{study.name}{known}")


def _composition(cells: Sequence[Cell]) -> str:
    matched = sum(cell.reference is not None for cell in cells)
    count = len({cell.method.name for cell in cells if cell.reference is None})
    text = f"{len(cells) - matched} of {count} methods"
    return f"{text}, {matched} matched to one of them" if matched else text


if __name__ == "__main__":
    command_line.run(main, define_flags)
