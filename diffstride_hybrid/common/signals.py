"""Stopping a run from outside: a signal is noted, and the run ends as soon as its state is on the disk."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 75
"""What a command ends with that was stopped and can go on: EX_TEMPFAIL of sysexits.h, 'try again later'."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A run was stopped by a signal, and goes on when it is started again.

    No `Exception`, as it may be raised anywhere, and code that catches those must not keep it from the command.
    """


class StopRequest:
    """Whether the process was asked to end.

    Attributes:
        signal_name: of the signal, None as long as there was none.
        can_wait: whether there is a state to save first. Where there is none, as while data are loaded, a signal ends
            the run at once.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.can_wait = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal. Who presses Ctrl-C twice does not want to wait."""
        del frame
        if number == signal.SIGINT and self.signal_name == signal.SIGINT.name:
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        if not self.can_wait:
            raise Stopped(f"stopped by {name} while the run was set up: start the same command again.")
        self.signal_name = name
        # Python's own streams must not be written to from here.
        os.write(2, f"{name}: ends as soon as the state is saved\n".encode())


@contextlib.contextmanager
def noting_signals() -> Iterator[StopRequest]:
    """Notes SIGTERM, which preempted machines get, and SIGINT while the context lasts.

    Only a process's main thread gets signals: elsewhere nothing is noted.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.note) for number in _SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
