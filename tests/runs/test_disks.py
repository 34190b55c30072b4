"""Disks that are full, fail or are gone."""

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.interrupted_runs import At, assert_same_run, stopped_at, trained
from support.tiny_runs import rows_of

from diffstride_hybrid.common import files
from diffstride_hybrid.runs import lock
from diffstride_hybrid.runs.folder import RunFolder
from diffstride_hybrid.training.loop import TrainingLoop

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("uncompiled")]

SLOW = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[str], Any]]]:
    """A file system in memory of its own, and what mounts it again with another option."""
    folder = tmp_path / "disk"
    folder.mkdir()

    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting needs more rights than these tests have here")
    try:
        yield folder, lambda option: subprocess.run(["mount", "-o", f"remount,{option}", str(folder)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, left: int) -> None:
    """Fills a file system but for some bytes."""
    free = shutil.disk_usage(folder).free
    with open(folder / "filling", "wb") as file:
        file.write(bytes(max(0, free - left)))


@pytest.mark.parametrize("left", [0, *(pytest.param(left, marks=SLOW) for left in (10_000, 40_000, 100_000, 160_000))])
def test_a_full_disk_stops_a_run_and_leaves_the_last_good_state(
    left: int, small_disk: tuple[Path, Callable[[str], Any]], left_alone: Path
):
    disk, _ = small_disk
    run = disk / "run"
    with pytest.raises(OSError, match=rf"{run}.* cannot be written: ") as error:
        trained(run, callbacks=[At(7, lambda: fill(disk, left))], backup_every=2)
    assert "\n" not in str(error.value)
    for path in (run / "metrics.csv", run / "strides.csv"):
        assert rows_of(path)
    assert not list(run.rglob(".partial*"))
    (disk / "filling").unlink()
    trained(run, backup_every=2)
    assert_same_run(run, left_alone)


@SLOW
def test_a_run_goes_on_when_its_disk_can_be_written_to_again(
    small_disk: tuple[Path, Callable[[str], Any]], left_alone: Path
):
    disk, remount = small_disk
    run = disk / "run"
    stopped_at(9, run, backup_every=2)
    remount("ro")
    with pytest.raises(OSError, match=rf"The workdir {run} cannot be written to: Read-only file system"):
        trained(run, backup_every=2)
    remount("rw")
    trained(run, backup_every=2)
    assert_same_run(run, left_alone)


@pytest.fixture
def failing_disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[], Any]]]:
    """An ext4 file system in a file, and what has it find an error, at which it becomes read-only as disks then do."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    for command in (["mkfs.ext4", "-q", image], ["mount", "-o", "loop,errors=remount-ro", image, folder]):
        if shutil.which(command[0]) is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting needs more rights, or tools, than these tests have here")
    try:
        found = subprocess.run(["findmnt", "-no", "SOURCE", folder], capture_output=True, text=True, check=True)
        trigger = Path("/sys/fs/ext4", Path(found.stdout.strip()).name, "trigger_fs_error")
        yield folder, lambda: trigger.write_text("found by a test")
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@SLOW
@pytest.mark.parametrize("backup_every", [2, None])
def test_a_disk_that_fails_under_a_run_stops_it_and_keeps_the_last_good_state(
    backup_every: int | None, failing_disk: tuple[Path, Callable[[], Any]], left_alone: Path, tmp_path: Path
):
    disk, fail_at_last = failing_disk
    run = disk / "run"
    with pytest.raises(OSError, match=rf"{run}.* cannot be written: ") as error:
        trained(run, callbacks=[At(7, fail_at_last)], backup_every=backup_every)
    assert "\n" not in str(error.value)
    with pytest.raises(OSError, match=rf"The workdir {run} cannot be written to: Read-only file system"):
        trained(run)
    copy = shutil.copytree(run, tmp_path / "copy")
    trained(copy)
    assert_same_run(copy, left_alone)


@pytest.mark.parametrize("backup_every", [1, None])
def test_a_workdir_that_is_gone_stops_a_run(tmp_path: Path, backup_every: int | None):
    run = tmp_path / "run"
    with pytest.raises(OSError, match=rf"{run}.* (is gone|cannot be written)"):
        trained(run, callbacks=[At(2, lambda: shutil.rmtree(run))], backup_every=backup_every, num_epochs=1)
    assert not run.exists()


@pytest.mark.parametrize("on_not_finite", ["stop", "roll_back"])
def test_a_run_leaves_the_backups_alone_that_another_run_keeps_in_its_folder(
    on_not_finite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = tmp_path / "run"
    names = {f"ckpt-9-1.{suffix}" for suffix in ("index", "data-00000-of-00001")}

    def begin_another() -> None:
        shutil.rmtree(run)
        (run / "backup").mkdir(parents=True)
        for name in names:
            (run / "backup" / name).touch()
        if on_not_finite == "roll_back":
            monkeypatch.setattr(TrainingLoop, "train_steps", lambda *args: False)

    with pytest.raises(FileNotFoundError, match=rf"{run} is gone"):
        trained(run, callbacks=[At(2, begin_another)], on_not_finite=on_not_finite, backup_every=3)
    assert {path.name for path in (run / "backup").iterdir()} == names


def test_what_a_killed_export_has_left_does_not_keep_a_run_from_going_on(tmp_path: Path):
    stopped_at(3, tmp_path, backup_every=2)
    for folder in (tmp_path / ".partial.a1b2", tmp_path / "figures/.partial.c3"):
        (folder / "model").mkdir(parents=True)
        (folder / "model/saved_model.pb").touch()
    (tmp_path / ".partial.final.keras").touch()
    trained(tmp_path)
    assert not list(tmp_path.rglob(".partial*"))


@pytest.fixture
def without_folder_syncs(monkeypatch: pytest.MonkeyPatch, warned: list[str]) -> list[str]:
    """A file system whose folders cannot be synced and which has no locks, as some of networks and FUSE. The log."""
    fsync = os.fsync

    def refuse(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    files._warn_of_lost_safety.cache_clear()
    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(lock.fcntl, "flock", no_locks)
    return warned


def test_a_run_trains_where_folders_cannot_be_synced_or_locked(
    without_folder_syncs: list[str], tmp_path: Path, left_alone: Path
):
    trained(tmp_path / "run")
    assert_same_run(tmp_path / "run", left_alone)
    assert not (tmp_path / "run" / RunFolder.LOCK).exists()
    assert sum("cannot be synced" in message for message in without_folder_syncs) == 1
    assert sum("start no second run in it" in message for message in without_folder_syncs) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_while_it_syncs_is_no_small_matter(
    number: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"a\.csv cannot be written"):
        files.write_whole(tmp_path / "a.csv", "a,b\n")
    assert not list(tmp_path.iterdir())
