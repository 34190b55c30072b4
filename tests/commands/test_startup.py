"""What a command prints before its first useful line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import start_command, wait_for
from support.paths import ROOT

import experiments
from diffstride_hybrid.common import startup


def test_a_command_says_nothing_before_its_first_word(tmp_path: Path):
    quiet, noisy = (start_command("prepare", "--name=nothing", *flags, cwd=tmp_path) for flags in ([], [startup.FLAG]))
    lines = wait_for(quiet).err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: Unknown data set 'nothing'")
    assert len(wait_for(noisy).err.splitlines()) > 1


def test_an_experiment_says_nothing_before_its_first_word():
    command = [sys.executable, "-m", "experiments.sweep", "--study=digits", "--list"]
    variables = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=variables, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("python -m experiments.sweep --study=digits", "sweep"),
        ("python -X dev -mexperiments.frameworks", "frameworks"),
        ("python -m experiments.benchmark.release", None),
        ("python -m pytest tests/experiments", None),
    ],
)
def test_the_command_of_an_interpreter_is_known(arguments: str, name: str | None):
    assert experiments.command_of(arguments.split()) == name


def test_what_no_command_needs_is_not_imported(tmp_path: Path):
    """Each of these packages takes as long to import as a third of TensorFlow."""
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "sys.argv = ['-m']\n"  # As Python sets it while it imports the package of a command.
        "from diffstride_hybrid.common import startup\n"
        "import keras\n"
        "late = [name for name in ('sklearn', 'jax', 'matplotlib.figure') if name in sys.modules]\n"
        "assert not late, late\n"
        "import sklearn, matplotlib.pyplot\n"
        "from keras.src.visualization import plot_image_gallery\n"
        "pyplot = sys.modules['keras.src.visualization.plot_image_gallery'].plt\n"
        "assert pyplot.figure is matplotlib.pyplot.figure\n"
        "assert not [finder for finder in sys.meta_path if 'Later' in type(finder).__name__]\n"
    )
    result = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("has_gpu", [False, True])
def test_notes_are_dropped_and_all_else_is_passed_on(
    has_gpu: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(startup.glob, "glob", lambda pattern: ["/dev/nvidia0"] if has_gpu else [])
    notes = [
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
        "I0000 00:00:1795716936.229754    3221 port.cc:153] oneDNN custom operations are on.",
        "2026-11-26 18:00:00.123456: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.",
        "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow.",
    ]
    gpu = "E0000 00:00:1795716938.723752    3221 cuda_platform.cc:52] failed call to cuInit: INTERNAL"
    errors = [
        "W0000 00:00:1 1 a.cc:1] a warning",
        "E0000 00:00:1 1 a.cc:1] an error",
        "Traceback (most recent call last):",
    ]
    with startup.without_notes():
        for line in [*notes, gpu, *errors]:
            os.write(2, f"{line}\n".encode())
    os.write(2, b"afterwards\n")
    passed = [*([gpu] if has_gpu else []), *errors, "afterwards"]
    assert capfd.readouterr().err.splitlines() == passed


@pytest.mark.parametrize("by", ["variable", "file"])
def test_another_backend_is_refused_in_one_line(by: str, tmp_path: Path):
    environment = {"KERAS_HOME": str(tmp_path)}
    if by == "variable":
        environment["KERAS_BACKEND"] = "jax"
    else:
        (tmp_path / "keras.json").write_text('{"backend": "torch"}')
        environment["KERAS_BACKEND"] = ""
    ended = wait_for(start_command("train", "--gin_file=digits_hybrid", cwd=tmp_path, env=environment))
    (line,) = ended.err.splitlines()
    assert line.startswith("error: diffstride_hybrid needs Keras with TensorFlow for its commands, and ")
    assert ("KERAS_BACKEND says 'jax'" if by == "variable" else "keras.json says 'torch'") in line
    assert ended.code == 1


def test_a_backend_that_cannot_serve_is_refused_when_the_package_is_imported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("KERAS_BACKEND", "openvino")
    message = r"needs Keras with TensorFlow, JAX or PyTorch, and KERAS_BACKEND says 'openvino'. Set the environment"
    with pytest.raises(ImportError, match=message):
        startup.check_backend()
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    startup.check_backend()
    monkeypatch.setattr(startup.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="runs on tensorflow, which is not installed: pip install"):
        startup.check_backend()


def test_what_the_commands_need_is_named_if_it_is_missing(monkeypatch: pytest.MonkeyPatch):
    found = startup.importlib.util.find_spec
    monkeypatch.setattr(startup.importlib.util, "find_spec", lambda name: None if name == "gin" else found(name))
    with pytest.raises(SystemExit, match=r"error: the commands need gin: pip install 'diffstride_hybrid\[train\]'"):
        startup.start_tensorflow()
