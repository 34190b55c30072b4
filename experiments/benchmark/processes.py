"""The processes that run the cases, one for each implementation."""

from __future__ import annotations

import dataclasses
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from experiments.benchmark.cases import Case


class OutOfTimeError(RuntimeError):
    """A process did not answer in time, and was ended."""


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

    def ask(self, do: str, case: Case | None = None, seconds: float | None = None, **more: Any) -> dict[str, Any]:
        """Sends a request and waits for the answer.

        Args:
            do: 'build', 'run', 'memory', 'peak' or 'device'; a case must be built before it is run.
            case: the case, None for 'device'.
            seconds: how long to wait, None for as long as it takes.
            **more: other keys of the request.

        Returns:
            The answer, as `worker.work` describes it.

        Raises:
            OutOfTimeError: there was no answer in time.
            RuntimeError: the process has ended, or the case failed.
        """
        request = {"do": do, **more} if case is None else {"do": do, "case": dataclasses.asdict(case), **more}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            answer = ""
        else:
            self._wait(seconds)
            answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()  # So that `has_ended` is true from now on.
            needed = "; it needs tf-keras, and --against must be a checkout of google-research/diffstride"
            raise RuntimeError(
                f"The process experiments.benchmark.{self._name} ended at {case}. Its own error stands above"
                f"{needed if self._name == 'release' else ''}."
            )
        answered = json.loads(answer)
        if "error" in answered:
            raise RuntimeError(answered["error"])
        return answered

    def _wait(self, seconds: float | None) -> None:
        if seconds is None:
            return
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                self._process.kill()
                self._process.wait()
                raise OutOfTimeError(f"The process experiments.benchmark.{self._name} did not answer in time.")

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended, by itself or because it did not answer in time."""
        return self._process.poll() is not None

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()


class Workers:
    """A worker for each implementation, started again if one has ended.

    Args:
        environments: what to add to the environment of each, by the name of the implementation.
    """

    def __init__(self, environments: Mapping[str, Mapping[str, str]]):
        self.environments = environments
        self._workers = {name: Worker(name, environment) for name, environment in environments.items()}

    def __getitem__(self, name: str) -> Worker:
        return self._workers[name]

    def restart_ended(self) -> None:
        """Starts a new process for each that has ended."""
        for name, worker in self._workers.items():
            if worker.has_ended:
                worker.close()
                self._workers[name] = Worker(name, self.environments[name])

    def close(self) -> None:
        """Ends all processes."""
        for worker in self._workers.values():
            worker.close()
