"""Runs a worker process for each implementation, and measures the cases in turn."""

from __future__ import annotations

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
        name: 'ours' or 'release'.
        environment: added to that of this process.
    """

    def __init__(self, name: str, environment: Mapping[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.benchmark", f"--worker={name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        )

    def ask(self, do: str, case: Case) -> dict[str, Any]:
        """Asks to 'build' or 'run' a case, and waits for the answer."""
        self._process.stdin.write(json.dumps({"do": do, "case": dataclasses.asdict(case)}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"The benchmark process for {case} has ended.")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def measure(parts: Sequence[str], batch: int, repeats: int, against: str | None) -> list[dict[str, Any]]:
    """Measures all cases, those of one place in turn.

    Args:
        parts: which of 'layer', 'sizes', 'step'.
        batch: batch size.
        repeats: timed runs of each case.
        against: a checkout of the released code, or None.

    Returns:
        A row for each case: the case, MACs, milliseconds (median, least, most), peak memory and, where there is a
        release, how many times faster than it the case is and its share of the release's memory.
    """
    environments: dict[str, dict[str, str]] = {"ours": {}}
    if against is not None:
        path = os.pathsep.join([against, os.environ.get("PYTHONPATH", "")])
        environments["release"] = {"TF_USE_LEGACY_KERAS": "1", "PYTHONPATH": path}
    workers = {name: Worker(name, environment) for name, environment in environments.items()}
    rows: list[dict[str, Any]] = []
    for _, group in itertools.groupby(cases(parts, batch), key=lambda case: (case.part, case.place)):
        listed = [("ours", case) for case in group]
        if against is not None:
            listed += [("release", other) for _, case in listed if (other := release_case(case))]
        macs = [workers[name].ask("build", case)["macs"] for name, case in listed]
        seconds: list[list[float]] = [[] for _ in listed]
        for _ in range(repeats):
            for (name, case), measured in zip(listed, seconds):
                measured.append(workers[name].ask("run", case)["seconds"])
        rows += [
            {
                **dataclasses.asdict(case),
                "macs": counted,
                "milliseconds": round(1e3 * statistics.median(measured), 3),
                "least": round(1e3 * min(measured), 3),
                "most": round(1e3 * max(measured), 3),
                "megabytes": _memory(name, environments[name], case) if case.variant in MEASURED_IN_MEMORY else None,
            }
            for (name, case), counted, measured in zip(listed, macs, seconds)
        ]
        here = rows[-len(listed) :]
        release = next((row for row in here if row["variant"] == "release"), None)
        for row in here:
            row["times_faster"] = release and round(release["milliseconds"] / row["milliseconds"], 2)
            comparable = release and release["megabytes"] and row["megabytes"]
            row["memory_ratio"] = round(row["megabytes"] / release["megabytes"], 3) if comparable else None
            print(report.line(row), flush=True)
    for worker in workers.values():
        worker.close()
    return rows


def _memory(name: str, environment: Mapping[str, str], case: Case) -> float | None:
    """Peak memory, in a process of the case's own: TensorFlow's allocator hands out whole what it already has."""
    worker = Worker(name, environment)
    try:
        return worker.ask("memory", case)["megabytes"]
    finally:
        worker.close()
