"""Processes that are killed, and started again."""

import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from support.interrupted_runs import assert_same_run, backups_in
from support.tiny_runs import SMALL_HYBRID, json_of

from diffstride_hybrid.common import signals

pytestmark = pytest.mark.long

SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def gin_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small_hybrid.gin"
    path.write_text(SMALL_HYBRID + "train.train.backup_every = 8\n")
    return path


def start(gin_file: Path, cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "diffstride_hybrid.train", f"--gin_file={gin_file}", "--workdir=run", *arguments]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_backup(folder: Path, after: int, process: subprocess.Popen[str]) -> None:
    wait_until(lambda: any(step > after for step in backups_in(folder)), process)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)


STARTING, SAVING = "starting", "saving"
Moment = float | str


def killed_and_restarted(gin_file: Path, folder: Path, moments: Sequence[Moment], *arguments: str) -> int:
    """Kills a run at each moment, then lets it end.

    Args:
        gin_file: its config.
        folder: where to start it.
        moments: before its first backup, while it saves, or so many seconds after it has got further.
        *arguments: more of its own.

    Returns:
        How many backups it was killed in the middle of.
    """
    run, halves = folder / "run", 0
    partial = run / "backup" / ".partial"
    for moment in moments:
        last = max(backups_in(run), default=0)
        with start(gin_file, folder, *arguments) as process:
            if moment == STARTING:
                wait_until((run / "operative_config.gin").exists, process)
            else:
                wait_for_backup(run, last, process)
            if moment == SAVING:
                wait_until(partial.exists, process)
            elif moment != STARTING:
                time.sleep(moment)
            process.kill()
            process.communicate()
        halves += partial.exists()
        assert not (run / "summary.json").exists(), "killed too late"
    with start(gin_file, folder, *arguments) as process:
        _, err = process.communicate()
        assert process.returncode == 0, err
    return halves


def test_a_run_killed_while_it_saves_ends_as_one_left_alone(gin_file: Path, tmp_path: Path):
    arguments = ("--gin_bindings=train.train.num_epochs = 5",)
    for name, moments in (("alone", []), ("killed", [SAVING])):
        (tmp_path / name).mkdir()
        killed_and_restarted(gin_file, tmp_path / name, moments, *arguments)
    assert_same_run(tmp_path / "killed" / "run", tmp_path / "alone" / "run", eager=False)


@SLOW
def test_a_run_killed_ten_times_ends_as_one_left_alone(gin_file: Path, tmp_path: Path):
    arguments = ("--gin_bindings=train.train.num_epochs = 300", "--gin_bindings=train.train.backup_every = 3")
    rng = random.Random(0)
    halves = 0
    for name, moments in (
        ("alone", []),
        ("killed", [STARTING, *[rng.uniform(0, 1.0) for _ in range(6)], *[SAVING] * 3]),
    ):
        (tmp_path / name).mkdir()
        halves += killed_and_restarted(gin_file, tmp_path / name, moments, *arguments)
    assert halves > 0
    assert_same_run(tmp_path / "killed" / "run", tmp_path / "alone" / "run", eager=False)


@SLOW
def test_a_preempted_command_says_so_and_goes_on(gin_file: Path, tmp_path: Path):
    arguments = ("--gin_bindings=train.train.num_epochs = 40",)
    with start(gin_file, tmp_path, *arguments) as process:
        wait_for_backup(tmp_path / "run", 0, process)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    assert process.returncode == signals.EXIT_CODE
    stopped = re.search(r"^stopped by SIGTERM after ([\d,]+) steps: start the same command again", err, re.MULTILINE)
    assert "Traceback" not in err
    steps = int(stopped[1].replace(",", ""))
    assert max(backups_in(tmp_path / "run")) == steps
    with start(gin_file, tmp_path, *arguments) as process:
        out, err = process.communicate()
    assert process.returncode == 0, err
    epochs, within = re.match(r"resuming run after epoch (\d+)(?: and (\d+) steps)?\n", out).groups()
    assert 10 * int(epochs) + int(within or 0) == steps
    assert json_of(tmp_path / "run" / "summary.json")["steps"] == 400
