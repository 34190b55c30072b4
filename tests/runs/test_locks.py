"""Two processes in one folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.interrupted_runs import trained
from support.tiny_runs import contents

from diffstride_hybrid.runs import lock as run_lock
from diffstride_hybrid.runs.folder import RunFolder

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("uncompiled")]

SLOW = pytest.mark.slow


@SLOW
def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path: Path):
    code = (
        "import sys, time\n"
        "from diffstride_hybrid.runs.folder import RunFolder\n"
        f"with RunFolder({str(tmp_path)!r}).locked():\n"
        "    print('locked', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        before = contents(tmp_path)
        with pytest.raises(OSError, match=rf"Process {process.pid} trains in {tmp_path}: wait for it, or choose"):
            trained(tmp_path)
        assert contents(tmp_path) == before
        process.kill()
    trained(tmp_path, num_epochs=1, steps_per_epoch=1)
    assert (tmp_path / "summary.json").exists()


def test_a_lock_that_its_owner_has_just_removed_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder, taken = RunFolder(tmp_path), []
    flock = run_lock.fcntl.flock

    def flock_when_the_owner_leaves(lock: int, operation: int) -> None:
        if not taken:
            (tmp_path / RunFolder.LOCK).unlink()
        taken.append(lock)
        flock(lock, operation)

    monkeypatch.setattr(run_lock.fcntl, "flock", flock_when_the_owner_leaves)
    with folder.locked():
        assert (tmp_path / RunFolder.LOCK).read_text() == str(os.getpid())
    assert len(taken) == 2
    assert not list(tmp_path.iterdir())


def test_a_folder_made_anew_belongs_to_who_locks_it(tmp_path: Path):
    path = tmp_path / "run"
    first, second = RunFolder(path), None
    with first.locked():
        shutil.rmtree(path)
        second = RunFolder(path)
        with second.locked():
            with pytest.raises(OSError, match=rf"The workdir {path} is gone"):
                first.write_text("notes.txt", "from the first")
            second.write_text("notes.txt", "from the second")
            with pytest.raises(OSError, match=rf"Process {os.getpid()} trains in {path}: wait for it"), first.locked():
                pass
    assert (path / "notes.txt").read_text() == "from the second"
