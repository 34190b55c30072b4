"""Sweeps: which cells run, when, and what is left of those that fail."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT
from support.study_folders import finish

from experiments import sweep
from experiments.studies import costs, fingerprint, records, scheduler
from experiments.studies.study import Cell, Method, Study, load_study

STUDY = Study(
    name="small",
    purpose="For tests.",
    methods=(
        Method("strided", "digits_hybrid"),
        Method("learned", "digits_hybrid"),
        Method("matched", "digits_hybrid", matched_to="learned", match="maps"),
    ),
    data=("digits",),
    seeds=(1, 2),
)

# Stands for the training in the tests of what a sweep does with it: a process that notes when it began and ended.
TRAINER = """
import json, os, pathlib, sys, time
options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
folder = pathlib.Path(options["workdir"])
began = time.time()
with open(folder / "attempts", "a") as file:
    print(sys.argv[1:], file=file)
attempts = len((folder / "attempts").read_text().splitlines())
print("epoch 1/2  loss 1.0", flush=True)
{body}
summary = dict(test_accuracy=0.5, macs=1, training_seconds=0.0, began=began, ended=time.time(),
               threads=os.environ.get("TF_NUM_INTRAOP_THREADS"), poolings=[])
(folder / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def use(body: str) -> None:
        script = tmp_path / "trainer.py"
        script.write_text(TRAINER.format(body=textwrap.dedent(body)))
        monkeypatch.setattr(scheduler, "TRAIN", [sys.executable, str(script)])
        monkeypatch.setattr(scheduler, "POLL_SECONDS", 0.02)
        monkeypatch.setattr(costs, "matched_bindings", lambda cell, *_: ["matched = 1"] if cell.reference else [])

    return use


def summary_of(cell: Cell, runs: Path) -> dict[str, float]:
    return json.loads((cell.folder(runs) / "summary.json").read_text())


def attempts_at(cell: Cell, runs: Path) -> list[str]:
    path = cell.folder(runs) / "attempts"
    return path.read_text().splitlines() if path.exists() else []


def run(cells: list[Cell], runs: Path, jobs: int = 2) -> scheduler.Sweep:
    result = scheduler.Sweep(cells, str(runs), jobs)
    result.run()
    return result


def test_each_cell_is_trained_as_its_study_says(trainer: Callable[[str], None], tmp_path: Path):
    trainer("")
    cells = STUDY.cells()
    assert not run(cells, tmp_path).broken
    for cell in cells:
        (line,) = attempts_at(cell, tmp_path)
        assert "--gin_file=digits_hybrid" in line
        assert f"--seed={cell.seed}" in line
        assert "--gin_bindings=resnet.resnet18.strides = [1, 1, 2, 2, 2]" in line
        assert ("--gin_bindings=matched = 1" in line) == (cell.method.name == "matched")
        described = fingerprint.description(cell) | ({"matched": ["matched = 1"]} if cell.reference else {})
        assert json.loads((cell.folder(tmp_path) / fingerprint.CELL_FILE).read_text()) == described


def test_as_many_run_at_a_time_as_asked_for_on_as_many_cores(trainer: Callable[[str], None], tmp_path: Path):
    trainer("time.sleep(0.2)")
    cells = STUDY.cells()
    run(cells, tmp_path, jobs=2)
    spans = [(summary["began"], summary["ended"]) for summary in (summary_of(cell, tmp_path) for cell in cells)]
    at_a_time = [sum(begin <= moment <= end for begin, end in spans) for moment, _ in spans]
    assert max(at_a_time) == 2
    assert summary_of(cells[0], tmp_path)["threads"] == str(max(1, len(os.sched_getaffinity(0)) // 2))


def test_what_is_matched_waits_for_what_it_is_matched_to(trainer: Callable[[str], None], tmp_path: Path):
    trainer("time.sleep(0.1)")
    cells = STUDY.cells()
    run(cells, tmp_path, jobs=6)
    for cell in cells:
        if cell.reference is not None:
            assert summary_of(cell, tmp_path)["began"] >= summary_of(cell.reference, tmp_path)["ended"]


def test_finished_cells_are_not_run_again(trainer: Callable[[str], None], tmp_path: Path):
    trainer("")
    cells = STUDY.cells()
    finish(cells[0], tmp_path)
    run(cells, tmp_path)
    assert not attempts_at(cells[0], tmp_path)
    run(cells, tmp_path)
    assert all(len(attempts_at(cell, tmp_path)) == 1 for cell in cells[1:])


def test_what_is_recorded_is_not_run_again_and_others_are_matched_to_it(
    trainer: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The folders of the runs may be on another machine: their rows are enough."""
    matched = costs.matched_bindings
    trainer("")
    cells = STUDY.cells()
    for cell in cells[:2]:
        finish(cell, tmp_path / "before")
    records.record(STUDY, str(tmp_path / "before"), tmp_path)
    recorded = records.recorded_costs(STUDY, tmp_path)
    assert list(recorded) == cells[:2]
    for cell in cells[:2]:
        assert recorded[cell] == costs.cell_cost(cell, str(tmp_path / "before"))
    assert matched(cells[2], str(tmp_path), recorded) == matched(cells[2], str(tmp_path / "before"))

    sweep_of_the_rest = scheduler.Sweep(cells, str(tmp_path), 2, recorded=recorded)
    sweep_of_the_rest.run()
    assert not sweep_of_the_rest.broken
    assert [len(attempts_at(cell, tmp_path)) for cell in cells] == [0, 0, 1, 1, 1, 1]


def test_a_broken_run_is_tried_once_more(
    trainer: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    trainer("if attempts == 1 and 'strided' in str(folder): sys.exit('error: the disk is full')")
    cells = STUDY.cells()
    assert not run(cells, tmp_path).broken
    assert [len(attempts_at(cell, tmp_path)) for cell in cells] == [2, 1, 1, 2, 1, 1]
    assert f"again   {cells[0].name}  exit code 1: error: the disk is full" in capsys.readouterr().out


def test_a_run_broken_twice_is_reported_with_what_needs_it_and_the_others_run(
    trainer: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    trainer("if 'learned-2,2,2-seed1' in str(folder): os.kill(os.getpid(), 9)")
    cells = STUDY.cells()
    broken = run(cells, tmp_path).broken
    assert broken == {
        cells[1]: "exit code -9: epoch 1/2  loss 1.0",
        cells[2]: f"needs {cells[1].name}, which is broken",
    }
    assert [cell.is_finished(tmp_path) for cell in cells] == [True, False, False, True, True, True]
    assert f"broken  {cells[1].name}  exit code -9" in capsys.readouterr().out


def test_a_run_that_ends_badly_after_its_summary_is_finished(trainer: Callable[[str], None], tmp_path: Path):
    trainer("import atexit; atexit.register(os._exit, 1)")
    cells = STUDY.cells()[:1]
    assert not run(cells, tmp_path).broken
    assert len(attempts_at(cells[0], tmp_path)) == 1


def test_a_cell_that_cannot_be_started_is_reported_and_the_others_run(
    trainer: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer("")

    def no_width(cell: Cell, runs: str, recorded: Any) -> list[str]:
        raise ValueError("no width has these MACs")

    monkeypatch.setattr(costs, "matched_bindings", no_width)
    cells = STUDY.cells()
    broken = run(cells, tmp_path).broken
    assert broken == dict.fromkeys((cells[2], cells[5]), "no width has these MACs")
    assert [cell.is_finished(tmp_path) for cell in cells] == [True, True, False] * 2


def test_a_cell_that_another_process_runs_is_left_to_it(
    trainer: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    trainer("")
    cells = STUDY.cells()[:2]
    folder = cells[0].folder(tmp_path)
    folder.mkdir(parents=True)
    ready = tmp_path / "ready"
    code = f"""
import fcntl, pathlib, time
lock = open({str(folder / ".lock")!r}, "w")
fcntl.flock(lock, fcntl.LOCK_EX)
pathlib.Path({str(ready)!r}).touch()
time.sleep(1)
pathlib.Path({str(folder / "summary.json")!r}).write_text('{{"test_accuracy": 1, "macs": 1, "training_seconds": 1}}')
"""
    with subprocess.Popen([sys.executable, "-c", code]):
        while not ready.exists():
            time.sleep(0.01)
        run(cells, tmp_path)
    assert not attempts_at(cells[0], tmp_path)
    assert len(attempts_at(cells[1], tmp_path)) == 1


def test_a_training_whose_sweep_is_killed_keeps_its_cell(trainer: Callable[[str], None], tmp_path: Path):
    trainer("time.sleep(1)")
    (cell, *_) = STUDY.cells()
    running = scheduler.Sweep([cell], str(tmp_path), 1)
    running._start_what_can()
    (started,) = running._running.values()
    started.lock.close()  # As the kernel does with a process that is killed.
    with open(cell.folder(tmp_path) / ".lock") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    started.process.kill()
    started.process.wait()
    with open(cell.folder(tmp_path) / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_time_that_is_left_follows_the_runs_that_are_most_alike(tmp_path: Path):
    cells = STUDY.cells()
    running = scheduler.Sweep(cells, str(tmp_path), 2)
    running._waiting = cells[3:]
    running._seconds = dict(zip(cells, (10.0, 100.0, 40.0)))  # Of the first seed.
    assert running._seconds_left() == (10 + 100 + 40) / 2


def test_the_list_says_what_is_finished_recorded_begun_and_to_do(tmp_path: Path):
    cells = STUDY.cells()[:4]
    finish(cells[0], tmp_path)
    cells[1].folder(tmp_path).mkdir(parents=True)
    (cells[1].folder(tmp_path) / "train.log").write_text("epoch 1/5  loss 2\nepoch 2/5  loss 1\n")
    assert list(sweep.listing(cells, str(tmp_path), "test", recorded=[cells[0], cells[3]])) == [
        f"finished  {cells[0].name}  90.00%, 0.002 G MACs, 4 s",
        f"begun     {cells[1].name}  (epoch 2/5)",
        f"to do     {cells[2].name}",
        f"recorded  {cells[3].name}",
    ]


def test_a_dry_run_lists_each_run_with_its_macs(tmp_path: Path):
    cells = [cell for cell in load_study("digits").cells() if cell.strides == (2, 2, 2)]
    finish(cells[0], tmp_path, macs=123_000_000)
    lines = list(sweep.dry_run(cells, str(tmp_path)))
    assert lines[0] == f"{cells[0].name}  0.123 G MACs after training"
    assert lines[1].endswith("0.016 G MACs at the start")


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_shard_that_is_none_is_refused(text: str):
    with pytest.raises(ValueError, match=r"--shard must be i/n with i from 1 to n"):
        sweep.parse_shard(text)


# --- Real trainings --------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_a_sweep_killed_three_times_ends_with_the_rows_of_one_left_alone(tmp_path: Path):
    study = load_study("digits")
    root = ROOT

    def start(runs: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "experiments.sweep", "--study=digits", "--jobs=2", f"--runs={tmp_path / runs}"]
        return subprocess.Popen(command, cwd=root, text=True, stdout=subprocess.DEVNULL, start_new_session=True)

    def interrupted(finished: int) -> bool:
        """Whether so many cells are finished, and another one has a backup."""
        cells = [cell for cell in study.cells() if not cell.is_finished(tmp_path / "killed")]
        backups = [cell.folder(tmp_path / "killed") / "backup" for cell in cells]
        return len(study.cells()) - len(cells) >= finished and any(any(backup.glob("*.index")) for backup in backups)

    assert start("left_alone").wait() == 0
    for finished, kill in ((0, os.kill), (2, os.killpg), (5, os.kill)):  # The second time with all trainings.
        killed = start("killed")
        while not interrupted(finished):
            assert killed.poll() is None
            time.sleep(0.05)
        kill(killed.pid, signal.SIGKILL)
        killed.wait()
    assert start("killed").wait() == 0

    rows, epochs = (
        [
            records.record(study, str(tmp_path / runs), tmp_path / f"{runs}_csv")[file]
            for runs in ("left_alone", "killed")
        ]
        for file in (0, 1)
    )
    for row in (*rows[0], *rows[1]):
        assert float(row.pop("training_seconds")) > 1
    logs = [(cell.folder(tmp_path / "killed") / scheduler.LOG_FILE).read_text() for cell in study.cells()]
    assert any("after epoch 1" in log for log in logs)
    assert rows[0] == rows[1]
    assert epochs[0] == epochs[1]
    assert len(rows[0]) == len(study.cells())
