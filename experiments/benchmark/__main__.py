"""Times the layers and the training step, side by side in one run.

    python -m experiments.benchmark
    python -m experiments.benchmark --against=PATH

`--against` names a checkout of google-research/diffstride and needs the package tf-keras. Each implementation runs in a
process of its own. The cases of one place take turns, so that a drift of the machine's speed meets all of them alike.
Forward and backward pass are timed together, and ratios compare medians. Memory is the most that TensorFlow holds
during a run beyond inputs and weights, measured in a new process for each case.
"""

from __future__ import annotations

import os
import pathlib
import platform
from collections.abc import Sequence

from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.common.versions import versions_of
from experiments import RESULTS
from experiments.benchmark import cases, report
from experiments.benchmark.driver import measure

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    flags.DEFINE_string("against", None, "A checkout of google-research/diffstride to compare with.")
    flags.DEFINE_list("parts", list(cases.PARTS), f"Parts to measure, separated by commas: {', '.join(cases.PARTS)}.")
    flags.DEFINE_integer("repeats", 9, "How often each case is timed.", lower_bound=1)
    flags.DEFINE_integer("batch", 64, "Batch size.", lower_bound=1)
    flags.DEFINE_string("output", str(RESULTS / "benchmark.csv"), "The CSV file to write, with a figure beside it.")


def main(argv: Sequence[str]) -> None:
    """Measures the cases, prints the tables and writes the CSV file and the figure."""
    del argv
    versions = ", ".join(f"{name} {version}" for name, version in versions_of(("tensorflow", "keras")).items())
    processor = platform.processor() or platform.machine()
    print(f"{versions}, {processor}, {os.cpu_count()} processors and as many threads")
    rows = measure(FLAGS.parts, FLAGS.batch, FLAGS.repeats, FLAGS.against)
    output = pathlib.Path(FLAGS.output)
    report.write(output, rows)
    print(f"\n{report.tables(rows)}\n\nwritten to {output}")


if __name__ == "__main__":
    command_line.run(main, define_flags)
