import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.commands import WITH_ARGUMENTS, parsed_command

from diffstride_hybrid import command_line


@pytest.fixture(scope="session")
def out_to() -> Callable[..., Any]:
    """A function that runs a command with another standard output, and returns its exit code."""

    def run(stream: io.TextIOBase, module: str, *arguments: str | Path) -> Any:
        with (
            parsed_command(module, *map(str, arguments)) as (command, remaining),
            contextlib.redirect_stdout(stream),
        ):
            try:
                command_line.reporting_errors(command.main, takes_arguments=module in WITH_ARGUMENTS)(remaining)
            except SystemExit as ended:
                return ended.code
        return 0

    return run
