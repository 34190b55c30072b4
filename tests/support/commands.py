"""Runs the package's commands, in this process or as a user does, and checks how they end."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags, logging

from diffstride_hybrid import command_line
from support.command_flags import defined_flags

TINY = {
    "train.train.num_epochs": 1,
    "train.train.steps_per_epoch": 2,
    "resnet.resnet18.width": 4,
    "data.load_datasets.image_size": 16,
    "data.load_datasets.batch_size": 64,
}
"""Bindings that make a run of ResNet-18 take seconds."""


WITH_ARGUMENTS = ("predict", "audit.__main__")
"""Commands that take arguments beside their options."""


class Result(NamedTuple):
    """How a command ended."""

    code: Any
    out: str
    err: str


def options_of(bindings: dict[str, Any]) -> list[str]:
    """Options of `train` that bind `TINY` and, over that, some parameters of a test."""
    return [f"--gin_bindings={name} = {value}" for name, value in {**TINY, **bindings}.items()]


def start_command(
    module: str, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Starts a command as a user does, with `env` beside the variables of this process."""
    command = [sys.executable, "-m", f"diffstride_hybrid.{module}", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, env={**os.environ, **(env or {})}, **pipes)


def wait_for(process: subprocess.Popen[str]) -> Result:
    with process:
        out, err = process.communicate()
    return Result(process.returncode, out, err)


@contextlib.contextmanager
def parsed_command(module: str, *arguments: str) -> Iterator[tuple[Any, list[str]]]:
    """The module of a command, with its flags parsed while the context lasts, and the arguments that are no flags."""
    command = importlib.import_module(f"diffstride_hybrid.{module}")
    with defined_flags(command.define_flags, command_line.traceback_flag):
        yield command, flags.FLAGS([module, *arguments])


def run_here(module: str, *arguments: str) -> Result:
    """Runs a command in this process, which takes seconds less than starting another."""
    code, out, err = 0, io.StringIO(), io.StringIO()
    verbosity = logging.get_verbosity()
    with (
        parsed_command(module, *arguments) as (command, remaining),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            command_line.reporting_errors(command.main, takes_arguments=module in WITH_ARGUMENTS)(remaining)
        except SystemExit as exit_of_command:
            code = exit_of_command.code
    logging.set_verbosity(verbosity)
    return Result(code, out.getvalue(), err.getvalue())


def assert_one_clear_line(result: Result, *culprits: str) -> None:
    """The command failed with one line that names each culprit."""
    assert result.code not in (0, None)
    assert "Traceback" not in result.err + result.out
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.err
    assert len(lines[0]) < 600
    assert "in user code" not in lines[0]
    for culprit in culprits:
        assert culprit in lines[0]


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """The content of each file of a folder, and when it was written."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}
