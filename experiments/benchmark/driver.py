"""Starts a worker process for each implementation, and measures the cases in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.benchmark import report
from experiments.benchmark.cases import MEASURED_IN_MEMORY, Case, cases, release_case


class Worker:
    """A process that runs cases of one implementation.

    Args:
        name: of the implementation, 'ours' or 'release': the module of this package that the process runs.
        environment: variables to add to the environment of this process.
    """

    def __init__(self, name: str, environment: Mapping[str, str]):
        self._name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"experiments.benchmark.{name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        )

    def ask(self, do: str, case: Case) -> dict[str, Any]:
        """Sends a request and waits for the answer.

        Args:
            do: 'build', 'run' or 'memory'; a case must be built before it is run.
            case: the case.

        Returns:
            The answer, as `worker.work` describes it.

        Raises:
            RuntimeError: the process has ended.
        """
        try:
            self._process.stdin.write(json.dumps({"do": do, "case": dataclasses.asdict(case)}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            answer = ""
        else:
            answer = self._process.stdout.readline()
        if not answer:
            needed = "; it needs tf-keras, and --against must be a checkout of google-research/diffstride"
            raise RuntimeError(
                f"The process experiments.benchmark.{self._name} ended at {case}. Its own error stands above"
                f"{needed if self._name == 'release' else ''}."
            )
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


def measure(parts: Sequence[str], batch: int, repeats: int, against: str | None) -> list[dict[str, Any]]:
    """Measures all cases and prints a line for each. The cases of one place take turns.

    Args:
        parts: some of 'layer', 'sizes' and 'step'.
        batch: batch size.
        repeats: how often each case is timed.
        against: a checkout of the released code to compare with, or None.

    Returns:
        A row for each case: the fields of `Case`, MACs, milliseconds (median, least, most), peak memory in megabytes,
        and beside a release how many times faster than the release the case is, and its share of the release's memory.

    Raises:
        RuntimeError: a worker process has ended.
    """
    environments: dict[str, dict[str, str]] = {"ours": {}}
    if against is not None:
        path = os.pathsep.join([against, os.environ.get("PYTHONPATH", "")])
        environments["release"] = {"TF_USE_LEGACY_KERAS": "1", "PYTHONPATH": path}
    listed = cases(parts, batch)
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        workers = {
            name: stack.enter_context(contextlib.closing(Worker(name, environment)))
            for name, environment in environments.items()
        }
        for _, group in itertools.groupby(listed, key=lambda case: (case.part, case.place)):
            of_place = [("ours", case) for case in group]
            if against is not None:
                of_place += [("release", other) for _, case in of_place if (other := release_case(case))]
            measured = _timed(workers, of_place, repeats)
            for row, (name, case) in zip(measured, of_place):
                measures_memory = case.variant in MEASURED_IN_MEMORY
                row["megabytes"] = _memory(name, environments[name], case) if measures_memory else None
            _compare(measured)
            for row in measured:
                print(report.line(row), flush=True)
            rows += measured
    return rows


def _timed(workers: Mapping[str, Worker], listed: Sequence[tuple[str, Case]], repeats: int) -> list[dict[str, Any]]:
    """Times the cases in turn, each with the name of its worker."""
    macs = [workers[name].ask("build", case)["macs"] for name, case in listed]
    milliseconds: list[list[float]] = [[] for _ in listed]
    for _ in range(repeats):
        for (name, case), of_case in zip(listed, milliseconds):
            of_case.append(1e3 * workers[name].ask("run", case)["seconds"])
    return [
        {
            **dataclasses.asdict(case),
            "macs": counted,
            "milliseconds": round(statistics.median(of_case), 3),
            "least": round(min(of_case), 3),
            "most": round(max(of_case), 3),
        }
        for (_, case), counted, of_case in zip(listed, macs, milliseconds)
    ]


def _memory(name: str, environment: Mapping[str, str], case: Case) -> float | None:
    """Measures peak memory in a new process: in a used one, TensorFlow's allocator reuses what it already holds."""
    with contextlib.closing(Worker(name, environment)) as worker:
        return worker.ask("memory", case)["megabytes"]


def _compare(rows: Sequence[dict[str, Any]]) -> None:
    """Adds to the rows of one place how they compare with the release, if there is one."""
    release = next((row for row in rows if row["variant"] == "release"), None)
    for row in rows:
        row["times_faster"] = release and round(release["milliseconds"] / row["milliseconds"], 2)
        comparable = release and release["megabytes"] and row["megabytes"]
        row["memory_ratio"] = round(row["megabytes"] / release["megabytes"], 3) if comparable else None
