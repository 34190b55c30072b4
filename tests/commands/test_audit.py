"""The command that audits a run, or a model in a file."""

import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from support.commands import contents, run_here, start_command, wait_for
from support.damage import truncate
from support.paths import TESTS

AUDIT = "audit.__main__"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    return Path(shutil.copytree(TESTS / "fixtures" / "finished", tmp_path / "run"))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own model of gray images of any size, with pixels from 0 to 1 and three classes."""
    path = tmp_path_factory.mktemp("own") / "own.keras"
    layers = [keras.layers.AveragePooling2D(2, name="mean"), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((None, None, 1)), *layers, keras.layers.Dense(3)])
    # The class whose brightness is nearest, but dogs are taken for cats.
    brightness = np.array([130, 300, 210]) / 255
    model.layers[-1].kernel.assign(2 * brightness[None])
    model.layers[-1].bias.assign(-(brightness**2))
    model.save(path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of images, named as three classes. One has folders of its own."""
    folder = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for brightness, name in zip((20, 100, 180), ("cat", "dog/small", "zebra finch")):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            pixels = random.integers(brightness, brightness + 60, (16, 16), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def test_a_run_is_audited_as_a_user_does_it(run: Path):
    """In a real process, from another folder."""
    result = wait_for(start_command("audit", "--workdir=run", "--images=50", cwd=run.parent))
    assert result.code == 0, result.err
    assert result.out.splitlines()[-1] == "run/audit.json, audit.md and figures/audit.png are written."
    found = json.loads((run / "audit.json").read_text())
    assert found["images"] == 50 and found["labeled"]
    assert found["subject"] == "final.keras, test images of digits"
    summary = json.loads((run / "summary.json").read_text())
    assert found["macs"] == summary["macs"]
    card = (run / "README.md").read_text()
    assert "## Audit" in card and (run / "audit.md").read_text().strip() in card
    assert (run / "figures" / "audit.png").stat().st_size > 10_000
    assert (run / "audit.md").read_text() in result.out


def test_all_test_images_give_the_accuracy_of_the_run(run: Path):
    result = run_here(AUDIT, f"--workdir={run}", "--images=100000")
    assert result.code == 0, result.err
    accuracy = json.loads((run / "audit.json").read_text())["accuracy"]
    assert accuracy == pytest.approx(json.loads((run / "summary.json").read_text())["test_accuracy"], abs=1e-6)


def test_the_best_model_and_another_split_go_to_another_folder(run: Path, tmp_path: Path):
    before = contents(run)
    result = run_here(AUDIT, f"--workdir={run}", "--model=best.keras", "--images=5")
    assert result.code == 0 and "Nothing is written" in result.out
    arguments = ["--model=best.keras", "--split=validation", "--images=20", f"--output={tmp_path / 'out'}"]
    result = run_here(AUDIT, f"--workdir={run}", *arguments)
    assert result.code == 0, result.err
    assert contents(run) == before
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    sizes = json.loads((run / "run.json").read_text())["data"]["split_sizes"]
    assert found["images"] == min(20, sizes["validation"])
    assert found["subject"] == "best.keras, validation images of digits"
    best = json.loads((run / "summary.json").read_text())["best_validation_accuracy"]
    assert sizes["validation"] > 20 or found["accuracy"] == pytest.approx(best, abs=1e-6)


def test_a_users_model_is_audited_on_folders_of_images(model_file: Path, photos: Path, tmp_path: Path):
    arguments = [f"--model={model_file}", "--value_range=0,1", "--image_size=16", f"--output={tmp_path}"]
    result = run_here(AUDIT, *arguments, str(photos))
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "audit.json").read_text())
    assert found["images"] == 12 and found["image_shape"] == [16, 16, 1] and found["labeled"]
    assert [pooling["layer"] for pooling in found["poolings"]] == ["mean"]
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["subject"] == f"{model_file}, images of {photos}"
    assert "in this order: 0 cat, 1 dog, 2 zebra finch." in result.err
    some = run_here(AUDIT, *arguments, "--images=3", str(photos))
    assert some.code == 0
    found = json.loads((tmp_path / "audit.json").read_text())
    assert found["images"] == 3 and found["accuracy"] == pytest.approx(2 / 3)  # Of every class as many.


def test_images_without_classes_are_audited_without_labels(model_file: Path, photos: Path):
    result = run_here(AUDIT, f"--model={model_file}", "--value_range=0,1", "--image_size=16", str(photos / "cat"))
    assert result.code == 0, result.err
    assert "The right classes are not known: the model has 3 classes, and there are 0 folders of images" in result.err
    assert "share that keeps its class under FGSM" in result.out
    assert "are written" not in result.out and "Nothing is written" in result.out


@pytest.mark.slow
def test_a_model_of_keras_applications_is_preprocessed_as_it_needs(photos: Path, tmp_path: Path):
    options = {"alpha": 0.35, "weights": None, "input_shape": (32, 32, 3), "classes": 3}
    keras.applications.MobileNetV2(**options).save(tmp_path / "mobile.keras")
    arguments = [f"--model={tmp_path / 'mobile.keras'}", "--preprocess=mobilenet_v2", f"--output={tmp_path}"]
    result = run_here(AUDIT, *arguments, str(photos))
    assert result.code == 0, result.err
    poolings = json.loads((tmp_path / "audit.json").read_text())["poolings"]
    assert [pooling["kind"] for pooling in poolings] == ["Conv2D", *["DepthwiseConv2D"] * 4]


def test_mistakes_end_in_one_clear_line(run: Path, model_file: Path, photos: Path, tmp_path: Path):
    inputs = [keras.Input((16, 16, 1)), keras.Input((16, 16, 1))]
    two = tmp_path / "two.keras"
    keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(keras.layers.Add()(inputs)))).save(two)
    unbuilt = tmp_path / "unbuilt.keras"
    with pytest.warns(UserWarning, match="not yet been built"):
        keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(3)]).save(unbuilt)
    broken = tmp_path / "broken"
    for name in ("a.png", "b.jpg"):
        broken.mkdir(exist_ok=True)
        (broken / name).write_text("no image")
    damaged = Path(shutil.copy(model_file, tmp_path / "damaged.keras"))
    truncate(damaged)
    own, size = f"--model={model_file}", "--image_size=16"
    expected = {
        (own,): "Give --workdir=RUN, or --model=FILE.keras and",
        (own, str(photos)): f"{model_file} takes images of any size: give --image_size",
        (own, size, str(tmp_path / "none")): f"There is no {tmp_path / 'none'}",
        (own, size, "--value_range=1", str(photos)): "--value_range must be two numbers such as 0,1, got 1",
        (own, size, "--value_range=1,0", str(photos)): "value_range must be the values of black and white",
        (own, size, "--preprocess=lenet", str(photos)): "--preprocess must be one of",
        (
            own,
            size,
            "--preprocess=mobilenet",
            "--value_range=-1,1",
            str(photos),
        ): "--value_range is not for a model with",
        (f"--model={unbuilt}", size, str(photos)): f"{unbuilt} is not built: call the model on an image",
        (f"--model={tmp_path / 'none.keras'}", str(photos)): "There is no",
        (f"--model={damaged}", str(photos)): "damaged.keras is damaged",
        (f"--model={two}", str(photos)): "audit takes models of one image",
        (f"--workdir={run}", str(photos)): "a run is audited on its own images",
        (
            f"--workdir={run}",
            own,
        ): "--model must be a .keras file in the folder of the run, such as final.keras or best.keras",
        (f"--workdir={tmp_path / 'none'}",): "--workdir must be the folder of a run",
        (f"--workdir={run}", "--value_range=0,1"): "--value_range is not for a run",
        (f"--workdir={run}", size): "--image_size is not for a run",
        (own, size, "--split=train", str(photos)): "--split is not for a model in a file",
        (f"--model={run / 'final.keras'}", str(photos)): f"is the model of a run: give --workdir={run}",
        (own, size, "--value_range=0,1", f"--output={two}", str(photos)): f"{two} cannot be written to",
        (own, size, str(photos), str(broken)): "2 of 14 files cannot be read as images",
    }
    before = contents(run)
    for arguments, culprit in expected.items():
        result = run_here(AUDIT, *arguments)
        assert result.code == 1 and "Traceback" not in result.err
        assert culprit in result.err.splitlines()[-1], result.err
    assert contents(run) == before
