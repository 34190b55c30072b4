"""Runs the checks of this folder on JAX and on PyTorch, each in a process of its own, where nothing is TensorFlow."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import exchange

HERE = Path(__file__).parent

pytestmark = pytest.mark.long


def run_on(backend: str, *arguments: str) -> str:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), str(HERE)])
    # One thread: the processes of the test command share the cores, and PyTorch's threads wait for each other.
    settings = {"KERAS_BACKEND": backend, "PYTHONPATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **settings, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=HERE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def checked(backend: str, files: str, *options: str) -> None:
    settings = ("-c", "checks.ini", "--noconftest", "-p", "no:cacheprovider", "-p", "no:xdist", "-q")
    out = run_on(backend, "-m", "pytest", *settings, *options, *files.split())
    assert " passed" in out


@pytest.mark.parametrize(
    ("files", "backend"),
    [
        ("check_layers.py check_timing.py", "jax"),
        ("check_layers.py check_timing.py check_models.py", "torch"),
        ("check_timing.py", "tensorflow"),
        pytest.param("check_models.py", "jax", marks=pytest.mark.slow),
    ],
)
def test_the_checks_pass(files: str, backend: str):
    checked(backend, files, "-m", "not slow")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_slow_checks_pass(backend: str):
    for file in ("check_layers.py", "check_models.py"):
        checked(backend, file, "-m", "slow")


@pytest.mark.slow
@pytest.mark.parametrize("file", ["check_layers.py", "check_models.py"])
def test_the_checks_pass_on_tensorflow(file: str):
    checked("tensorflow", file, "-m", "not slow")


@pytest.mark.slow
def test_a_file_saved_on_one_backend_gives_the_same_on_the_others(tmp_path: Path):
    exchange.save(tmp_path)
    for backend in ("jax", "torch"):
        run_on(backend, "-m", "support.exchange", "save", str(tmp_path))
    for backend in ("jax", "torch"):
        assert run_on(backend, "-m", "support.exchange", "load", str(tmp_path)) == "6 files agree\n"
    assert exchange.load(tmp_path) == 6
