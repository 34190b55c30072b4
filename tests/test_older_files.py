"""Files that users have: models, run folders and gin files written at commit 39a27c4 do what they did there.

`fixtures/make.py` made them, and says how. On the machine that made them every number must be the same to the bit.
Other machines add numbers up in another order, so that the last bits differ. There a number may differ by a share of
the largest one beside it. Other kernels on that machine (oneDNN for SSE4.1 or AVX2, none of oneDNN, one thread) moved
the outputs of models by at most 4e-7 of the largest, and the weights after 20 steps of training by at most 3e-5.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures.machine import machine

import diffstride_hybrid

LATER_PARAMETERS = {
    "Resnet.recompute_pooling = False",
    "load_datasets.test_fraction = 0.2",
    "train.macs_budget = None",
    "train.macs_budget_epoch = None",
    "train.stride_learning_rate = 1.0",
    "train.stride_warmup_epochs = 0",
}
"""What the config of a run says now, and did not say then."""

FIXTURES = Path(__file__).parent / "fixtures"
OF_OUTPUTS = 1e-5
"""By what share of the largest output the outputs of a saved model may differ on another machine."""
OF_TRAINING = 1e-3
"""The same for what training gives: each step carries the differences of the one before on."""

ONE_IMAGE = 1 / 18
"""By how much an accuracy may differ on another machine: one image of the smallest split, that for validation."""
TIMES = ("seconds", "images_per_second", "training_seconds")

SAME_MACHINE = machine() == json.loads((FIXTURES / "machine.json").read_text())

LAYERS = (
    "DiffStride",
    "DiffStride1D",
    "FixedSpectralPooling",
    "FusedBatchNormalization",
    "ResidualLayer",
    "Resnet",
    "ResnetBlock",
    "SpatialPooling",
    "SpectralPooling",
    "SpectralPooling1D",
    "StrideConstraint",
)
MODELS = (
    *("diffstride_released", "diffstride_symmetric", "diffstride_shared_stride", "diffstride_static_crop"),
    *("diffstride_refreshed_crop", "diffstride_without_cropping", "diffstride_by_transforms"),
    *("diffstride_channels_first", "spectral_pooling_by_strides", "spectral_pooling_by_size"),
    *("fixed_spectral_pooling", "spatial_pooling_whole", "spatial_pooling_fractional", "diffstride_1d"),
    *("spectral_pooling_1d_by_strides", "spectral_pooling_1d_by_size", "fused_batch_normalization"),
    *("stride_constraint", "residual_layer", "residual_layer_strided", "resnet_block", "resnet", "swapped", "compiled"),
    *("cifar10_strided", "cifar10_spectral", "cifar10_diffstride", "cifar10_diffstride_released", "cifar10_hybrid"),
    *("cifar10_hybrid_before_activation", "digits_hybrid", "imagenet_hybrid"),
)


def assert_agree(actual: np.ndarray, expected: np.ndarray, share: float) -> None:
    """Compares two arrays, to the bit on the machine that made the files."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    if SAME_MACHINE:
        np.testing.assert_array_equal(actual, expected)
    else:
        np.testing.assert_allclose(actual, expected, rtol=0, atol=share * np.abs(expected).max(initial=0))


# --- Models ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the saved models, and of their inputs and outputs."""
    folder = tmp_path_factory.mktemp("models")
    shutil.unpack_archive(FIXTURES / "models.zip", folder)
    return folder


def test_there_is_a_file_of_every_layer(models: Path):
    files = {path.stem: path for path in models.glob("*.keras")}
    assert set(files) == set(MODELS)
    texts = [zipfile.ZipFile(path).read("config.json").decode() for path in files.values()]
    assert {layer for layer in LAYERS if any(f'"diffstride_hybrid>{layer}"' in text for text in texts)} == set(LAYERS)


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_gives_the_outputs_that_it_gave(models: Path, name: str):
    arrays = np.load(models / f"{name}.npz")
    model = keras.models.load_model(models / f"{name}.keras")
    assert_agree(model(arrays["inputs"], training=False), arrays["outputs"], OF_OUTPUTS)


def test_a_saved_static_crop_stays_until_it_is_refreshed(models: Path):
    pooling = keras.models.load_model(models / "diffstride_static_crop.keras").layers[0]
    refreshed = keras.models.load_model(models / "diffstride_refreshed_crop.keras").layers[0]
    assert pooling.crops != refreshed.crops
    np.testing.assert_array_equal(pooling.strides, refreshed.strides)
    assert pooling.refresh_crop()
    assert pooling.crops == refreshed.crops
    assert not refreshed.refresh_crop()


def test_a_saved_constraint_has_its_limits(models: Path):
    constraint = keras.models.load_model(models / "stride_constraint.keras").layers[0].kernel_constraint
    assert type(constraint) is diffstride_hybrid.StrideConstraint
    np.testing.assert_array_equal(constraint(tf.constant([0.5, 1.2, 9.0])), np.float32([1.0, 1.2, 1.5]))


def test_a_compiled_model_goes_on_training(models: Path):
    arrays = np.load(models / "compiled.npz")
    model = keras.models.load_model(models / "compiled.keras")
    assert_agree(np.asarray(model.train_on_batch(arrays["inputs"], arrays["labels"])), arrays["loss"], OF_OUTPUTS)
    after = {name.removeprefix("after/"): arrays[name] for name in arrays if name.startswith("after/")}
    assert [variable.path for variable in model.variables] == list(after)
    for variable in model.variables:
        assert_agree(variable, after[variable.path], OF_TRAINING)


# --- Run folders -----------------------------------------------------------------------------------------------------


class Result(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


def run(module: str, *arguments: str, cwd: Path) -> Result:
    """Runs a command of the package that this process has imported, as a user does."""
    package = Path(diffstride_hybrid.__file__).parents[1]
    command = [sys.executable, "-m", f"diffstride_hybrid.{module}", *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(package), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    return Result(process.returncode, process.stdout, process.stderr)


def command_of(folder: Path) -> list[str]:
    """The arguments that a run was started with."""
    return json.loads((folder / "run.json").read_text())["command"][1:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all fixtures, in which the commands may write."""
    return shutil.copytree(FIXTURES, tmp_path_factory.mktemp("older") / "files")


RUNS = ("stopped", "stopped_static")


@pytest.fixture(scope="module", autouse=True)
def started(folder: Path) -> Iterator[dict[str, "Future[Result]"]]:
    """All commands, two at a time, while the tests above pass."""
    finished = "--workdir=finished"
    gin_files = [f"--gin_file={FIXTURES / name}" for name in ("gin_names.gin", "stopped/operative_config.gin")]
    commands = {
        "stopped": ("train", *command_of(folder / "stopped")),
        "stopped_static": ("train", *command_of(folder / "stopped_static")),
        "again": ("train", *gin_files, "--workdir=again"),
        "evaluate": ("evaluate", finished),
        "predict": ("predict", finished, "--csv=predict.csv", "images"),
        "export": ("export", finished, "--format=saved_model", "--output=exported", "--images=20"),
    }
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield {name: pool.submit(run, *arguments, cwd=folder) for name, arguments in commands.items()}


def out_of(result: "Future[Result]") -> str:
    """What a command printed that ended well."""
    code, out, err = result.result()
    assert code == 0, err
    return out


def table(text: str) -> tuple[list[str], np.ndarray]:
    """The columns of a run's CSV file but for its times, and their numbers."""
    columns, *rows = csv.reader(text.splitlines())
    kept = [i for i, name in enumerate(columns) if name not in TIMES]
    return [columns[i] for i in kept], np.array([[float(row[i]) for i in kept] for row in rows])


def assert_tables_agree(actual: str, expected: str) -> None:
    """Compares two CSV files of runs, their times apart."""
    (columns, numbers), (expected_columns, expected_numbers) = table(actual), table(expected)
    assert columns == expected_columns
    for i, name in enumerate(columns):
        if name.endswith(("loss", "_stride")):
            assert_agree(numbers[:, i], expected_numbers[:, i], OF_TRAINING)
        elif name.endswith("accuracy") and not SAME_MACHINE:
            np.testing.assert_allclose(numbers[:, i], expected_numbers[:, i], rtol=0, atol=ONE_IMAGE)
        else:
            np.testing.assert_array_equal(numbers[:, i], expected_numbers[:, i])


def assert_summaries_agree(actual: Any, expected: Any, name: str = "") -> None:
    """Compares what two summaries hold, their times apart."""
    if isinstance(expected, dict):
        assert set(actual) - set(TIMES) == set(expected)
        for key, value in expected.items():
            assert_summaries_agree(actual[key], value, key)
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for pair in zip(actual, expected):
            assert_summaries_agree(*pair, name)
    elif isinstance(expected, float) and not SAME_MACHINE:
        assert actual == pytest.approx(expected, abs=ONE_IMAGE if "accuracy" in name else OF_TRAINING * expected)
    else:
        assert actual == expected


def assert_results_agree(run: Path, expected: Path) -> None:
    """Compares tables, summary and final weights of a run with those that are stored."""
    for name in ("metrics.csv", "strides.csv"):
        assert_tables_agree((run / name).read_text(), (expected / name).read_text())
    assert_summaries_agree(*(json.loads((path / "summary.json").read_text()) for path in (run, expected)))
    weights = np.load(expected / "weights.npz")
    model = keras.models.load_model(run / "final.keras")
    assert [variable.path for variable in model.variables] == list(weights)
    for variable in model.variables:
        assert_agree(variable, weights[variable.path], OF_TRAINING)


def assert_texts_agree(actual: str, expected: str, off_by: float | list[float]) -> None:
    """Compares what commands printed: words, and numbers, all of which or each of which may be off elsewhere."""
    number = re.compile(r"\d+\.\d+")
    if SAME_MACHINE:
        assert actual == expected
    assert number.sub("#", actual) == number.sub("#", expected)
    numbers = [[float(digits) for digits in number.findall(text)] for text in (actual, expected)]
    difference = np.abs(np.subtract(*numbers))
    assert (difference <= off_by).all(), f"{actual} is not {expected}"


@pytest.mark.parametrize("name", RUNS)
def test_a_stopped_run_goes_on_and_ends_as_one_left_alone(
    name: str, folder: Path, started: dict[str, "Future[Result]"]
):
    assert out_of(started[name]).startswith(f"resuming {name} after epoch 1 and 4 steps\n")
    assert_results_agree(folder / name, FIXTURES / f"{name}_expected")
    for table_name in ("metrics.csv", "strides.csv"):
        before = (FIXTURES / name / table_name).read_text()
        assert (folder / name / table_name).read_text().startswith(before)


def test_the_config_of_a_run_trains_the_same_again(folder: Path, started: dict[str, "Future[Result]"]):
    out_of(started["again"])
    again, expected = (path / "operative_config.gin" for path in (folder / "again", FIXTURES / "stopped"))
    lines = again.read_text().splitlines()
    assert [line for line in lines if line not in LATER_PARAMETERS] == expected.read_text().splitlines()
    assert_results_agree(folder / "again", FIXTURES / "stopped_expected")


def test_every_gin_name_is_known(folder: Path, started: dict[str, "Future[Result]"]):
    # The run binds all of them in a scope of their own: it has not been refused, and says that it reads none of them.
    err = started["again"].result().err
    for line in (FIXTURES / "gin_names.gin").read_text().splitlines()[1:]:
        assert f"{line.split(' = ')[0]} is bound, but nothing in this run reads it" in err


def test_a_finished_run_is_evaluated_as_it_was(started: dict[str, "Future[Result]"]):
    expected = (FIXTURES / "finished_expected" / "evaluate.txt").read_text()
    accuracy, loss, macs = 100 / 360 + 0.01, 1e-3, 0
    assert_texts_agree(out_of(started["evaluate"]), expected, off_by=[accuracy, loss, macs])


def test_a_finished_run_predicts_as_it_did(folder: Path, started: dict[str, "Future[Result]"]):
    expected = FIXTURES / "finished_expected"
    assert_texts_agree(out_of(started["predict"]), (expected / "predict.txt").read_text(), off_by=0.01)
    written = (folder / "predict.csv").read_text()
    assert_texts_agree(written, (expected / "predict.csv").read_text(), off_by=1e-5)


def test_a_finished_run_is_exported_as_it_was(folder: Path, started: dict[str, "Future[Result]"]):
    assert "on 20 test images: largest difference " in out_of(started["export"])
    arrays = np.load(FIXTURES / "finished_expected" / "outputs.npz")
    module = tf.saved_model.load(str(folder / "exported"))
    assert_agree(module.serve(tf.constant(arrays["inputs"])), arrays["exported"], OF_OUTPUTS)


def test_the_best_model_of_a_finished_run_gives_the_outputs_that_it_gave():
    arrays = np.load(FIXTURES / "finished_expected" / "outputs.npz")
    model = keras.models.load_model(FIXTURES / "finished" / "best.keras")
    assert_agree(model(arrays["inputs"], training=False), arrays["best"], OF_OUTPUTS)
