"""Times the poolings on TensorFlow, JAX and PyTorch, each in a process of its own: `python -m experiments.frameworks`.

The results are a Markdown table and `experiments/results/frameworks.csv`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence

from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.common.files import rows_as_text, write_whole
from experiments.frameworks import report

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    flags.DEFINE_integer("repeats", 15, "How often each pooling is timed.", lower_bound=1)
    flags.DEFINE_string("csv", str(report.CSV), "The CSV file to write.")


def main(argv: Sequence[str]) -> None:
    """Times every backend that is installed, writes the CSV file and prints the table."""
    del argv
    rows = []
    for backend, name in report.NAMES.items():
        if importlib.util.find_spec(backend) is None:
            print(f"{name} is not installed: its rows are left out.")
            continue
        done = subprocess.run(
            [sys.executable, "-m", "experiments.frameworks.timing", str(FLAGS.repeats)],
            env={**os.environ, "KERAS_BACKEND": backend},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        rows += [json.loads(line) for line in done.stdout.splitlines()]
    write_whole(pathlib.Path(FLAGS.csv), rows_as_text(list(rows[0]), rows))
    print(report.table(rows))


if __name__ == "__main__":
    command_line.run(main, define_flags)
