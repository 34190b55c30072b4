"""Times the way from a training command to its first finished step, by parts.

    python -m experiments.first_step
    python -m experiments.first_step --against=../before

`--against` names a checkout of another version. Its runs and those of this version take turns, so that a drift of the
machine's speed meets both alike. The results are a Markdown table and `experiments/results/first_step.csv`.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.common.files import rows_as_text, write_whole
from experiments import RESULTS
from experiments.first_step import process, report

FLAGS = flags.FLAGS

NETWORKS: dict[str, tuple[str, ...]] = {
    "digits, width 8": ("--gin_file=digits_hybrid",),
    "CIFAR-10, width 16": (
        "--gin_file=cifar10_hybrid",
        "--gin_bindings=resnet.resnet18.width = 16",
        "--gin_bindings=data.load_datasets.batch_size = 32",
    ),
}
"""The options of the training command for each network."""

ONE_STEP = "--gin_bindings=train.train.steps_per_execution = 1"


def define_flags() -> None:
    """Defines the options of the command."""
    command_line.path_flag("against", "A checkout of another version to compare with.")
    flags.DEFINE_list("networks", ["digits", "CIFAR-10"], "What to train: digits, CIFAR-10. CIFAR-10 must be prepared.")
    flags.DEFINE_integer("repeats", 5, "How often each network is started.", lower_bound=1)
    command_line.path_flag("csv", "The CSV file to write.", str(RESULTS / "first_step.csv"))


def main(argv: Sequence[str]) -> None:
    """Times the networks, writes the CSV file and prints the table."""
    del argv
    networks = [name for name in NETWORKS if name.split(",")[0] in FLAGS.networks]
    if len(networks) != len(FLAGS.networks):
        raise ValueError(f"--networks must name some of digits, CIFAR-10, got {','.join(FLAGS.networks)}.")
    checkouts = {"this version": os.getcwd()}
    if FLAGS.against is not None:
        if not pathlib.Path(FLAGS.against, "diffstride_hybrid", "training", "loop.py").is_file():
            raise ValueError(f"--against must be a checkout of diffstride_hybrid, got {FLAGS.against!r}.")
        checkouts["before"] = FLAGS.against
    rows = []
    for network in networks:
        for repeat in range(1, FLAGS.repeats + 1):
            for version, checkout in checkouts.items():
                parts = time_of_parts(checkout, NETWORKS[network])
                rows.append({"network": network, "version": version, "repeat": repeat, **parts})
                print(report.line(rows[-1]), flush=True)
    write_whole(pathlib.Path(FLAGS.csv), rows_as_text(list(rows[0]), rows))
    print(report.table(rows))


def time_of_parts(checkout: str, options: Sequence[str]) -> dict[str, Any]:
    """Starts a training in a new process and times its parts.

    Args:
        checkout: the folder whose package trains.
        options: of the training command.

    Returns:
        Seconds of each part of `report.PARTS`, of which tracing is one of the first step; seconds of the second step
        and of all until the first step was finished; and the operations of the step's graph.

    Raises:
        RuntimeError: the process failed. Its last line of output is in the message.
    """
    environment = {**os.environ, "FIRST_STEP_BEGAN": str(time.time()), "TF_CPP_MIN_LOG_LEVEL": "3"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, process.__file__, *options, ONE_STEP, f"--workdir={folder}/run"]
        ended = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode or not ended.stdout.strip():
        last = (ended.stderr.strip() or "no output").splitlines()[-1]
        raise RuntimeError(f"The training in {checkout} ended before its second step: {last}")
    found = json.loads(ended.stdout.strip().splitlines()[-1])
    ends = list(found["ends"].items())
    parts = {name: round(end - before, 3) for (name, end), (_, before) in zip(ends, [("", 0.0), *ends])}
    return {**parts, "tracing": round(found["tracing"], 3), **report.total(parts), "operations": found["operations"]}


if __name__ == "__main__":
    command_line.run(main, define_flags)
