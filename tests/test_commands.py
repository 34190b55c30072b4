import contextlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gin
import keras
import numpy as np
import pytest
from absl import flags, logging
from absl.testing import flagsaver
from PIL import Image
from support.command_flags import defined_flags
from support.damage import empty, flip_a_bit, truncate

from diffstride_hybrid import __main__, command_line
from diffstride_hybrid.common import signals
from diffstride_hybrid.common.files import read_rows
from diffstride_hybrid.config import gin_files, gin_names
from diffstride_hybrid.data.images import normalised
from diffstride_hybrid.data.loading import load_datasets
from experiments import figures
from experiments.studies.study import load_study

pytestmark = pytest.mark.long

TINY = {
    "train.train.num_epochs": 1,
    "train.train.steps_per_epoch": 2,
    "resnet.resnet18.width": 4,
    "data.load_datasets.image_size": 16,
    "data.load_datasets.batch_size": 64,
}


class Result(NamedTuple):
    """How a command ended."""

    code: Any
    out: str
    err: str


def options_of(bindings: dict[str, Any]) -> list[str]:
    return [f"--gin_bindings={name} = {value}" for name, value in {**TINY, **bindings}.items()]


def start_command(module: str, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """Starts a command as a user does."""
    command = [sys.executable, "-m", f"diffstride_hybrid.{module}", *arguments]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(process: subprocess.Popen[str]) -> Result:
    with process:
        out, err = process.communicate()
    return Result(process.returncode, out, err)


@contextlib.contextmanager
def command(module: str) -> Iterator[Any]:
    """A command's module, with its flags defined while the context lasts."""
    main = importlib.import_module(f"diffstride_hybrid.{module}")
    with defined_flags(main.define_flags, command_line.traceback_flag):
        yield main


def run_here(module: str, *arguments: str) -> Result:
    """Runs a command in this process, which takes seconds less than starting another."""
    code, out, err = 0, io.StringIO(), io.StringIO()
    verbosity = logging.get_verbosity()
    with command(module) as main, flagsaver.flagsaver():
        remaining = flags.FLAGS([module, *arguments])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                command_line.reporting_errors(main.main, takes_arguments=module == "predict")(remaining)
            except SystemExit as exit_of_command:
                code = exit_of_command.code
    logging.set_verbosity(verbosity)
    return Result(code, out.getvalue(), err.getvalue())


def assert_one_clear_line(result: Result, *culprits: str) -> None:
    assert result.code not in (0, None)
    assert "Traceback" not in result.err + result.out
    lines = [line for line in result.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.err
    assert len(lines[0]) < 600
    assert "in user code" not in lines[0]
    for culprit in culprits:
        assert culprit in lines[0]


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def started_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A run of a shipped config, found by its bare name from a folder elsewhere, which goes on while tests pass."""
    cwd = tmp_path_factory.mktemp("elsewhere")
    unread = {"pooling.FixedSpectralPooling.norm": "'ortho'"}
    process = start_command("train", "--gin_file=digits_hybrid", "--seed=3", *options_of(unread), cwd=cwd)
    with process:
        yield cwd / "runs" / "digits_hybrid", process
        process.kill()


@pytest.fixture(scope="module")
def finished(started_run: tuple[Path, subprocess.Popen[str]]) -> tuple[Path, Result]:
    """The folder of that run, and how it ended."""
    folder, process = started_run
    result = wait_for(process)
    assert result.code == 0, result.err
    return folder, result


# --- Flags and bindings ----------------------------------------------------------------------------------------------


class NotTrained(Exception):
    """Ends a run before it costs anything."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts the command and returns what it would have trained with."""

    def start(*arguments: str) -> dict[str, Any]:
        with command("train") as main, flagsaver.flagsaver():
            given: dict[str, Any] = {}

            def train(**options: Any) -> None:
                given.update(gin.get_bindings("train.train"), **options)
                raise NotTrained

            monkeypatch.setattr(main.gin_names, "train", train)
            remaining = flags.FLAGS(["train", *arguments])
            with pytest.raises(NotTrained):
                main.main(remaining)
        return given

    return start


def test_the_later_of_two_bindings_wins(started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.gin").write_text("train.train.num_epochs = 5\ntrain.train.steps_per_epoch = 6\n")
    options = ["--gin_file=base.gin", "--gin_file=mine.gin", "--gin_bindings=train.train.num_epochs = 7"]
    given = started(*options, "--gin_bindings=train.train.num_epochs = 8")
    assert (given["num_epochs"], given["steps_per_epoch"]) == (8, 6)
    assert given["workdir"] == "runs/mine"


def test_the_folder_is_that_of_the_flag_or_the_config(started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    options = ["--gin_file=base", "--gin_bindings=train.train.workdir = 'bound'"]
    assert started(*options)["workdir"] == "bound"
    assert started(*options, "--workdir=given")["workdir"] == "given"


def test_the_seed_is_that_of_the_flag_or_the_config(started: Any, tmp_path: Path):
    options = ["--gin_file=base", f"--workdir={tmp_path}"]
    bound = [*options, "--gin_bindings=train.train.seed = 7"]
    assert started(*options).get("seed", 1) == 1
    assert started(*bound)["seed"] == 7
    assert started(*bound, "--seed=9")["seed"] == 9


def test_the_folder_of_the_data_is_that_of_the_flag(started: Any, tmp_path: Path):
    folder = "/some/folder with 'quotes'"
    started("--gin_file=base", f"--workdir={tmp_path}", f"--data_dir={folder}")
    assert gin.query_parameter("data.load_datasets.data_dir") == folder


@pytest.mark.parametrize("name", ["digits_hybrid", "digits_hybrid.gin"])
def test_a_shipped_config_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.chdir(tmp_path)
    assert Path(gin_files.find_gin_file(name)) == gin_files.shipped_configs() / "digits_hybrid.gin"


def test_a_config_is_found_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "folder" / "mine.gin"
    path.parent.mkdir()
    path.touch()
    for name in (str(path), "folder/mine.gin"):
        assert Path(gin_files.find_gin_file(name)).samefile(path)


# --- Mistakes --------------------------------------------------------------------------------------------------------

DIFFSTRIDE = {"resnet.Resnet.pooling_cls": "@pooling.DiffStride"}
AUGMENTED = {"data.load_datasets.augment_fn": "@data.augment"}

WRONG_BINDINGS = {
    "a name that does not exist": ({"train.trian.num_epochs": 1}, ["train.trian"]),
    "a reference that does not exist": ({"resnet.Resnet.pooling_cls": "@pooling.DifStride"}, ["@pooling.DifStride"]),
    "a parameter that does not exist": ({"train.train.num_epoch": 1}, ["train.train", "'num_epoch'"]),
    "a parameter of a layer that does not exist": ({"pooling.DiffStride.smothness": 1}, ["'smothness'"]),
    "a parameter that does not exist, by a short name": ({"batch_norm.momentun": 0.9}, ["batch_norm", "'momentun'"]),
    "a parameter of a model that does not exist": ({"resnet.resnet18.widht": 1}, ["'widht'"]),
    "epochs as text": ({"train.train.num_epochs": "'three'"}, ["train.train.num_epochs", "whole number", "'three'"]),
    "no epochs": ({"train.train.num_epochs": 0}, ["train.train.num_epochs", "at least 1", "0"]),
    "an unknown precision": ({"train.train.dtype_policy": "'bf16'"}, ["train.train.dtype_policy", "'bf16'"]),
    "an optimiser as text": ({"train.train.optimizer_cls": "'sgd'"}, ["optimizer_cls", "'sgd'"]),
    "an optimiser made already": (
        {"train.train.optimizer_cls": "@tf.keras.optimizers.Adam()"},
        ["train.train.optimizer_cls"],
    ),
    "a loss made already": (
        {"train.train.loss_cls": "@tf.keras.losses.CategoricalCrossentropy()"},
        ["train.train.loss_cls"],
    ),
    "data loaded already": ({"train.train.load_data_fn": "@data.load_datasets()"}, ["train.train.load_data_fn"]),
    "a model of a wrong type": ({"train.train.model_cls": 3}, ["train.train.model_cls", "3"]),
    "a smoothness factor as text": (
        {**DIFFSTRIDE, "pooling.DiffStride.smoothness_factor": "'x'"},
        ["smoothness", "'x'"],
    ),
    "a negative smoothness factor": ({**DIFFSTRIDE, "pooling.DiffStride.smoothness_factor": -1}, ["smoothness", "-1"]),
    "a stride below 1": (
        {**DIFFSTRIDE, "resnet.resnet18.strides": [1, 1, 0.5, 2, 2]},
        ["strides", "at least 1", "0.5"],
    ),
    "a stride of convolutions below 1": ({"resnet.resnet18.strides": [1, 1, 0.5, 2, 2]}, ["strides", "0.5"]),
    "a stride as text": ({"resnet.resnet18.strides": [1, 1, "x", 2, 2]}, ["strides", "'x'"]),
    "one stride for all": ({"resnet.resnet18.strides": 2}, ["strides", "2"]),
    "too few strides": ({"resnet.resnet18.strides": [1, 2]}, ["strides", "2"]),
    "no channels": ({"resnet.resnet18.width": 0}, ["width", "0"]),
    "channels as text": ({"resnet.resnet18.width": "'wide'"}, ["width", "'wide'"]),
    "an unknown place in the head": ({"resnet.Resnet.head_placement": "'top'"}, ["head_placement", "'top'"]),
    "an unknown activation": ({"resnet.Resnet.output_activation": "'sofmax'"}, ["activation", "sofmax"]),
    "logits for probabilities": ({"resnet.Resnet.output_activation": None}, ["output_activation", "from_logits"]),
    "maps too small to crop": (
        {**DIFFSTRIDE, "data.load_datasets.image_size": 1},
        ["DiffStride", "2x2", "(None, 1, 1"],
    ),
    "an unknown data set": ({"data.load_datasets.name": "'cifar11'"}, ["'cifar11'", "Did you mean", "'cifar10'"]),
    "a data set without images": ({"data.load_datasets.name": "'ag_news_subset'"}, ["'ag_news_subset'", "images"]),
    "images of different sizes": (
        {"data.load_datasets.name": "'imagenet2012'", "data.load_datasets.image_size": None},
        ["'imagenet2012'", "data.load_datasets.image_size"],
    ),
    "labels smoothed away": (
        {"tf.keras.losses.CategoricalCrossentropy.label_smoothing": 1.5},
        ["CategoricalCrossentropy.label_smoothing", "below 1", "1.5"],
    ),
    "a batch of True": ({"data.load_datasets.batch_size": True}, ["data.load_datasets.batch_size", "True"]),
    "a batch as text": ({"data.load_datasets.batch_size": "'x'"}, ["data.load_datasets.batch_size", "'x'"]),
    "a batch larger than the data": (
        {"data.load_datasets.batch_size": 9999},
        ["data.load_datasets.batch_size", "1,293"],
    ),
    "augmentation as text": ({"data.load_datasets.augment_fn": "'flip'"}, ["augment_fn", "'flip'"]),
    "padding as text": ({**AUGMENTED, "data.augment.pad_size": "'x'"}, ["pad_size", "'x'"]),
    "negative padding": ({**AUGMENTED, "data.augment.pad_size": -1}, ["pad_size", "-1"]),
}


@pytest.mark.parametrize(("bindings", "culprits"), WRONG_BINDINGS.values(), ids=WRONG_BINDINGS)
def test_a_wrong_binding_ends_in_one_clear_line(
    tmp_path: Path, tiny_data_dir: Path, bindings: dict[str, Any], culprits: list[str]
):
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    paths = [f"--workdir={tmp_path}", f"--data_dir={tiny_data_dir}"]
    assert_one_clear_line(run_here("train", "--gin_file=base", *paths, *options_of(bindings)), *culprits)
    assert contents(tmp_path) == before


WRONG_FILES = {
    "an incomplete binding": ("include 'base.gin'\ntrain.train.num_epochs =\n", ["wrong.gin", "line 2"]),
    "a line that is not gin": ("include 'base.gin'\n\ntrain.train:\n  num_epochs  3\n", ["wrong.gin", "line 4"]),
    "an included file that is not there": ("include 'bases.gin'\n", ["bases.gin"]),
    "a module that is not there": ("import diffstride.examples.data\ninclude 'base.gin'\n", ["'diffstride'"]),
    "another encoding": ("# größer\ninclude 'base.gin'\n", ["wrong.gin", "is not UTF-8 text"]),
    "nothing": ("", ["model_cls"]),
}


@pytest.mark.parametrize(("text", "culprits"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_wrong_gin_file_ends_in_one_clear_line(tmp_path: Path, text: str, culprits: list[str]):
    file = tmp_path / "wrong.gin"
    file.write_text(text, encoding="latin-1")
    result = run_here("train", f"--gin_file={file}", f"--workdir={tmp_path / 'run'}")
    assert_one_clear_line(result, *culprits)


@pytest.mark.parametrize(
    ("arguments", "culprits"),
    [
        (["--gin_file=/nowhere/mine.gin"], ["/nowhere/mine.gin", "shipped are base, "]),
        (["--gin_file=cifar10_hybird.gin"], ["cifar10_hybird.gin", "did you mean cifar10_hybrid"]),
        (["--gin_file=base", "stray"], ["'stray'"]),
        (["--gin_file=base", "--seed=-1"], ["Seed", "between 0 and"]),
    ],
    ids=str,
)
def test_a_wrong_argument_ends_in_one_clear_line(tmp_path: Path, arguments: list[str], culprits: list[str]):
    assert_one_clear_line(run_here("train", *arguments, f"--workdir={tmp_path}"), *culprits)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_ends_in_one_clear_line(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("mine")
    result = run_here("train", "--gin_file=base", f"--workdir={file / 'run'}", *options_of({}))
    assert_one_clear_line(result, str(file / "run"), "cannot be written to")
    assert file.read_text() == "mine"


def test_the_traceback_is_shown_if_asked_for(tmp_path: Path):
    options = ["--gin_file=base", f"--workdir={tmp_path}", *options_of({"train.train.num_epochs": 0})]
    with pytest.raises(ValueError, match=r"train\.train\.num_epochs"):
        run_here("train", *options, "--traceback")


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (
            signals.Stopped("stopped by SIGTERM after 3 steps"),
            signals.EXIT_CODE,
            "stopped by SIGTERM after 3 steps\n",
        ),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
    ids=["preempted", "interrupted"],
)
def test_a_command_that_is_stopped_has_an_exit_code_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: int, line: str
):
    def train(**options: Any) -> None:
        raise raised

    monkeypatch.setattr(gin_names, "train", train)
    result = run_here("train", "--gin_file=digits_hybrid", f"--workdir={tmp_path}")
    assert (result.code, result.err, result.out) == (code, line, "")


def test_mistakes_in_real_processes_end_in_one_clear_line(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    wrong = "--gin_bindings=pooling.DiffStride.smoothness_factor = -1"
    expected = {
        ("train", "--gin_file=digits_hybrid", wrong): ("smoothness_factor", "-1"),
        ("evaluate", "--workdir=empty"): ("empty/operative_config.gin",),
    }
    processes = [start_command(*arguments, cwd=tmp_path) for arguments in expected]
    for process, culprits in zip(processes, expected.values()):
        result = wait_for(process)
        assert result.code == 1
        assert_one_clear_line(result, *culprits)
        assert result.err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_evaluation_needs_the_folder_of_a_run(tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    result = run_here("evaluate", f"--workdir={tmp_path / name}")
    assert_one_clear_line(result, f"There is no {tmp_path / name}/operative_config.gin", "--workdir")
    assert {path.name for path in tmp_path.iterdir()} == {"empty"}


# --- Preparing data --------------------------------------------------------------------------------------------------


def test_preparing_says_what_is_prepared_where(tiny_data_dir: Path):
    result = run_here("prepare", "--name=fashion_mnist", f"--data_dir={tiny_data_dir}")
    assert result.code == 0
    assert f"fashion_mnist is prepared under {tiny_data_dir}/fashion_mnist/3.0.1" in result.out
    assert "67 train, 23 test images" in result.out


def test_preparing_from_a_folder_downloads_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The files of the real set are large: it is enough that the missing one is looked for in the folder."""
    addresses = []

    def prepare(builder: Any) -> None:
        addresses.append(builder.URL)
        raise OSError("no files")

    monkeypatch.setattr("diffstride_hybrid.prepare.prepare", prepare)
    arguments = ["--name=fashion_mnist", f"--source={tmp_path}", f"--data_dir={tmp_path}"]
    assert_one_clear_line(run_here("prepare", *arguments), "no files")
    assert addresses == [f"{tmp_path.as_uri()}/"]


@pytest.mark.parametrize(
    ("arguments", "culprits"),
    [
        (["--name=fashion_minst"], ["'fashion_minst'", "Did you mean", "'fashion_mnist'"]),
        (["--name=fashion_mnist", "--source=/nowhere"], ["--source", "/nowhere"]),
        (["--name=cifar10", "--source=/"], ["'cifar10'", "folder"]),
        (["--name=fashion_mnist", "stray"], ["'stray'"]),
    ],
    ids=str,
)
def test_a_mistake_in_preparing_ends_in_one_clear_line(tmp_path: Path, arguments: list[str], culprits: list[str]):
    assert_one_clear_line(run_here("prepare", *arguments, f"--data_dir={tmp_path}"), *culprits)
    assert not list(tmp_path.iterdir())


# --- A run, as a user starts it --------------------------------------------------------------------------------------


def test_training_ends_with_a_summary(finished: tuple[Path, Result]):
    folder, result = finished
    summary = json.loads((folder / "summary.json").read_text())
    assert json.loads((folder / "run.json").read_text())["seed"] == 3
    assert (folder / "operative_config.gin").exists()
    lines = result.out.splitlines()
    assert lines[0].startswith("epoch 1/1 ")
    assert lines[1].startswith(f"test accuracy {summary['test_accuracy']:.2%} after 1 epochs, 2 steps")
    assert f"{summary['parameters']:,} parameters" in lines[2]
    assert f"{summary['macs'] / 1e9:.3f} G MACs" in lines[2]
    assert [line.split()[0] for line in lines[3:-1]] == [pooling["layer"] for pooling in summary["poolings"]]
    height, width = summary["poolings"][1]["output_size"]
    vertical, horizontal = summary["poolings"][1]["strides"]
    assert re.search(rf"-> {height}x{width} +strides {vertical:.3f}, {horizontal:.3f}$", lines[4])
    assert lines[-1] == "files are in runs/digits_hybrid"


def test_an_unread_binding_is_named_in_a_warning(finished: tuple[Path, Result]):
    warnings = [line for line in finished[1].err.splitlines() if "nothing in this run reads it" in line]
    assert len(warnings) == 1
    assert "pooling.FixedSpectralPooling.norm is bound" in warnings[0]


def test_no_line_of_the_output_is_noise(finished: tuple[Path, Result]):
    assert "Traceback" not in finished[1].err
    assert "Path not found" not in finished[1].err
    assert "\x1b" not in finished[1].out


def test_evaluation_gives_the_same_accuracy_again(finished: tuple[Path, Result], tmp_path: Path):
    folder, _ = finished
    before = contents(folder)
    result = wait_for(start_command("evaluate", f"--workdir={folder}", cwd=tmp_path))
    assert result.code == 0, result.err
    summary = json.loads((folder / "summary.json").read_text())
    assert result.out.startswith(f"test accuracy {summary['test_accuracy']:.2%}, loss {summary['test_loss']:.4f}, ")
    assert "on 360 images" in result.out
    assert contents(folder) == before


def test_evaluation_of_the_best_model_on_the_validation_split(finished: tuple[Path, Result], uncompiled: None):
    folder, _ = finished
    result = run_here("evaluate", f"--workdir={folder}", "--model=best.keras", "--split=validation")
    best = json.loads((folder / "summary.json").read_text())["best_validation_accuracy"]
    assert result.out.startswith(f"validation accuracy {best:.2%}, ")
    assert "on 144 images" in result.out


def test_the_operative_config_gives_the_same_run(finished: tuple[Path, Result], tmp_path: Path, uncompiled: None):
    folder, _ = finished
    result = run_here("train", f"--gin_file={folder / 'operative_config.gin'}", "--seed=3", f"--workdir={tmp_path}")
    assert result.code == 0, result.err
    loss, expected = (json.loads((run / "summary.json").read_text())["test_loss"] for run in (tmp_path, folder))
    assert loss == pytest.approx(expected, rel=1e-4)  # Compiled and not, they differ by rounding.
    assert "nothing in this run reads it" not in result.err


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_an_export_is_compared_with_the_model_on_real_images(finished: tuple[Path, Result], tmp_path: Path):
    arguments = [f"--workdir={finished[0]}", "--format=litert", f"--output={tmp_path / 'model.tflite'}"]
    result = run_here("export", *arguments, "--images=100")
    assert result.code == 0, result.err
    compared = re.search(
        r"on (\d+) test images: largest difference (\S+), accuracy (\S+), of .* model (\S+)", result.out
    )
    assert compared[1] == "100"
    assert float(compared[2].rstrip(",")) < 1e-4
    assert compared[3].rstrip(",") == compared[4]
    assert (tmp_path / "model.tflite").stat().st_size > 10_000
    assert_one_clear_line(run_here("export", *arguments), "model.tflite exists")
    arguments[0] = f"--workdir={tmp_path}"
    assert_one_clear_line(run_here("export", *arguments), "operative_config.gin", "--workdir")


@pytest.fixture(scope="module")
def test_digits() -> tuple[np.ndarray, np.ndarray]:
    """The first test images of the digits at the size of the run, uint8, and normalised as the run does."""
    datasets = load_datasets("digits", image_size=TINY["data.load_datasets.image_size"])
    images = datasets.splits["test"].arrays[0][:5]
    return images, normalised(images, datasets.mean, datasets.std).numpy()


def test_image_files_are_predicted_as_the_data_set_is(
    finished: tuple[Path, Result], test_digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
):
    folder, _ = finished
    pixels, images = test_digits
    expected = keras.models.load_model(folder / "final.keras")(images).numpy()
    (tmp_path / "images").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image.squeeze()).save(tmp_path / "images" / f"{i}.png")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    first, csv_file = tmp_path / "images" / "0.png", tmp_path / "out" / "predictions.csv"
    result = run_here(
        "predict", f"--workdir={folder}", "--top=2", f"--csv={csv_file}", f"{tmp_path}/images", str(first)
    )
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    assert [line.split(":")[0] for line in lines] == [*(f"{tmp_path}/images/{i}.png" for i in range(5)), str(first)]
    for line, values in zip(lines, [*expected, expected[0]]):
        named = re.findall(r"(\w+) ([\d.]+)%", line.split(": ")[1])
        assert [int(name) for name, _ in named] == np.argsort(-values)[:2].tolist()
        assert float(named[0][1]) == pytest.approx(100 * values.max(), abs=0.02)
    rows = read_rows(csv_file)
    np.testing.assert_allclose(
        [[float(row[str(label)]) for label in range(10)] for row in rows[:5]], expected, atol=1e-4
    )


def test_a_file_that_is_no_image_is_named_and_the_others_are_predicted(
    finished: tuple[Path, Result], test_digits: tuple[np.ndarray, np.ndarray], tmp_path: Path
):
    image = tmp_path / "image.png"
    Image.fromarray(test_digits[0][0].squeeze()).save(image)
    cut = tmp_path / "cut.png"
    cut.write_bytes(image.read_bytes()[:60])
    result = run_here("predict", f"--workdir={finished[0]}", f"--csv={tmp_path / 'all.csv'}", str(cut), str(image))
    assert result.code == 1
    assert re.match(rf"error: {cut} cannot be read as an image: .*\nerror: 1 of 2 files cannot be read", result.err)
    assert result.out.startswith(f"{image}: ")
    assert [row["file"] for row in read_rows(tmp_path / "all.csv")] == [str(image)]


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [([], "No image was given"), (["missing.png"], "no missing.png"), (["."], "no image in .")],
)
def test_prediction_needs_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], culprit: str):
    monkeypatch.chdir(tmp_path)
    assert_one_clear_line(run_here("predict", f"--workdir={tmp_path}", *arguments), culprit)


@pytest.mark.slow
def test_logits_become_probabilities(tmp_path: Path, test_digits: tuple[np.ndarray, np.ndarray], uncompiled: None):
    bindings = {
        "resnet.Resnet.output_activation": None,
        "tf.keras.losses.CategoricalCrossentropy.from_logits": True,
        "train.train.steps_per_epoch": 1,
    }
    run = tmp_path / "run"
    assert run_here("train", "--gin_file=digits_hybrid", f"--workdir={run}", *options_of(bindings)).code == 0
    Image.fromarray(test_digits[0][0].squeeze()).save(tmp_path / "image.png")
    result = run_here("predict", f"--workdir={run}", "--top=10", str(tmp_path / "image.png"))
    values = [float(value) for value in re.findall(r"([\d.]+)%", result.out)]
    assert len(values) == 10
    assert sum(values) == pytest.approx(100, abs=0.1)


def test_the_overview_names_every_command():
    overview = __main__.overview()
    folder = Path(command_line.__file__).parent
    commands = {path.stem for path in folder.glob("*.py") if "command_line.run(" in path.read_text(encoding="utf-8")}
    assert set(re.findall(r"diffstride_hybrid\.(\w+)", overview)) == commands
    assert "  digits_hybrid" in overview.splitlines()


def test_a_checkpoint_of_the_release_becomes_a_model(tmp_path: Path):
    config = tmp_path / "small.gin"
    config.write_text(
        "include 'base.gin'\ndata.load_datasets.name = 'cifar10'\ntrain.train.model_cls = @resnet.Resnet\n"
        "resnet.Resnet:\n  filters = [4, 4, 8, 8, 8]\n  strides = [1, 1, 2, 2, 2]\n  id_only = [0]\n"
        "  pooling_cls = @pooling.DiffStride\n"
    )
    saved = Path(__file__).parent / "reference" / "google_small"
    arguments = [f"--checkpoint={saved}", f"--gin_file={config}"]
    result = run_here("convert_google", *arguments, f"--output={tmp_path / 'model.keras'}")
    assert result.code == 0, result.err
    assert "block_4/layer_1/pooling   2.023, 2.006" in result.out
    model = keras.saving.load_model(tmp_path / "model.keras")
    with np.load(saved / "outputs.npz") as outputs:
        np.testing.assert_allclose(model(outputs["inputs"]), outputs["probabilities"], atol=1e-5)
    assert_one_clear_line(run_here("convert_google", *arguments, f"--output={tmp_path / 'model.keras'}"), "exists")
    assert_one_clear_line(run_here("convert_google", *arguments, f"--output={tmp_path / 'model.h5'}"), "'.keras'")
    arguments[1] = "--gin_file=cifar10_strided"
    other = run_here("convert_google", *arguments, f"--output={tmp_path / 'other.keras'}")
    assert_one_clear_line(other, "another architecture")
    assert not (tmp_path / "other.keras").exists()


def test_the_figures_of_a_study_show_a_trained_network(finished: tuple[Path, Result], tmp_path: Path):
    cell = next(cell for cell in load_study("digits").cells() if cell.method.name == "hybrid")
    cell.folder(tmp_path).parent.mkdir(parents=True)
    cell.folder(tmp_path).symlink_to(finished[0])
    drawn = dict(figures.figures_of_run(cell, str(tmp_path)))
    assert list(drawn) == ["windows", "poolings"]
    titles = [axes.get_title() for axes in drawn["windows"].axes if axes.get_title()]
    assert [title.split("\n")[0] for title in titles] == ["first convolution", "block 2", "block 3", "block 4"] * 2
    assert [title.split("\n")[1].split(":")[0] for title in titles] == ["before training"] * 4 + ["after training"] * 4
    assert len(drawn["poolings"].axes) == 3 * 8
    for figure in drawn.values():
        figure.savefig(tmp_path / "figure.png")


def test_a_finished_run_is_refused_and_kept(finished: tuple[Path, Result]):
    folder, _ = finished
    before = contents(folder)
    result = run_here("train", "--gin_file=base", f"--workdir={folder}", *options_of({}))
    assert_one_clear_line(result, str(folder), "finished run")
    assert contents(folder) == before


def test_a_run_begun_with_another_config_is_refused_and_kept(
    finished: tuple[Path, Result], tmp_path: Path, uncompiled: None
):
    config = (finished[0] / "operative_config.gin").read_text()
    (tmp_path / "operative_config.gin").write_text(config.replace("batch_size = 64", "batch_size = 32"))
    before = contents(tmp_path)
    arguments = [f"--gin_file={finished[0] / 'operative_config.gin'}", f"--workdir={tmp_path}", "--seed=3"]
    assert_one_clear_line(run_here("train", *arguments), str(tmp_path), "another config", "batch_size = 64")
    assert contents(tmp_path) == before


def test_a_refused_start_leaves_no_backup_that_another_would_go_on_from(finished: tuple[Path, Result], tmp_path: Path):
    (tmp_path / "operative_config.gin").write_bytes((finished[0] / "operative_config.gin").read_bytes())
    before = contents(tmp_path)
    arguments = [f"--gin_file={tmp_path / 'operative_config.gin'}", f"--workdir={tmp_path}", "--seed=2"]
    arguments.append("--gin_bindings=train.train.on_not_finite = 'roll_back'")
    assert_one_clear_line(run_here("train", *arguments), "another config", "seed")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("damage", [truncate, empty, lambda path: path.write_bytes(b"\xff\xfe")])
@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_damaged_config_of_a_run_ends_in_one_clear_line(
    finished: tuple[Path, Result], tmp_path: Path, name: str, damage: Callable[[Path], Any]
):
    for file in ("operative_config.gin", "final.keras"):
        shutil.copy(finished[0] / file, tmp_path)
    damage(tmp_path / "operative_config.gin")
    config = f"--gin_file={finished[0] / 'operative_config.gin'}"
    result = run_here(name, f"--workdir={tmp_path}", *([config] if name == "train" else []))
    assert_one_clear_line(result, "operative_config.gin")
    assert "another config" not in result.err


def nothing_within(path: Path) -> None:
    zipfile.ZipFile(path, "w").close()


def model_with_code(path: Path) -> None:
    keras.Sequential([keras.Input((32, 32, 1)), keras.layers.Lambda(lambda x: x)]).save(path)


@pytest.mark.parametrize(
    ("damage", "culprits"),
    [
        (truncate, ["final.keras is damaged"]),
        (flip_a_bit, ["final.keras is damaged"]),
        (empty, ["final.keras is damaged"]),
        (nothing_within, ["final.keras is damaged", "config.json"]),
        (model_with_code, ["lambda", "unsafe"]),
    ],
)
def test_a_model_that_is_damaged_or_has_code_is_refused(
    finished: tuple[Path, Result], tmp_path: Path, damage: Callable[[Path], None], culprits: list[str]
):
    for file in ("operative_config.gin", "final.keras"):
        shutil.copy(finished[0] / file, tmp_path)
    damage(tmp_path / "final.keras")
    assert_one_clear_line(run_here("evaluate", f"--workdir={tmp_path}"), *culprits)


def test_evaluation_needs_a_model(finished: tuple[Path, Result], tmp_path: Path):
    (tmp_path / "operative_config.gin").write_bytes((finished[0] / "operative_config.gin").read_bytes())
    assert_one_clear_line(run_here("evaluate", f"--workdir={tmp_path}"), f"There is no {tmp_path}/final.keras")
