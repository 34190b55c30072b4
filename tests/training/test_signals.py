"""Signals to a run."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from absl import flags
from support.command_flags import defined_flags
from support.interrupted_runs import At, assert_same_run, backups_in, trained

from diffstride_hybrid import command_line
from diffstride_hybrid.common import signals

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("uncompiled")]

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (signal.SIGTERM, 3),
        pytest.param(signal.SIGTERM, 6, marks=SLOW),
        pytest.param(signal.SIGINT, 3, marks=SLOW),
        pytest.param(signal.SIGINT, 6, marks=SLOW),
    ],
)
def test_a_signal_ends_a_run_with_its_state_saved(number: signal.Signals, step: int, left_alone: Path, tmp_path: Path):
    before = signal.getsignal(number)
    message = rf"stopped by {number.name} after {step} steps: start the same command again to go on in {tmp_path}\."
    with pytest.raises(signals.Stopped, match=message):
        trained(tmp_path, callbacks=[At(step, lambda: os.kill(os.getpid(), number))])
    assert signal.getsignal(number) is before
    assert backups_in(tmp_path) == [step]
    trained(tmp_path)
    assert_same_run(tmp_path, left_alone)


@SLOW
def test_a_signal_in_the_last_epochs_validation_does_not_cost_the_run(left_alone: Path, tmp_path: Path):
    with pytest.raises(signals.Stopped):
        trained(tmp_path, callbacks=[At(12, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    assert backups_in(tmp_path) == [6, 12]
    trained(tmp_path)
    assert_same_run(tmp_path, left_alone)


def test_a_signal_while_the_data_load_ends_the_run_at_once(tmp_path: Path):
    def load(seed: int) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("this is not reached")

    with pytest.raises(signals.Stopped, match=r"stopped by SIGTERM while the run was set up: start the same command"):
        trained(tmp_path, load_data_fn=load)
    assert not list(tmp_path.iterdir())


def test_who_presses_twice_does_not_wait(tmp_path: Path):
    def press_twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, callbacks=[At(1, press_twice)])
    assert signal.getsignal(signal.SIGINT) is before


@contextlib.contextmanager
def without_readers() -> Iterator[None]:
    """Standard output and error are a pipe whose reader is gone, as after Ctrl-C in `train 2>&1 | tee log`."""
    reader, writer = os.pipe()
    os.close(reader)
    kept = os.dup(2)
    os.dup2(writer, 2)
    with pytest.MonkeyPatch.context() as patch, open(writer, "w") as out, open(os.dup(2), "w", 1) as err:
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            for stream in (out, err):  # What they still hold is written when they are closed.
                os.dup2(kept, stream.fileno())
            os.close(kept)


def test_a_signal_saves_first_though_nobody_reads_the_output(tmp_path: Path):
    with without_readers(), pytest.raises(signals.Stopped, match="stopped by SIGINT after 3 steps"):
        trained(tmp_path, callbacks=[At(3, lambda: os.kill(os.getpid(), signal.SIGINT))])
    assert backups_in(tmp_path) == [3]


def test_a_run_goes_on_if_nobody_reads_the_output(tmp_path: Path):
    with without_readers():
        trained(tmp_path, num_epochs=1, steps_per_epoch=1)
    assert (tmp_path / "summary.json").exists()


@pytest.mark.parametrize(
    ("error", "code"), [(signals.Stopped("stopped"), signals.EXIT_CODE), (KeyboardInterrupt(), 130), (OSError("x"), 1)]
)
def test_a_command_ends_with_its_code_though_nobody_reads_the_output(error: BaseException, code: int):
    def main(argv: list[str]) -> None:
        print("half a line", end="")
        raise error

    with defined_flags(command_line.traceback_flag):
        flags.FLAGS(["command"])
        with without_readers():
            with pytest.raises(SystemExit) as ended:
                command_line.reporting_errors(main)(["command"])
            for stream in (sys.stdout, sys.stderr):
                stream.flush()  # As Python does at its end.
    assert ended.value.code == code


def test_a_command_whose_output_nobody_reads_has_failed():
    with defined_flags(command_line.traceback_flag):
        flags.FLAGS(["command"])
        with without_readers(), pytest.raises(SystemExit) as ended:
            command_line.reporting_errors(lambda argv: print("half a line", end=""))(["command"])
    assert ended.value.code == 1


@SLOW
def test_a_run_in_another_thread_leaves_signals_alone(tmp_path: Path):
    thread = threading.Thread(target=partial(trained, tmp_path, num_epochs=1, steps_per_epoch=1))
    thread.start()
    thread.join()
    assert (tmp_path / "summary.json").exists()
