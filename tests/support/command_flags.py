"""Flags of commands, defined for as long as a test needs them."""

import contextlib
from collections.abc import Callable, Iterator

from absl import flags
from absl.testing import flagsaver


@contextlib.contextmanager
def defined_flags(*define: Callable[[], None]) -> Iterator[None]:
    """Defines flags as a command does when it runs, and forgets them afterwards."""
    before = set(flags.FLAGS)
    with flagsaver.flagsaver():
        for function in define:
            function()
        yield
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
