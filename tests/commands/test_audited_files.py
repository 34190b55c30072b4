"""Models in files, as `audit` reads them, and the images that it gives them. Nothing is measured here."""

import io
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image
from support.commands import Result, assert_one_clear_line, contents, run_here
from support.paths import TESTS

from diffstride_hybrid import Resnet
from diffstride_hybrid.audit import __main__ as command
from diffstride_hybrid.audit import auditing
from diffstride_hybrid.audit.classifier import Classifier
from diffstride_hybrid.audit.report import Audit

FIGURES = Audit(
    images=1,
    image_shape=(8, 8, 3),
    labeled=False,
    seed=0,
    accuracy=None,
    consistency={"mirrored, whole": 1.0},
    worst_case_consistency=1.0,
    worst_case_accuracy=1.0,
    corruptions={"noise": [1.0, 1.0, 1.0]},
    attacks={"1/255": 1.0},
    without_gradient=0.0,
    poolings=[],
    macs=0,
    pooling_macs=0,
    parameters=0,
    batch_size=1,
    milliseconds={"1": 1.0},
    peak_megabytes=None,
)


@pytest.fixture(autouse=True)
def audited(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command gives to `audit`, which returns `FIGURES` here."""
    given: dict[str, Any] = {}

    def audit(model: keras.Model, images: np.ndarray, labels: Sequence[int] | None, **options: Any) -> Audit:
        given.update(model=model, images=images, labels=labels, **options)
        return FIGURES

    monkeypatch.setattr(command, "audit", audit)
    return given


def saved(path: Path, classes: int = 2, shape: tuple[int, ...] = (8, 8, 3), **compiled_with: Any) -> Path:
    """A model in a file, compiled if a test says with what."""
    model = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(classes)])
    if compiled_with:
        model.compile(**compiled_with)
    model.save(path)
    return path


def draw(folder: Path, *names: str) -> Path:
    """A folder of red images."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(folder / name)
    return folder


def run_audit(*arguments: str | Path) -> Result:
    return run_here("audit.__main__", *map(str, arguments))


def test_a_model_compiled_with_a_loss_of_its_own_is_audited(tmp_path: Path, audited: dict[str, Any]):
    def own_loss(labels: Any, outputs: Any) -> Any:
        return keras.ops.mean(keras.ops.square(outputs), -1)

    model = saved(tmp_path / "own.keras", loss=own_loss, optimizer="sgd")
    result = run_audit(f"--model={model}", draw(tmp_path / "photos", "a.png"))
    assert result.code == 0, result.err
    assert audited["images"].shape == (1, 8, 8, 3)


def test_folders_of_splits_are_not_taken_for_classes(tmp_path: Path, audited: dict[str, Any]):
    model = saved(tmp_path / "two.keras")
    photos = draw(tmp_path / "photos", *(f"{split}/{name}/a.png" for split in ("Train", "test") for name in "ab"))
    result = run_audit(f"--model={model}", photos)
    assert result.code == 1
    assert f"name the folder of one split, such as {photos / 'test'}" in result.err.splitlines()[-1]
    assert "in this order" not in result.err
    assert run_audit(f"--model={model}", photos / "test").code == 0
    assert audited["labels"].tolist() == [0, 1]


@pytest.mark.parametrize("names", [("test", "cat"), ("trains", "tests")])
def test_a_class_may_have_the_name_of_a_split(names: Sequence[str], tmp_path: Path, audited: dict[str, Any]):
    photos = draw(tmp_path / "photos", *(f"{name}/a.png" for name in names))
    result = run_audit(f"--model={saved(tmp_path / 'two.keras')}", photos)
    assert result.code == 0, result.err
    assert audited["labels"].tolist() == [0, 1]


MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]


def normalized_by(*options: str, audited: dict[str, Any], photos: Path, model: Path) -> np.ndarray:
    """What the model gets of the first pixel."""
    result = run_audit(f"--model={model}", *options, photos)
    assert result.code == 0, result.err
    assert audited["value_range"] == (0, 255)
    return np.asarray(audited["preprocess"](audited["images"]))[0, 0, 0]


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    model = Resnet([2, 2], [1, 2], 2, num_layers=1)
    model.build((None, 8, 8, 3))
    model.save(tmp_path / "resnet.keras")
    return tmp_path / "resnet.keras"


def test_a_resnet_of_this_package_is_not_given_pixels_unasked(resnet: Path, tmp_path: Path, audited: dict[str, Any]):
    photos = draw(tmp_path / "photos", "a.png")
    result = run_audit(f"--model={resnet}", photos)
    assert result.code == 1 and len(result.err.splitlines()) == 1
    assert "give --mean and --std" in result.err and "--value_range" in result.err
    asked = run_audit(f"--model={resnet}", "--value_range=0,255", photos)
    assert asked.code == 0, asked.err
    assert audited["preprocess"] is None


def test_pixels_are_normalized_as_in_training(resnet: Path, tmp_path: Path, audited: dict[str, Any]):
    given = {"audited": audited, "photos": draw(tmp_path / "photos", "a.png"), "model": resnet}
    of_channels = [f"--{name}={','.join(map(str, values))}" for name, values in (("mean", MEAN), ("std", STD))]
    red = np.array([1.0, 0.0, 0.0])
    np.testing.assert_allclose(normalized_by(*of_channels, **given), (red - MEAN) / STD, rtol=1e-5)
    np.testing.assert_allclose(normalized_by("--mean=0.5", "--std=0.25", **given), (red - 0.5) / 0.25, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (("--mean=0.5",), "--mean and --std belong together"),
        (("--mean=0.5,0.5", "--std=0.2"), "--mean must be one number, or one for each of the 3 channels"),
        (("--mean=125", "--std=60"), "--mean must be from 0 to 1, as of images scaled to 0..1, got 125"),
        (("--mean=0.5", "--std=0"), "--std must be above 0 and at most 1, as of images scaled to 0..1, got 0"),
        (("--mean=a", "--std=0.2"), "--mean must be numbers such as 0.5,0.4,0.4, got a"),
        (("--mean=nan", "--std=0.2"), "got nan"),
        (("--mean=0.5", "--std=0.2", "--value_range=0,1"), "--value_range is not for a model with --mean and --std"),
        (("--mean=0.5", "--std=0.2", "--preprocess=mobilenet"), "--preprocess is not for a model with --mean and"),
        (("--workdir=run", "--mean=0.5"), "--mean is not for a run: leave it out"),
    ],
)
def test_mistakes_in_a_normalization_end_in_one_clear_line(options: Sequence[str], culprit: str, tmp_path: Path):
    photos = draw(tmp_path / "photos", "a.png")
    assert_one_clear_line(run_audit(f"--model={saved(tmp_path / 'two.keras')}", *options, photos), culprit)


def test_names_that_cannot_be_encoded_lose_no_audit(tmp_path: Path, out_to: Callable[..., Any]):
    output = tmp_path / os.fsdecode(b"out\xff")
    photos = draw(tmp_path / os.fsdecode(b"a|b\xff\nc"), "a.png")
    arguments = [f"--model={saved(tmp_path / 'two.keras')}", f"--output={output}"]
    stream = io.TextIOWrapper(io.BytesIO(), "utf-8")
    assert out_to(stream, "audit.__main__", *arguments, photos) == 0
    lines = (output / "audit.md").read_text(encoding="utf-8").splitlines()
    (row,) = [line for line in lines if line.startswith("| audited")]
    assert row.endswith(r"a\|b\udcff c |")
    assert row in stream.buffer.getvalue().decode()


def test_the_files_are_written_though_nobody_reads_the_tables(tmp_path: Path, out_to: Callable[..., Any]):
    arguments = [f"--model={saved(tmp_path / 'two.keras')}", f"--output={tmp_path / 'out'}"]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", 1) as stream:
        assert out_to(stream, "audit.__main__", *arguments, draw(tmp_path / "photos", "a.png")) == 1
    assert {"audit.json", "audit.md"} <= {path.name for path in (tmp_path / "out").iterdir()}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run, with one more model in it."""
    folder = Path(shutil.copytree(TESTS / "fixtures" / "finished", tmp_path / "run"))
    shutil.copy(folder / "best.keras", folder / "epoch_3.keras")
    return folder


def test_any_model_in_the_folder_of_a_run_is_audited_as_the_message_says(run: Path, audited: dict[str, Any]):
    refused = run_audit(f"--model={run / 'epoch_3.keras'}", draw(run.parent / "photos", "a.png"))
    assert_one_clear_line(refused, f"give --workdir={run} --model=epoch_3.keras")
    before = contents(run)
    result = run_audit(f"--workdir={run}", "--model=epoch_3.keras", "--images=5")
    assert result.code == 0, result.err
    assert len(audited["images"]) == 5
    assert "epoch_3.keras, test images of digits" in result.out and "Nothing is written" in result.out
    assert contents(run) == before


@pytest.mark.parametrize("name", ["other.keras", "../epoch_3.keras", "run.json", "epoch_3"])
def test_what_is_no_model_in_the_folder_of_a_run_is_refused(name: str, run: Path):
    shutil.copy(run / "epoch_3.keras", run.parent)
    (run / "epoch_3").mkdir()
    assert_one_clear_line(run_audit(f"--workdir={run}", f"--model={name}"), name)


def first_outputs(audited: dict[str, Any]) -> np.ndarray:
    """What the model gives for the first batch, which `audit` refuses if images do not fit the model."""
    options = {"data_format": keras.config.image_data_format()} | {
        name: audited[name] for name in ("value_range", "preprocess", "batch_size", "data_format") if name in audited
    }
    low, high = options["value_range"]
    pixels = auditing._pixels(audited["images"], low, high, options["data_format"])
    classifier = Classifier(audited["model"], **options)
    classifier.check(pixels)
    batch, count = next(classifier.batches(pixels))
    return audited["model"].predict_on_batch(batch)[:count]


@pytest.mark.parametrize("default", ["channels_first", "channels_last"])
def test_the_images_of_a_run_have_their_channels_last_whatever_the_default(
    default: str, run: Path, audited: dict[str, Any]
):
    keras.config.set_image_data_format(default)
    result = run_audit(f"--workdir={run}", "--images=5")
    assert result.code == 0, result.err
    assert first_outputs(audited).shape == (5, 10)


@pytest.mark.parametrize("default", ["channels_first", "channels_last"])
@pytest.mark.parametrize("given", ["channels_first", "channels_last"])
def test_a_model_in_a_file_gets_images_in_its_own_layout(
    given: str, default: str, tmp_path: Path, audited: dict[str, Any]
):
    """Whatever the default when it is audited. The brightest red, green and blue are its outputs."""
    inputs = keras.Input((3, 8, 10) if given == "channels_first" else (8, 10, 3))
    keras.Model(inputs, keras.layers.GlobalMaxPooling2D(data_format=given)(inputs)).save(tmp_path / "own.keras")
    keras.config.set_image_data_format(default)
    options = [f"--model={tmp_path / 'own.keras'}", "--mean=0.5,0.25,0", "--std=0.5,0.5,1"]
    result = run_audit(*options, draw(tmp_path / "photos", "a.png"))
    assert result.code == 0, result.err
    np.testing.assert_allclose(first_outputs(audited), [[1.0, -0.5, 0.0]], atol=1e-6)
    of_vgg = run_audit(*options[:1], "--preprocess=vgg16", tmp_path / "photos")
    assert of_vgg.code == 0, of_vgg.err
    np.testing.assert_allclose(first_outputs(audited), [[-103.939, -116.779, 255 - 123.68]], atol=1e-3)


@pytest.mark.parametrize(
    ("folders", "culprit"),
    [
        (("training_set/a", "training_set/b", "test_set/a", "test_set/b"), "such as {}/test_set"),
        (("a/train", "a/test", "b/train", "b/test"), "put the splits above the classes, as in train/a and test/a"),
    ],
)
def test_folders_that_give_wrong_labels_are_refused(folders: Sequence[str], culprit: str, tmp_path: Path):
    photos = draw(tmp_path / "photos", *(f"{folder}/1.png" for folder in folders))
    result = run_audit(f"--model={saved(tmp_path / 'two.keras')}", photos)
    assert_one_clear_line(result, culprit.format(photos))


@pytest.mark.parametrize(("classes", "is_named"), [(2, True), (3, False)])
def test_folders_with_the_same_folders_are_named_if_they_give_the_labels(
    classes: int, is_named: bool, tmp_path: Path, warned: list[str]
):
    photos = draw(tmp_path / "photos", *(f"{part}/{name}/1.png" for part in ("new", "old") for name in ("a", "b")))
    assert run_audit(f"--model={saved(tmp_path / 'model.keras', classes=classes)}", photos).code == 0
    assert [f"name {photos}/new alone" in message for message in warned] == [True] * is_named


def test_a_size_that_the_model_does_not_take_is_refused(tmp_path: Path, audited: dict[str, Any]):
    photos, model = draw(tmp_path / "photos", "a.png"), saved(tmp_path / "two.keras")
    told = f"--image_size=77 is for a model that takes images of any size, and {model} takes 8x8: leave it out."
    assert_one_clear_line(run_audit(f"--model={model}", "--image_size=77", photos), told)
    assert run_audit(f"--model={model}", "--image_size=8", photos).code == 0
    inputs = keras.Input((None, None, 3))
    keras.Model(inputs, keras.layers.GlobalMaxPooling2D()(inputs)).save(tmp_path / "any.keras")
    assert run_audit(f"--model={tmp_path / 'any.keras'}", "--image_size=77", photos).code == 0
    assert audited["images"].shape == (1, 77, 77, 3)
