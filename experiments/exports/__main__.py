"""Exports the model of a run to every format, and runs each export in a fresh environment without this package.

python -m experiments.exports --workdir=runs/fashion_mnist_hybrid

Pip installs each runtime into a virtual environment of its own, from the network. The results are a Markdown table and
`experiments/results/exports.csv`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.common.files import rows_as_text, write_whole
from diffstride_hybrid.config import saved_runs
from diffstride_hybrid.runs.folder import FINAL_MODEL
from experiments.exports import comparison, report

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    command_line.workdir_flag()
    flags.DEFINE_integer("images", 1000, "How many test images to compare on.", lower_bound=1)
    command_line.path_flag("csv", "The CSV file to write.", str(report.CSV))


def main(argv: Sequence[str]) -> None:
    """Compares the exports with the Keras model, writes the CSV file and prints the table."""
    del argv
    workdir = pathlib.Path(FLAGS.workdir)
    run = saved_runs.load_run(workdir, FINAL_MODEL)
    rows = comparison.compared(run, workdir / FINAL_MODEL, FLAGS.images)
    write_whole(pathlib.Path(FLAGS.csv), rows_as_text(report.COLUMNS, rows))
    print(report.table(rows))


if __name__ == "__main__":
    command_line.run(main, define_flags)
