"""Flags, bindings and gin files of `train`: how they go together, and how each mistake ends."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gin
import pytest
from absl import flags
from support.commands import assert_one_clear_line, contents, options_of, parsed_command, run_here

from diffstride_hybrid import __main__, command_line
from diffstride_hybrid.common import signals
from diffstride_hybrid.config import gin_files, gin_names, saved_runs
from diffstride_hybrid.model_tools import exporting

pytestmark = pytest.mark.long

# --- Flags and bindings ----------------------------------------------------------------------------------------------


class NotTrained(Exception):
    """Ends a run before it costs anything."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Starts the command and returns the arguments that it would have trained with."""

    def start(*arguments: str) -> dict[str, Any]:
        given: dict[str, Any] = {}

        def train(**options: Any) -> None:
            given.update(gin.get_bindings("train.train"), **options)
            raise NotTrained

        monkeypatch.setattr(gin_names, "configured_train", train)
        with parsed_command("train", *arguments) as (command, remaining), pytest.raises(NotTrained):
            command.main(remaining)
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


def test_a_path_may_begin_with_the_home_folder(started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Bash does not expand '~' after a '='."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.gin").write_text("include 'base.gin'\ntrain.train.workdir = '~/bound'\n")
    assert started("--gin_file=~/mine.gin")["workdir"] == f"{tmp_path}/bound"
    assert started("--gin_file=base", "--workdir=~/runs/x", "--data_dir=~/data")["workdir"] == f"{tmp_path}/runs/x"
    assert gin.query_parameter("data.load_datasets.data_dir") == f"{tmp_path}/data"


PATHS = {
    "train": ["--gin_file=base"],
    "evaluate": ["--workdir=~/x"],
    "predict": ["--workdir=~/x", "--csv=~/x"],
    "export": ["--workdir=~/x", "--output=~/x", "--format=onnx"],
    "prepare": ["--name=cifar10", "--source=~/x"],
    "convert_google": ["--checkpoint=~/x", "--output=~/x", "--gin_file=base"],
    "audit.__main__": ["--workdir=~/x", "--output=~/x", "--model=~/x"],
}


@pytest.mark.parametrize("command", PATHS)
def test_every_flag_of_a_path_knows_the_home_folder(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with_data_dir = [] if command in ("predict", "convert_google") else ["--data_dir=~/x"]
    options = [*PATHS[command], *with_data_dir]
    with parsed_command(command, *options):
        for option in options:
            name, value = option.removeprefix("--").split("=")
            if value == "~/x":
                assert getattr(flags.FLAGS, name) == f"{tmp_path}/x"
        paths = {
            name for name in ("workdir", "data_dir", "output", "source", "csv", "checkpoint") if name in flags.FLAGS
        }
        assert paths <= {option.removeprefix("--").split("=")[0] for option in options} | {"workdir"}


def test_a_workdir_may_be_a_macro(started: Any, tmp_path: Path):
    bindings = ["--gin_bindings=place = 'runs/of a macro'", "--gin_bindings=train.train.workdir = %place"]
    assert started("--gin_file=base", *bindings)["workdir"] == "runs/of a macro"


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
    "an optimizer as text": ({"train.train.optimizer_cls": "'sgd'"}, ["optimizer_cls", "'sgd'"]),
    "an optimizer made already": (
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
        {"resnet.Resnet.head_pooling_cls": "@pooling.SpectralPooling", "pooling.SpectralPooling.output_size": 9},
        ["output_size", "must not exceed the feature map", "(9, 9)"],
    ),
    "an unknown data set": ({"data.load_datasets.name": "'cifar11'"}, ["'cifar11'", "did you mean", "'cifar10'"]),
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
    "mirroring as text": ({**AUGMENTED, "data.augment.flip": "'False'"}, ["data.augment.flip", "True or", "'False'"]),
    "channels first as text": ({"resnet.Resnet.channels_first": "'False'"}, ["channels_first must be True or False"]),
    "recomputing as text": ({**DIFFSTRIDE, "resnet.Resnet.recompute_pooling": "'no'"}, ["recompute_pooling", "'no'"]),
    "synchronizing as text": (
        {"batch_norm.synchronized": "'False'"},
        ["batch_norm.synchronized", "True or", "'False'"],
    ),
    "an empty pooling": ({"resnet.Resnet.pooling_cls": {}}, ["pooling_cls", "layer classes or functions", "got {}"]),
    "an empty pooling near the end": ({"resnet.Resnet.head_pooling_cls": {}}, ["head_pooling_cls", "got {}"]),
    "an empty normalization": ({"resnet.Resnet.normalization_cls": {"config": 1}}, ["normalization_cls", "'config'"]),
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
        (["--gin_file=cifar10_hybird.gin"], ["cifar10_hybird.gin", "did you mean 'cifar10_hybrid'"]),
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

    monkeypatch.setattr(gin_names, "configured_train", train)
    result = run_here("train", "--gin_file=digits_hybrid", f"--workdir={tmp_path}")
    assert (result.code, result.err, result.out) == (code, line, "")


@pytest.mark.parametrize(
    ("options", "culprits"),
    [
        (["--format=saved_model", "--output={}/there"], ["there exists", "choose another name"]),
        (["--format=onnx", "--quantization=int8", "--output={}/new"], ["int8 needs the format litert"]),
    ],
)
def test_an_export_that_cannot_be_written_is_refused_before_the_data_are_loaded(
    options: list[str], culprits: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(exporting, "check_installed", lambda format: None)
    monkeypatch.setattr(saved_runs, "load_run", lambda *args: pytest.fail("it is loaded"))
    (tmp_path / "there").mkdir()
    options = [option.format(tmp_path) for option in options]
    assert_one_clear_line(run_here("export", "--workdir=run", *options), *culprits)


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_evaluation_needs_the_folder_of_a_run(tmp_path: Path, name: str):
    (tmp_path / "empty").mkdir()
    result = run_here("evaluate", f"--workdir={tmp_path / name}")
    assert_one_clear_line(result, f"There is no {tmp_path / name}/operative_config.gin", "--workdir")
    assert {path.name for path in tmp_path.iterdir()} == {"empty"}


@pytest.mark.parametrize("end", ["[1, 1, 2", "'''a"])
def test_what_is_not_closed_is_named(end: str):
    with pytest.raises(SyntaxError, match=r"a bracket or quote is not closed in .*place = "):
        gin_files.parse([gin_files.find_gin_file("base")], [f"place = {end}"])


def test_the_overview_names_every_command():
    overview = __main__.overview()
    folder = Path(command_line.__file__).parent
    files = (*folder.glob("*.py"), *folder.glob("*/__main__.py"))
    commands = {
        path.stem if path.parent == folder else path.parent.name
        for path in files
        if "command_line.run(" in path.read_text(encoding="utf-8")
    }
    assert set(re.findall(r"diffstride_hybrid\.(\w+)", overview)) == commands
    assert {"  digits_hybrid", "  base"} <= set(overview.splitlines())
