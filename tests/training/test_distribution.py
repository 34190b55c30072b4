"""Several devices and several machines train as one."""

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.replicas import two_cpus
from support.tiny_runs import SMALL_HYBRID

from diffstride_hybrid.common import signals
from diffstride_hybrid.config import gin_files, gin_names
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from experiments.launch_local import start_workers

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def gin_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small_hybrid.gin"
    path.write_text(SMALL_HYBRID)
    return path


def outcome(workers: list[subprocess.Popen[str]], timeout: float = 120) -> list[tuple[int, str, str]]:
    ends = []
    for worker in workers:
        out, err = worker.communicate(timeout=timeout)
        ends.append((worker.returncode, out, err))
    return ends


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Any]:
    """Starts two workers of the train command, and ends them with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> list[subprocess.Popen[str]]:
        workers = start_workers(2, arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        started.extend(workers)
        return workers

    yield start
    for worker in started:
        with worker:
            worker.kill()


@pytest.fixture(scope="module")
def on_one_device(gin_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    return run_here(gin_file, tmp_path_factory.mktemp("one_device"), tf.distribute.get_strategy())


def run_here(gin_file: Path, workdir: Path, strategy: tf.distribute.Strategy) -> tuple[Path, dict[str, Any]]:
    gin_files.parse([str(gin_file)], [])
    with strategy.scope():
        return workdir, gin_names.configured_train(workdir=str(workdir))


def assert_same_run(run: tuple[Path, dict[str, Any]], expected: tuple[Path, dict[str, Any]]) -> None:
    """Compares weights after twenty steps.

    Sums over replicas round otherwise than sums over the batch. In twenty steps that comes to 4e-5 of the greatest
    weight, which leaves a margin of five; one step left out, or one replica's share counted twice, gives 1e-2.
    """
    model, other = (keras.saving.load_model(folder / "final.keras") for folder, _ in (run, expected))
    for weight, other_weight in zip(model.weights, other.weights, strict=True):
        np.testing.assert_allclose(
            weight.numpy(), other_weight.numpy(), rtol=2e-4, atol=2e-4 * scale_of(weight), err_msg=weight.path
        )
    strides, other_strides = (
        np.concatenate([layer.strides.numpy() for layer in diffstride_layers(m)]) for m in (model, other)
    )
    np.testing.assert_allclose(strides, other_strides, rtol=1e-6)
    assert run[1]["test_accuracy"] == pytest.approx(expected[1]["test_accuracy"], abs=1e-6)
    assert run[1]["test_loss"] == pytest.approx(expected[1]["test_loss"], rel=1e-4)
    assert run[1]["steps"] == expected[1]["steps"] == 20


def scale_of(weight: keras.Variable) -> float:
    """Betas and moving means start at 0 and have hardly moved: they are held to the scale of what they are added to."""
    return 1.0 if weight.name in ("beta", "moving_mean") else float(np.abs(weight.numpy()).max())


def test_two_devices_train_as_one(gin_file: Path, on_one_device: tuple[Path, dict[str, Any]], tmp_path: Path):
    run = run_here(gin_file, tmp_path, two_cpus())
    assert_same_run(run, on_one_device)
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["strategy"], record["replicas"], record["workers"]) == ("mirrored", 2, 1)


def test_two_workers_train_as_one(
    gin_file: Path, on_one_device: tuple[Path, dict[str, Any]], tmp_path: Path, launch: Any
):
    ends = outcome(launch(f"--gin_file={gin_file}", "--workdir=run"))
    assert [code for code, *_ in ends] == [0, 0], ends
    folder = tmp_path / "run"
    assert_same_run((folder, json.loads((folder / "summary.json").read_text())), on_one_device)
    record = json.loads((folder / "run.json").read_text())
    assert (record["strategy"], record["replicas"], record["workers"]) == ("multi_worker", 2, 2)
    chief, other = (out for _, out, _ in ends)
    assert chief.count("epoch") > 2 and "test accuracy" in chief
    assert "epoch" not in other and "waiting for all 2 workers" in other
    assert not list(folder.rglob("*partial*"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1], ids=["chief", "other"])
def test_a_lost_worker_ends_the_other_and_both_resume(gin_file: Path, tmp_path: Path, launch: Any, victim: int):
    arguments = (f"--gin_file={gin_file}", "--workdir=run", "--gin_bindings=train.train.num_epochs = 500")
    workers = launch(*arguments)
    wait_for_epochs(tmp_path / "run", 2, workers)
    workers[victim].kill()
    killed = time.monotonic()
    code, _, err = outcome([workers[1 - victim]], timeout=60)[0]
    assert time.monotonic() - killed < 40
    assert code == 1
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "One of the 2 workers is gone. Start all of them again: training in run goes on from its last backup" in line
    epochs = len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) - 1
    workers = launch(*arguments)
    wait_for_epochs(tmp_path / "run", epochs + 1, workers)
    workers[0].kill()
    resumed = re.search(r"resuming run after epoch (\d+)", workers[0].communicate()[0])
    assert int(resumed[1]) in (epochs - 1, epochs)


@pytest.mark.slow
def test_a_signal_to_one_worker_saves_and_stops_all(gin_file: Path, tmp_path: Path, launch: Any):
    arguments = (f"--gin_file={gin_file}", "--workdir=run", "--gin_bindings=train.train.num_epochs = 500")
    workers = launch(*arguments)
    wait_for_epochs(tmp_path / "run", 2, workers)
    workers[1].send_signal(signal.SIGTERM)
    for (code, _, err), name in zip(outcome(workers, timeout=60), ("a signal to another worker", "SIGTERM")):
        assert code == signals.EXIT_CODE, err
        assert "Traceback" not in err
        steps = int(
            re.search(rf"^stopped by {name} after ([\d,]+) steps: start", err, re.MULTILINE)[1].replace(",", "")
        )
    assert steps >= 20
    assert (tmp_path / "run" / "backup" / f"ckpt-{steps}-1.index").exists()
    workers = launch(*arguments)
    wait_for_epochs(tmp_path / "run", steps // 10 + 1, workers)
    workers[0].kill()
    assert f"resuming run after epoch {steps // 10}" in workers[0].communicate()[0]


def wait_for_epochs(folder: Path, count: int, workers: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 120
    metrics = folder / "metrics.csv"
    while not metrics.exists() or len(metrics.read_text().splitlines()) <= count:
        assert all(worker.poll() is None for worker in workers), workers
        assert time.monotonic() < deadline
        time.sleep(0.1)
