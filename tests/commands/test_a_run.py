"""One run as a user starts it, and the commands that read its folder."""

import json
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image
from support.commands import (
    TINY,
    Result,
    assert_one_clear_line,
    contents,
    options_of,
    run_here,
    start_command,
    wait_for,
)
from support.damage import empty, flip_a_bit, truncate

from diffstride_hybrid import predict
from diffstride_hybrid.common.files import read_rows
from diffstride_hybrid.data.loading import load_datasets
from diffstride_hybrid.data.pixels import normalize_images
from experiments import figures
from experiments.studies.study import load_study

pytestmark = pytest.mark.long


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


# --- While the run goes on -------------------------------------------------------------------------------------------


def test_a_mistake_in_a_real_process_ends_in_one_clear_line(tmp_path: Path):
    wrong = "--gin_bindings=pooling.DiffStride.smoothness_factor = -1"
    result = wait_for(start_command("train", "--gin_file=digits_hybrid", wrong, cwd=tmp_path))
    assert result.code == 1
    assert_one_clear_line(result, "smoothness_factor", "-1")
    assert result.err.splitlines()[-1].startswith("error: ")


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
    assert "invalid graph" not in finished[1].err
    assert "\x1b" not in finished[1].out


def test_evaluation_gives_the_same_accuracy_again(finished: tuple[Path, Result], uncompiled: None):
    folder, _ = finished
    before = contents(folder)
    result = run_here("evaluate", f"--workdir={folder}")
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
    arguments = [f"--workdir={tmp_path}", "--format=litert", f"--output={tmp_path / 'other.tflite'}"]
    assert_one_clear_line(run_here("export", *arguments), "operative_config.gin", "--workdir")


@pytest.fixture(scope="module")
def test_digits() -> tuple[np.ndarray, np.ndarray]:
    """The first test images of the digits at the size of the run, uint8, and normalized as the run does."""
    datasets = load_datasets("digits", image_size=TINY["data.load_datasets.image_size"])
    images = datasets.splits["test"].arrays[0][:5]
    return images, normalize_images(images, datasets.mean, datasets.std).numpy()


@pytest.mark.parametrize("compiled", [False, True])
def test_image_files_are_predicted_as_the_data_set_is(
    compiled: bool,
    finished: tuple[Path, Result],
    test_digits: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(predict, "_BATCH", 4)
    monkeypatch.setattr(predict, "_MANY", 5 if compiled else 6)  # There are six files.
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
    shutil.copy(finished[0] / "run.json", tmp_path)
    before = contents(tmp_path)
    arguments = [f"--gin_file={finished[0] / 'operative_config.gin'}", f"--workdir={tmp_path}", "--seed=3"]
    culprits = (str(tmp_path), "another config", "choose another workdir", "batch_size = 64")
    assert_one_clear_line(run_here("train", *arguments), *culprits)
    assert contents(tmp_path) == before


def test_a_run_begun_before_a_parameter_existed_goes_on_as_the_first_one(finished: tuple[Path, Result], tmp_path: Path):
    """The parameter has its default, and the config of a run gives the same run.

    Compiled as the first one: Adam moves a weight by the whole rate if its gradient differs from 0 by rounding.
    """
    config = (finished[0] / "operative_config.gin").read_text()
    known = "load_datasets.test_fraction = 0.2\n"
    assert known in config
    (tmp_path / "older.gin").write_text(config.replace(known, ""))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/operative_config.gin").write_text(config.replace(known, ""))
    shutil.copy(finished[0] / "run.json", tmp_path / "run")
    arguments = [f"--gin_file={tmp_path / 'older.gin'}", f"--workdir={tmp_path / 'run'}", "--seed=3"]
    bound = "--gin_bindings=data.load_datasets.test_fraction = 0.3"
    assert_one_clear_line(run_here("train", *arguments, bound), "another config", "test_fraction = 0.3")
    result = run_here("train", *arguments)
    assert result.code == 0, result.err
    assert (tmp_path / "run/operative_config.gin").read_text() == config
    loss, expected = (
        json.loads((run / "summary.json").read_text())["test_loss"] for run in (tmp_path / "run", finished[0])
    )
    assert loss == expected
    assert "nothing in this run reads it" not in result.err


def test_a_refused_start_leaves_no_backup_that_another_would_go_on_from(finished: tuple[Path, Result], tmp_path: Path):
    (tmp_path / "operative_config.gin").write_bytes((finished[0] / "operative_config.gin").read_bytes())
    shutil.copy(finished[0] / "run.json", tmp_path)
    before = contents(tmp_path)
    arguments = [f"--gin_file={tmp_path / 'operative_config.gin'}", f"--workdir={tmp_path}", "--seed=3"]
    arguments.append("--gin_bindings=train.train.on_not_finite = 'roll_back'")
    arguments.append("--gin_bindings=train.train.num_epochs = 77")
    assert_one_clear_line(run_here("train", *arguments), "another config", "num_epochs = 77")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("damage", [truncate, empty, lambda path: path.write_bytes(b"\xff\xfe")])
@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_a_damaged_config_of_a_run_ends_in_one_clear_line(
    finished: tuple[Path, Result], tmp_path: Path, name: str, damage: Callable[[Path], Any]
):
    for file in ("operative_config.gin", "final.keras", "run.json"):
        shutil.copy(finished[0] / file, tmp_path)
    damage(tmp_path / "operative_config.gin")
    config = f"--gin_file={finished[0] / 'operative_config.gin'}"
    result = run_here(name, f"--workdir={tmp_path}", *([config] if name == "train" else []))
    assert_one_clear_line(result, "operative_config.gin")
    assert "another config" not in result.err


@pytest.mark.parametrize("damage", [truncate, empty, Path.unlink, lambda path: path.write_text("{}")])
def test_a_damaged_record_of_a_run_is_named_by_prediction(
    finished: tuple[Path, Result],
    test_digits: tuple[np.ndarray, np.ndarray],
    tmp_path: Path,
    damage: Callable[[Path], Any],
):
    for file in ("operative_config.gin", "final.keras", "run.json"):
        shutil.copy(finished[0] / file, tmp_path)
    damage(tmp_path / "run.json")
    Image.fromarray(test_digits[0][0].squeeze()).save(tmp_path / "image.png")
    result = run_here("predict", f"--workdir={tmp_path}", str(tmp_path / "image.png"))
    assert_one_clear_line(result, str(tmp_path / "run.json"))


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
