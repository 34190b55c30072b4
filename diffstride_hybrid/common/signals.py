"""Stopping a run by a signal: the run notes the signal, and ends as soon as its state is on the disk."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 75
"""The exit code of a command that was stopped and can go on: EX_TEMPFAIL of sysexits.h, 'try again later'."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(BaseException):
    """A signal stopped a run. The run goes on when it is started again.

    This class does not derive from `Exception`: a signal may arrive in any code, and code that catches every
    `Exception` must not keep this one from the command.
    """


class StopRequest:
    """Notes whether a signal has asked the process to end.

    Attributes:
        signal_name: the name of the signal, such as 'SIGTERM'; None if no signal has arrived.
        can_wait: whether the run has a state that it saves before it ends. If not, for instance while the data are
            loaded, a signal ends the run at once.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.can_wait = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handles a signal, as `signal.signal` asks for.

        Raises:
            KeyboardInterrupt: this is the second SIGINT: a user who presses Ctrl-C twice does not want to wait.
            Stopped: there is no state to save.
        """
        del frame
        if number == signal.SIGINT and self.signal_name == signal.SIGINT.name:
            raise KeyboardInterrupt
        name = signal.Signals(number).name
        if not self.can_wait:
            raise Stopped(f"stopped by {name} while the run was set up: start the same command again.")
        self.signal_name = name
        # A handler must not write to Python's own streams: it may have interrupted a write to them. The same Ctrl-C may
        # have ended the process that reads standard error, as in `train 2>&1 | tee log`.
        with contextlib.suppress(OSError):
            os.write(2, f"{name}: ends as soon as the state is saved\n".encode())


@contextlib.contextmanager
def noting_signals() -> Iterator[StopRequest]:
    """Notes SIGINT and SIGTERM while the context lasts. A machine that is about to be preempted gets SIGTERM.

    Python delivers signals to the main thread only. In another thread the context notes nothing.

    Yields:
        The request, which the run looks at between its steps.
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
