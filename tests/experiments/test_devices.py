"""The flags `--device` and `--minutes`, and what they tell the worker processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from support.command_flags import defined_flags
from support.paths import ROOT

from experiments import devices
from experiments.benchmark import __main__ as benchmark


def test_by_default_a_command_measures_on_the_cpu_without_a_limit():
    with defined_flags(devices.define_device_flags):
        flags.FLAGS(["command"])
        assert (flags.FLAGS.device, flags.FLAGS.minutes) == ("cpu", None)
    assert devices.seconds_to_measure("cpu", None) is None


def test_help_lists_the_flags_under_the_command():
    with defined_flags(benchmark.define_flags):
        modules = {flags.FLAGS.find_module_defining_flag(name) for name in ("device", "minutes", "repeats")}
    assert modules == {benchmark.__name__}


@pytest.mark.parametrize(("minutes", "seconds"), [(None, 570.0), (10.0, 570.0), (2.0, 90.0), (0.5, 15.0)])
def test_on_a_gpu_there_is_time_left_to_start_and_to_write(minutes: float | None, seconds: float):
    assert devices.seconds_to_measure("gpu", minutes) == seconds


@pytest.mark.parametrize("wrong", ["--device=tpu", "--minutes=0"])
def test_other_devices_and_no_time_are_refused(wrong: str):
    with defined_flags(devices.define_device_flags), pytest.raises(flags.Error, match=wrong[2:8]):
        flags.FLAGS(["command", wrong])


@pytest.mark.parametrize(
    ("given", "visible"), [({}, "0"), ({"CUDA_VISIBLE_DEVICES": "3,1"}, "3"), ({"CUDA_VISIBLE_DEVICES": ""}, "")]
)
def test_a_gpu_worker_sees_one_card_of_those_that_the_user_allows(given: dict[str, str], visible: str):
    assert devices.environment("gpu", given)["CUDA_VISIBLE_DEVICES"] == visible


def test_a_cpu_worker_sees_no_card():
    variables = devices.environment("cpu", {"CUDA_VISIBLE_DEVICES": "3", "JAX_PLATFORMS": "cuda"})
    assert variables == {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu", "KERAS_TORCH_DEVICE": "cpu"}


def test_the_error_says_what_was_found_and_what_hides_the_card():
    error = devices.no_card({"JAX": ["cpu:0"], "PyTorch": ["the CPU"]}, {"CUDA_VISIBLE_DEVICES": "-1"})
    assert "JAX found only cpu:0, PyTorch found only the CPU, where CUDA_VISIBLE_DEVICES is '-1'. See" in error
    assert "TensorFlow" not in error
    everything = {"TensorFlow": ["CPU:0"], "JAX": ["cpu:0"], "PyTorch": ["the CPU"]}
    assert len(devices.no_card(everything, {"CUDA_VISIBLE_DEVICES": "-1"})) < 500  # More would be cut off.


@pytest.mark.slow
def test_without_a_card_the_benchmark_ends_with_one_line(tmp_path: Path):
    output = tmp_path / "rows.csv"
    ended = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", "--device=gpu", f"--output={output}"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},  # This machine may have a card.
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert "--device=gpu looked for a GPU, and TensorFlow found only CPU:0, where CUDA_VISIBLE_DEVICES is '-1'" in line
    assert "nvidia-smi" in line and "pip install -e '.[cuda]'" in line and "--device=cpu" in line
    assert not output.exists()
