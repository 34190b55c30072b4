"""Experiments and studies: each is a command, `python -m experiments.NAME`."""

import pathlib
import re
import sys

RESULTS = pathlib.Path(__file__).parent / "results"
"""The folder of the committed CSV files, figures and page of tables."""

ON_ANY_BACKEND = "frameworks"
"""The command that runs without TensorFlow too."""


def command_of(arguments: list[str]) -> str | None:
    """Finds which of the commands `python -m experiments.NAME` an interpreter runs.

    Args:
        arguments: those of the interpreter, as `sys.orig_argv` has them.

    Returns:
        The name. None if it runs something else, such as a process that a command starts.
    """
    for argument in arguments:
        if found := re.fullmatch(r"(?:-m)?experiments\.(\w+)", argument):
            return found[1]
    return None


# While Python looks for the module of a command, it imports no more than this file. The package keeps TensorFlow quiet
# if it is imported now, and cannot later.
if sys.argv[:1] == ["-m"] and command_of(sys.orig_argv) not in (None, ON_ANY_BACKEND):
    import diffstride_hybrid  # noqa: F401
