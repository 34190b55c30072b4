"""Times the layers and the training step, side by side in one run.

    python -m experiments.benchmark
    python -m experiments.benchmark --against=PATH

`--against` names a checkout of google-research/diffstride; it needs the package tf-keras. Each implementation runs in a
process of its own. The cases of one place are timed in turn, so that a drift of the machine's speed meets all of them
alike; ratios are between medians. Forward and backward passes are timed together. Memory is what TensorFlow holds at
most during a run beyond inputs and weights, measured in a process for each case.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
from collections.abc import Sequence

from absl import flags, logging

from diffstride_hybrid import command_line
from experiments.benchmark import report
from experiments.benchmark.driver import measure
from experiments.benchmark.worker import build_ours, build_release, work

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    flags.DEFINE_string("against", None, "A checkout of google-research/diffstride to compare with.")
    flags.DEFINE_list("parts", ["layer", "sizes", "step"], "What to measure: layer, sizes, step.")
    flags.DEFINE_integer("repeats", 9, "Timed runs of each case.", lower_bound=1)
    flags.DEFINE_integer("batch", 64, "Batch size.", lower_bound=1)
    flags.DEFINE_string("output", "experiments/results/benchmark.csv", "CSV file to write; a PNG lies beside it.")
    flags.DEFINE_enum("worker", None, ["ours", "release"], "Used by the benchmark itself.")


def main(argv: Sequence[str]) -> None:
    """Measures, prints and writes."""
    del argv
    if FLAGS.worker:
        logging.set_verbosity(logging.ERROR)  # The release's gradient warns of a cast at every trace.
        work(build_ours if FLAGS.worker == "ours" else build_release)
        return
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("tensorflow", "keras"))
    processor = platform.processor() or platform.machine()
    print(f"{versions}, {processor}, {os.cpu_count()} processors and as many threads")
    rows = measure(FLAGS.parts, FLAGS.batch, FLAGS.repeats, FLAGS.against)
    output = pathlib.Path(FLAGS.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    report.write_csv(output, rows)
    report.write_figure(output.with_suffix(".png"), rows)
    print(f"\n{report.markdown(rows)}\n\nwritten to {output}")


if __name__ == "__main__":
    command_line.run(main, define_flags)
