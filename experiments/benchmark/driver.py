"""Measures the cases in turn, in a process for each implementation."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import statistics
from collections.abc import Sequence
from typing import Any

from diffstride_hybrid.common.errors import one_line
from experiments import devices
from experiments.benchmark import report
from experiments.benchmark.budget import Budget, coarse_first
from experiments.benchmark.cases import Case, cases, is_measured_in_memory, release_case
from experiments.benchmark.processes import OutOfTimeError, Worker, Workers

Named = tuple[str, Case]
"""A case with the name of its implementation, 'ours' or 'release'."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What came of a measurement.

    Attributes:
        rows: for each case the fields of `Case`, MACs, milliseconds (median, least, most), peak memory in megabytes,
            and beside a release how many times faster than the release the case is, and its share of the release's
            memory. On a GPU also the name of the card, and how many passes a timed run has.
        too_late: the places for which no time was left.
        failed: the cases that failed on a GPU, each with the error.
    """

    rows: list[dict[str, Any]]
    too_late: list[str]
    failed: list[str]


def measure(
    parts: Sequence[str],
    batch: int,
    repeats: int,
    against: str | None,
    device: str = "cpu",
    seconds: float | None = None,
) -> Measured:
    """Measures all cases and prints a line for each. The cases of one place take turns.

    On a GPU a case that fails is left out. On a CPU it ends the measurement.

    Args:
        parts: some of `cases.PARTS`.
        batch: batch size.
        repeats: how often each case is timed.
        against: a checkout of the released code to compare with, or None.
        device: 'cpu' or 'gpu'.
        seconds: the time to measure in, None for as long as it takes.

    Returns:
        The rows, and what has none.

    Raises:
        ValueError: a part does not exist, or there is no GPU.
        RuntimeError: a worker process has ended.
    """
    listed = cases(parts, batch, device)
    budget = Budget(seconds)
    environments = {"ours": devices.environment(device)}
    if against is not None:
        path = os.pathsep.join([against, os.environ.get("PYTHONPATH", "")])
        environments["release"] = {**environments["ours"], "TF_USE_LEGACY_KERAS": "1", "PYTHONPATH": path}
    with contextlib.closing(Workers(environments)) as workers:
        card = _card(workers["ours"], budget) if device == "gpu" else None
        measuring = _Measuring(workers, budget, repeats, card)
        present = list(dict.fromkeys(case.part for case in listed))
        for number, part in enumerate(present):
            budget.begin(part, present[number + 1 :])
            of_part = [case for case in listed if case.part == part]
            groups = [list(group) for _, group in itertools.groupby(of_part, key=lambda case: case.place)]
            for group in coarse_first(groups) if budget.is_limited else groups:
                measuring.place(group)
    order = {place: number for number, place in enumerate(dict.fromkeys((case.part, case.place) for case in listed))}
    rows = sorted(measuring.rows, key=lambda row: order[row["part"], row["place"]])
    return Measured(rows, measuring.too_late, measuring.failed)


def _card(worker: Worker, budget: Budget) -> str:
    """Prints which card the worker has, and returns its name."""
    device = worker.ask("device", seconds=budget.seconds_left())
    if device["name"] is None:
        raise ValueError(devices.no_card({"TensorFlow": device["found"]}))
    rounded = "may be" if device["tensor_float_32"] else "are not"
    print(f"on {device['name']}, where operands of float32 products {rounded} rounded to TensorFloat-32", flush=True)
    return device["name"]


class _Measuring:
    """Measures place after place, and keeps the rows and what has none. `card` is None on a CPU."""

    def __init__(self, workers: Workers, budget: Budget, repeats: int, card: str | None):
        self.rows: list[dict[str, Any]] = []
        self.too_late: list[str] = []
        self.failed: list[str] = []
        self._workers = workers
        self._budget = budget
        self._repeats = repeats
        self._card = card

    def place(self, group: Sequence[Case]) -> None:
        """Measures the cases of a place, unless the time of its part is over."""
        name = f"{group[0].part}, {group[0].place}"
        listed = [("ours", case) for case in group]
        if "release" in self._workers.environments:
            listed += [("release", other) for case in group if (other := release_case(case))]
        while listed and not self._budget.part_is_over():
            self._workers.restart_ended()
            try:
                measured = self._measured(listed)
            except OutOfTimeError:
                break
            except _FailedError as failed:
                self.failed.append(f"{name}, {failed.case.variant}, {failed.case.dtype}: {failed}")
                listed = [named for named in listed if named[1] != failed.case]
                continue
            self.rows += measured
            for row in measured:
                print(report.line(row), flush=True)
            return
        if listed:
            self.too_late.append(name)

    def _measured(self, listed: Sequence[Named]) -> list[dict[str, Any]]:
        macs = [self._ask("build", *named)["macs"] for named in listed]
        iterations = [self._iterations(*named) for named in listed]
        milliseconds: list[list[float]] = [[] for _ in listed]
        for turn in range(self._repeats):
            if turn and self._budget.part_is_over():
                break
            for named, times, of_case in zip(listed, iterations, milliseconds):
                of_case.append(1e3 * self._ask("run", *named, times=times)["seconds"] / times)
        rows = [
            {
                **dataclasses.asdict(case),
                "macs": counted,
                "milliseconds": round(statistics.median(of_case), 3),
                "least": round(min(of_case), 3),
                "most": round(max(of_case), 3),
                "megabytes": self._megabytes(name, case) if is_measured_in_memory(case) else None,
            }
            for (name, case), counted, of_case in zip(listed, macs, milliseconds)
        ]
        _compare(rows)
        if self._card:
            rows = [{**row, "device": self._card, "iterations": times} for row, times in zip(rows, iterations)]
        return rows

    def _iterations(self, name: str, case: Case) -> int:
        """How many passes a timed run has: one on a CPU."""
        if not self._card:
            return 1
        seconds = self._ask("run", name, case)["seconds"]
        return devices.passes_to_time(seconds)

    def _megabytes(self, name: str, case: Case) -> float | None:
        """Peak memory. On a CPU in a new process: in a used one, TensorFlow's allocator reuses what it already holds.

        On a GPU the allocator counts what is in use, and to start a process for each case would take most of the time.
        """
        if self._card:
            return self._ask("peak", name, case)["megabytes"]
        with contextlib.closing(Worker(name, self._workers.environments[name])) as worker:
            return worker.ask("memory", case, self._budget.seconds_left())["megabytes"]

    def _ask(self, do: str, name: str, case: Case, **more: Any) -> dict[str, Any]:
        if self._card:
            more["may_fail"] = True
        try:
            return self._workers[name].ask(do, case, self._budget.seconds_left(), **more)
        except OutOfTimeError:
            raise
        except RuntimeError as error:
            if not self._card:
                raise
            raise _FailedError(case, one_line(error)) from error


class _FailedError(RuntimeError):
    """A case failed on a GPU."""

    def __init__(self, case: Case, message: str):
        super().__init__(message)
        self.case = case


def _compare(rows: Sequence[dict[str, Any]]) -> None:
    """Adds to the rows of one place how they compare with the release, if there is one."""
    release = next((row for row in rows if row["variant"] == "release"), None)
    for row in rows:
        row["times_faster"] = release and round(release["milliseconds"] / row["milliseconds"], 2)
        comparable = release and release["megabytes"] and row["megabytes"]
        row["memory_ratio"] = round(row["megabytes"] / release["megabytes"], 3) if comparable else None
