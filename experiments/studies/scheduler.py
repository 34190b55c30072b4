"""Runs the cells of a study as training processes, several at a time, and each cell only once."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO, NamedTuple

from diffstride_hybrid.common.errors import one_line
from diffstride_hybrid.common.files import read_rows
from experiments.studies import costs, fingerprint
from experiments.studies.study import Cell

TRAIN = [sys.executable, "-m", "diffstride_hybrid.train"]

LOG_FILE = "train.log"
"""The file in the folder of a cell that holds the output of its training."""

ATTEMPTS = 2
"""How often a cell is started at most."""

POLL_SECONDS = 0.5


class Running(NamedTuple):
    """A cell that is being trained.

    Attributes:
        process: the training.
        lock: held by this process and by the training, so no other sweep starts the cell while either lives.
        began: when the training began, in seconds of `time.monotonic`.
    """

    process: subprocess.Popen[bytes]
    lock: IO[str]
    began: float


class Sweep:
    """Runs cells, several at a time. A cell that fails is started once more.

    Args:
        cells: the cells, in the order in which they start.
        runs: the folder that holds a folder for each study.
        jobs: how many cells run at a time.
        train_flags: flags that are passed to `diffstride_hybrid.train`.
        measure: which accuracy of a finished run is printed, that on the 'test' or on the 'validation' images.
        recorded: cells that are finished elsewhere, with their costs. They are not run.

    Attributes:
        broken: the cells that failed twice or whose reference did, each with the reason.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        runs: str,
        jobs: int,
        train_flags: Sequence[str] = (),
        measure: str = "test",
        recorded: Mapping[Cell, costs.Cost] | None = None,
    ):
        self.broken: dict[Cell, str] = {}
        self._cells = cells
        self._runs = runs
        self._jobs = jobs
        self._train_flags = train_flags
        self._measure = measure
        self._recorded = dict(recorded or {})
        self._waiting = [cell for cell in cells if not (cell.is_finished(runs) or cell in self._recorded)]
        self._running: dict[Cell, Running] = {}
        self._attempts = dict.fromkeys(cells, 0)
        self._seconds = {cell: _seconds(cell, runs) for cell in cells if cell.is_finished(runs)}
        self._line = _StatusLine()

    def run(self) -> None:
        """Runs every unfinished cell, until each is finished or broken."""
        try:
            while self._waiting or self._running:
                self._start_what_can()
                self._line.show(self._status())
                time.sleep(POLL_SECONDS)
                self._collect()
        finally:
            for running in self._running.values():
                running.process.terminate()
            for running in self._running.values():
                running.process.wait()
            self._line.end()

    def _start_what_can(self) -> None:
        elsewhere = 0
        for cell in list(self._waiting):
            if len(self._running) + elsewhere >= self._jobs:
                return
            if cell.is_finished(self._runs):  # Its training may have outlived a killed sweep.
                self._waiting.remove(cell)
            elif cell.reference in self.broken:
                self._waiting.remove(cell)
                self._report_broken(cell, f"needs {cell.reference.name}, which is broken")
            elif cell.reference is None or self._is_known(cell.reference):
                lock = _locked(cell, self._runs)
                if lock is None:
                    elsewhere += 1
                elif cell.is_finished(self._runs):  # Another sweep finished it before we took the lock.
                    lock.close()
                else:
                    self._waiting.remove(cell)
                    self._attempts[cell] += 1
                    try:
                        self._running[cell] = self._start(cell, lock)
                    except (OSError, ValueError) as error:
                        lock.close()
                        self._failed(cell, one_line(error))

    def _start(self, cell: Cell, lock: IO[str]) -> Running:
        folder = cell.folder(self._runs)
        matched: Sequence[str] = ()
        if cell.reference is not None:
            matched = costs.matched_bindings(cell, self._runs, self._recorded)
        fingerprint.write_description(cell, self._runs, matched)
        command = [*TRAIN, f"--gin_file={cell.gin_file}"]
        command += [f"--gin_bindings={binding}" for binding in (*cell.gin_bindings, *matched)]
        command += [f"--workdir={folder}", f"--seed={cell.seed}", *self._train_flags]
        with open(folder / LOG_FILE, "ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env=_environment(self._jobs), pass_fds=[lock.fileno()]
            )
        return Running(process, lock, time.monotonic())

    def _is_known(self, cell: Cell) -> bool:
        return cell in self._recorded or cell.is_finished(self._runs)

    def _collect(self) -> None:
        for cell, running in list(self._running.items()):
            if running.process.poll() is None:
                continue
            del self._running[cell]
            running.lock.close()
            if cell.is_finished(self._runs):
                self._seconds[cell] = time.monotonic() - running.began
                self._line.say(f"done    {cell.name}  {outcome(cell, self._runs, self._measure)}")
            else:
                self._failed(cell, f"exit code {running.process.returncode}: {_last_line(cell, self._runs)}")

    def _failed(self, cell: Cell, reason: str) -> None:
        if self._attempts[cell] < ATTEMPTS:
            self._line.say(f"again   {cell.name}  {reason}")
            self._waiting.insert(0, cell)
        else:
            self._report_broken(cell, reason)

    def _report_broken(self, cell: Cell, reason: str) -> None:
        self.broken[cell] = reason
        self._line.say(f"broken  {cell.name}  {reason}")

    def _status(self) -> str:
        finished = len(self._cells) - len(self._waiting) - len(self._running) - len(self.broken)
        parts = [f"{finished}/{len(self._cells)} done"]
        if self.broken:
            parts.append(f"{len(self.broken)} broken")
        if self._seconds:
            ends = time.localtime(time.time() + self._seconds_left())
            parts.append(f"ends about {time.strftime('%a %H:%M', ends)}")
        running = ", ".join(f"{cell.name} {progress(cell, self._runs)}".strip() for cell in self._running)
        return "; ".join([*parts, f"running {running}" if running else "waiting for another sweep"])

    def _seconds_left(self) -> float:
        now = time.monotonic()
        left = sum(self._expected_seconds(cell) for cell in self._waiting)
        for cell, running in self._running.items():
            left += max(0.0, self._expected_seconds(cell) - (now - running.began))
        return left / self._jobs

    def _expected_seconds(self, cell: Cell) -> float:
        """Averages the finished runs that are most like the cell."""

        def likeness(other: Cell) -> tuple[bool, bool, bool, bool]:
            return (
                other.data == cell.data,
                other.method.name == cell.method.name,
                other.strides == cell.strides,
                other.variant == cell.variant,
            )

        most = max(map(likeness, self._seconds))
        return statistics.fmean(seconds for other, seconds in self._seconds.items() if likeness(other) == most)


class _StatusLine:
    """A line that changes in place on a terminal. If the output is no terminal, only events are printed."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()

    def show(self, text: str) -> None:
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\x1b[K{text[:width]}", end="", flush=True)

    def say(self, text: str) -> None:
        print(f"{self._clear()}{time.strftime('%H:%M:%S')}  {text}", flush=True)

    def end(self) -> None:
        print(self._clear(), end="", flush=True)

    def _clear(self) -> str:
        return "\r\x1b[K" if self._live else ""


def _locked(cell: Cell, runs: str) -> IO[str] | None:
    """Makes and locks the folder of a cell; returns None if another process holds the lock."""
    folder = cell.folder(runs)
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / ".lock", "w", encoding="utf-8")  # noqa: SIM115  The lock outlives this function.
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    return lock


def _environment(jobs: int) -> Mapping[str, str]:
    threads = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    if jobs == 1:
        return os.environ
    return {"TF_NUM_INTRAOP_THREADS": threads, "TF_NUM_INTEROP_THREADS": threads, **os.environ}


def outcome(cell: Cell, runs: str, measure: str) -> str:
    """Describes a finished run in a few words.

    Args:
        cell: a finished cell.
        runs: the folder that holds a folder for each study.
        measure: which accuracy to name, that on the 'test' or on the 'validation' images.

    Returns:
        Its accuracy, MACs and training time.
    """
    summary = cell.summary(runs)
    accuracy = summary["test_accuracy"]
    if measure == "validation":
        accuracy = float(read_rows(cell.folder(runs) / "metrics.csv")[-1]["val_accuracy"])
    return f"{accuracy:.2%}, {summary['macs'] / 1e9:.3f} G MACs, {summary['training_seconds']:.0f} s"


def _seconds(cell: Cell, runs: str) -> float:
    return cell.summary(runs)["training_seconds"]


def _log_lines(cell: Cell, runs: str) -> list[str]:
    try:
        text = (cell.folder(runs) / LOG_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def _last_line(cell: Cell, runs: str) -> str:
    lines = _log_lines(cell, runs)
    return lines[-1] if lines else "it said nothing"


def progress(cell: Cell, runs: str) -> str:
    """Returns how far the log of a run has come, such as '(epoch 2/5)', or '' before the first epoch has ended."""
    epochs = [match[0] for match in map(re.compile(r"epoch \d+/\d+").match, _log_lines(cell, runs)) if match]
    return f"({epochs[-1]})" if epochs else ""
