"""Times the poolings on TensorFlow, JAX and PyTorch, each in a process of its own.

    python -m experiments.frameworks
    python -m experiments.frameworks --device=gpu
    KERAS_BACKEND=jax python -m experiments.frameworks --device=gpu --backends=jax,torch

The results are a Markdown table and `experiments/results/frameworks.csv`, with `--device=gpu` `frameworks_gpu.csv`. On
a GPU there are larger maps too, and the layers run in both data formats. Without TensorFlow the command runs on JAX and
PyTorch, as in the last line.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

# This process computes nothing: what TensorFlow notes of its devices would only surround the table.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import app, flags

from diffstride_hybrid.common.errors import one_line
from diffstride_hybrid.common.files import rows_as_text, write_whole
from experiments import RESULTS, devices
from experiments.frameworks import report

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    flags.DEFINE_integer("repeats", 15, "How often each pooling is timed.", lower_bound=1)
    flags.DEFINE_list("backends", list(report.NAMES), f"What to time, of {', '.join(report.NAMES)}.")
    flags.DEFINE_string("csv", None, "The CSV file to write. Named after the device if None.")
    devices.define_device_flags()


def main(argv: Sequence[str]) -> None:
    """Times every backend that is installed, writes the CSV file and prints the table."""
    del argv
    unknown = [backend for backend in FLAGS.backends if backend not in report.NAMES]
    if unknown:
        raise ValueError(f"--backends must name some of {', '.join(report.NAMES)}, got {', '.join(unknown)}.")
    seconds = devices.seconds_to_measure(FLAGS.device, FLAGS.minutes)
    ends = None if seconds is None else time.monotonic() + seconds
    rows: list[dict[str, Any]] = []
    without_card: dict[str, list[str]] = {}
    installed = [backend for backend in FLAGS.backends if importlib.util.find_spec(backend) is not None]
    missing = [report.NAMES[backend] for backend in FLAGS.backends if backend not in installed]
    notes = [f"{name} is not installed: its rows are left out." for name in missing]
    for number, backend in enumerate(installed):
        name = report.NAMES[backend]
        # A slow backend must leave time for those after it.
        share = None if ends is None else (ends - time.monotonic()) / (len(installed) - number)
        answers, problem = _timed(backend, share)
        for answer in answers:
            if "found" in answer:
                without_card[name] = answer["found"]
            elif "left_out" in answer:
                notes.append(f"{name}: {answer['left_out']} is left out: {answer['error']}.")
            else:
                rows.append(answer)
        if problem and ends is None:
            raise RuntimeError(f"{name}: {problem}.")
        if problem:
            notes.append(f"{name}: {problem}.")
    if without_card:
        notes.append(devices.no_card(without_card))
    if not rows:
        raise RuntimeError(" ".join(notes))
    csv = pathlib.Path(FLAGS.csv or (report.CSV if FLAGS.device == "cpu" else RESULTS / "frameworks_gpu.csv"))
    write_whole(csv.expanduser(), rows_as_text(list(rows[0]), rows))
    for text in (*notes, report.table(rows), *report.comparisons(rows)):
        print(text)


def _timed(backend: str, seconds: float | None) -> tuple[list[dict[str, Any]], str | None]:
    """Runs `timing` on a backend. Returns what it printed, and why it did not come to its end if it did not."""
    command = [sys.executable, "-m", "experiments.frameworks.timing", str(FLAGS.repeats), FLAGS.device]
    variables = {**os.environ, **devices.environment(FLAGS.device), "KERAS_BACKEND": backend}
    problem = None
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as process:
        try:
            printed = process.communicate(timeout=seconds)[0]
            if process.returncode:
                problem = "its process ended early, and its own error stands above"
        except subprocess.TimeoutExpired:
            process.kill()
            printed = process.communicate()[0]
            problem = "the time was over before all maps were timed"
    return [json.loads(line) for line in printed.splitlines()], problem


def _run() -> None:
    """Runs the command: as the others do, or alone where there is no TensorFlow, which the others need."""
    if importlib.util.find_spec("tensorflow") is not None:
        from diffstride_hybrid import command_line

        command_line.run(main, define_flags)
        return

    def guarded(argv: Sequence[str]) -> None:
        try:
            main(argv)
        except (ValueError, RuntimeError, OSError) as error:
            sys.exit(f"error: {one_line(error)}")

    define_flags()
    app.run(guarded)


if __name__ == "__main__":
    _run()
