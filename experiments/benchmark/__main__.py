"""Times the layers and the training step, side by side in one run.

    python -m experiments.benchmark
    python -m experiments.benchmark --against=PATH
    python -m experiments.benchmark --device=gpu
    python -m experiments.benchmark --tables_of=experiments/results/engines.csv

`--against` names a checkout of google-research/diffstride and needs the package tf-keras. Each implementation runs in a
process of its own. The cases of one place take turns, so that a drift of the machine's speed meets all of them alike.
Forward and backward pass are timed together, and ratios compare medians. Memory is the most that TensorFlow holds
during a run beyond inputs and weights, measured in a new process for each case.

With `--device=gpu` the same cases run on one card, the layers in both data formats. A timed run has as many passes as
take 20 ms, and ends when the card has ended. Memory is measured in the process that times. The command ends within
`--minutes` and prints what it left out for that. From the times of both engines it fits the constants that
`method="auto"` should have on the device. `--tables_of` makes tables and constants of a CSV file, and measures nothing.
"""

from __future__ import annotations

import os
import pathlib
import platform
from collections.abc import Sequence

# This process computes nothing: what TensorFlow notes of its devices would only surround the tables.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.common.versions import versions_as_text
from experiments import RESULTS, devices
from experiments.benchmark import cases, crossovers, report
from experiments.benchmark.driver import measure

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    command_line.path_flag("against", "A checkout of google-research/diffstride to compare with.")
    flags.DEFINE_list("parts", list(cases.PARTS), f"Parts to measure, separated by commas: {', '.join(cases.PARTS)}.")
    flags.DEFINE_integer("repeats", 9, "How often each case is timed.", lower_bound=1)
    flags.DEFINE_integer("batch", 64, "Batch size.", lower_bound=1)
    command_line.path_flag("output", "The CSV file to write, with a figure beside it. Named after the device if None.")
    command_line.path_flag("tables_of", "Print the tables and constants of this CSV file, and measure nothing.")
    devices.define_device_flags()


def main(argv: Sequence[str]) -> None:
    """Measures the cases, prints the tables and writes the CSV file and the figure."""
    del argv
    if FLAGS.tables_of:
        rows = report.read(pathlib.Path(FLAGS.tables_of))
        print(_tables(rows))
        return
    versions = versions_as_text(("tensorflow", "keras"))
    processor = platform.processor() or platform.machine()
    print(f"{versions}, {processor}, {os.cpu_count()} processors and as many threads")
    seconds = devices.seconds_to_measure(FLAGS.device, FLAGS.minutes)
    measured = measure(FLAGS.parts, FLAGS.batch, FLAGS.repeats, FLAGS.against, FLAGS.device, seconds)
    too_late, failed = "; ".join(measured.too_late), "; ".join(measured.failed)
    if not measured.rows:
        raise RuntimeError(f"Nothing was measured: give more --minutes or fewer --parts. {failed or too_late}.")
    output = pathlib.Path(FLAGS.output or RESULTS / ("benchmark.csv" if FLAGS.device == "cpu" else "benchmark_gpu.csv"))
    report.write(output, measured.rows)
    print(f"\n{_tables(measured.rows)}\n")
    if too_late:
        print(f"no time was left for: {too_late}")
    if failed:
        print(f"failed: {failed}")
    print(f"written to {output}")


def _tables(rows: Sequence[report.Row]) -> str:
    device = rows[0].get("device") or "CPU"
    return "\n\n".join(text for text in (report.tables(rows), crossovers.advice(rows, device)) if text)


if __name__ == "__main__":
    command_line.run(main, define_flags)
