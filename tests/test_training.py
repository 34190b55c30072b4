import contextlib
import csv
import io
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffstride_hybrid import DiffStride, FixedSpectralPooling, Resnet, SpectralPooling, macs, resnet18
from diffstride_hybrid.common import distribution
from diffstride_hybrid.config import gin_files, gin_names
from diffstride_hybrid.data.augmentation import augment
from diffstride_hybrid.data.datasets import Datasets
from diffstride_hybrid.data.loading import load_datasets
from diffstride_hybrid.model_tools.crop_refresh import CropRefresh, refresh_crops
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.runs.backups import Backups
from diffstride_hybrid.runs.folder import RunFolder
from diffstride_hybrid.runs.logs import MetricsLog, StrideLog, stride_row
from diffstride_hybrid.spectral.windows import diffstride_windows, kept_bins
from diffstride_hybrid.training import run as run_module
from diffstride_hybrid.training.loop import TrainingLoop
from diffstride_hybrid.training.run import evaluate, make_loop

pytestmark = pytest.mark.long

digits = partial(load_datasets, "digits", batch_size=64)
small_digits = partial(digits, image_size=16)
large_batches = partial(small_digits, batch_size=360)  # All test images in one batch.
random_digits = partial(small_digits, augment_fn=augment, mixup_alpha=0.2)

hybrid = {"output_activation": "softmax", "pooling_cls": DiffStride, "head_pooling_cls": SpectralPooling}
small = partial(Resnet, [4, 6], [1, 2], num_layers=1, **hybrid)

Schedule = partial(keras.optimizers.schedules.PiecewiseConstantDecay, [2], [0.1, 0.05])


def optimizer() -> keras.optimizers.Optimizer:
    return keras.optimizers.SGD(Schedule(), momentum=0.9)


def train(workdir: Path, **options: Any) -> dict[str, Any]:
    arguments = {
        "load_data_fn": random_digits,
        "model_cls": small,
        "optimizer_cls": optimizer,
        "num_epochs": 2,
        "steps_per_epoch": 2,
        "workdir": str(workdir),
        **options,
    }
    return run_module.train(**arguments)


def train_a_step(workdir: Path, **options: Any) -> dict[str, Any]:
    options = {"load_data_fn": large_batches, "num_epochs": 1, "steps_per_epoch": 1, **options}
    return train(workdir, **options)


def functional(num_output_classes: int, activation: keras.layers.Layer | None = None) -> keras.Model:
    """A small model that is not a `Resnet`."""
    inputs = keras.Input((16, 16, 1))
    x = keras.layers.Conv2D(4, 3, activation="relu")(inputs)
    x = keras.layers.ReLU()(DiffStride(strides=2, name="learned")(x))
    x = SpectralPooling(strides=2, name="fixed")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(num_output_classes, activation=None if activation else "softmax")(x)
    return keras.Model(inputs, activation(outputs) if activation else outputs)


def load(folder: Path, name: str = "final.keras") -> keras.Model:
    return keras.saving.load_model(folder / name)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def json_of(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def contents(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """All that is in the files of a folder, and when it was written, but for the lock, which no one reads."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != RunFolder.LOCK)
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def assert_same_weights(model: keras.Model, other: keras.Model) -> None:
    for weight, other_weight in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(weight.numpy(), other_weight.numpy(), err_msg=weight.path)


# --- The folder of a run ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A run of the hybrid ResNet-18: its folder, what it returned, what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "made" / "here"
    with contextlib.redirect_stdout(io.StringIO()) as output:
        summary = train(folder, load_data_fn=digits, model_cls=partial(resnet18, width=4, **hybrid), seed=5)
    return folder, summary, output.getvalue()


@pytest.fixture
def folder(full_run: tuple[Path, dict[str, Any], str]) -> Path:
    return full_run[0]


def test_a_run_leaves_its_files_and_nothing_else(folder: Path):
    entries = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert not [entry for entry in entries if "partial" in entry]
    assert {entry for entry in entries if not entry.startswith(("backup/", "tensorboard/"))} == {
        "README.md",
        "run.json",
        "metrics.csv",
        "strides.csv",
        "tensorboard",
        "backup",
        "best.keras",
        "final.keras",
        "figures",
        "figures/curves.png",
        "figures/strides.png",
        "summary.json",
    }
    assert max(folder.rglob("*"), key=lambda path: path.stat().st_mtime_ns).name == "summary.json"
    assert {path.name for path in (folder / "backup").glob("*.index")} == {"ckpt-2-1.index", "ckpt-4-1.index"}


def test_run_json_says_what_was_run(folder: Path):
    record, model = json_of(folder / "run.json"), load(folder)
    assert record["seed"] == 5
    assert set(record["versions"]) >= {"python", "diffstride_hybrid", "tensorflow", "keras", "numpy"}
    assert record["versions"]["tensorflow"] == tf.__version__
    assert record["dtype_policy"] == "float32"
    assert record["parameters"] == model.count_params()
    assert record["strategy"]
    assert any("CPU" in device for device in record["devices"])
    assert record["data"]["name"] == "digits"
    assert record["data"]["split_sizes"] == {"train": 1293, "validation": 144, "test": 360}
    assert record["macs"] == macs(resnet18_of_the_start(), (32, 32, 1)).macs


def resnet18_of_the_start() -> keras.Model:
    model = resnet18(width=4, num_output_classes=10, **hybrid)
    model.build((None, 32, 32, 1))
    return model


def test_run_json_has_the_commit(folder: Path):
    assert re.fullmatch(r"None|[0-9a-f]{7,40}(-dirty|\+)?", str(json_of(folder / "run.json")["commit"]))


def test_metrics_csv_has_a_row_an_epoch(folder: Path):
    rows = rows_of(folder / "metrics.csv")
    assert set(rows[0]) == {
        "epoch",
        "step",
        "learning_rate",
        "loss",
        "accuracy",
        "val_loss",
        "val_accuracy",
        "seconds",
        "images_per_second",
    }
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert [float(row["step"]) for row in rows] == [2, 4]
    np.testing.assert_allclose([float(row["learning_rate"]) for row in rows], [0.1, 0.05])
    for row in rows:
        assert all(np.isfinite(float(value)) for value in row.values())
        assert 0 <= float(row["accuracy"]) <= 1
        np.testing.assert_allclose(float(row["images_per_second"]) * float(row["seconds"]), 2 * 64, rtol=0.05)


def test_strides_csv_has_strides_and_real_sizes_of_every_pooling(folder: Path):
    rows, model = rows_of(folder / "strides.csv"), load(folder)
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    layers = diffstride_layers(model)
    assert len(layers) == 4
    for layer in layers:
        name = layer.path.removeprefix(f"{model.name}/")
        strides = [float(rows[-1][f"{name}/{direction}_stride"]) for direction in ("vertical", "horizontal")]
        np.testing.assert_allclose(strides, layer.strides.numpy(), rtol=1e-6)
    np.testing.assert_allclose(float(rows[0]["block_2/layer_1/pooling/vertical_stride"]), 2)
    assert rows[0]["block_2/layer_1/pooling/vertical_stride"] != rows[-1]["block_2/layer_1/pooling/vertical_stride"]
    assert {name for name in rows[0] if name.startswith("head_pooling/")} == {
        "head_pooling/height",
        "head_pooling/width",
    }
    expected = {"epoch": 2, **stride_row(model, (32, 32, 1))}
    assert {name: float(value) for name, value in rows[-1].items()} == pytest.approx(expected)
    x, heights = tf.zeros([1, 32, 32, 1]), []
    for layer in model.layers:
        x = layer(x)
        if layer.name in ("pooling", "block_1", "block_2", "block_3", "block_4", "head_pooling"):
            heights.append(x.shape[1])
    sizes = [int(rows[-1][f"{name}/height"]) for name in ("pooling", *POOLINGS_OF_BLOCKS, "head_pooling")]
    assert sizes == [heights[0], *heights[2:]]


POOLINGS_OF_BLOCKS = [f"block_{i}/layer_1/pooling" for i in (2, 3, 4)]


@pytest.mark.parametrize("name", ["curves.png", "strides.png"])
def test_figures_are_images(folder: Path, name: str):
    with PIL.Image.open(folder / "figures" / name) as image:
        image.load()
        assert min(image.size) > 300
        assert len(np.unique(np.asarray(image.convert("L")))) > 20


def test_tensorboard_events_hold_the_same_figures(folder: Path):
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    logged = {
        tag: [float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]
        for tag in events.Tags()["tensors"]
    }
    rows = rows_of(folder / "metrics.csv")
    for name in set(rows[0]) - {"epoch"}:
        np.testing.assert_allclose(logged[name], [float(row[name]) for row in rows], rtol=1e-6)
    strides = [tag for tag in logged if tag.startswith("strides/")]
    assert len(strides) == 2 * 4
    rows = rows_of(folder / "strides.csv")[1:]
    expected = [float(row["block_3/layer_1/pooling/horizontal_stride"]) for row in rows]
    np.testing.assert_allclose(logged["strides/block_3/layer_1/pooling/horizontal"], expected, rtol=1e-6)
    for tag, column in (("sizes/block_3/layer_1/pooling/width", "block_3/layer_1/pooling/width"), ("macs", "macs")):
        np.testing.assert_array_equal(logged[tag], [float(row[column]) for row in rows])


def test_the_model_card_says_what_the_run_gave(full_run: tuple[Path, dict[str, Any], str]):
    folder, summary, _ = full_run
    card, record = (folder / "README.md").read_text(encoding="utf-8"), json_of(folder / "run.json")
    assert card.startswith("# here\n\nA classifier of 32x32 images with 1 channel, trained on `digits`")
    for fact in (
        f"| test accuracy, `final.keras` | {summary['test_accuracy']:.2%} of 360 images |",
        f"| validation accuracy, `best.keras` | {summary['best_validation_accuracy']:.2%} of 144 images |",
        f"| MACs an image, poolings | {summary['pooling_macs']:,} |",
        "1,293 train, 144 validation, 360 test images. Classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9.",
        f"less {record['data']['mean'][0]:.4f}, over {record['data']['std'][0]:.4f}",
        f"tensorflow {record['versions']['tensorflow']}",
    ):
        assert fact in card
    (pooling,) = (pooling for pooling in summary["poolings"] if pooling["layer"] == "block_3/layer_1/pooling")
    vertical, horizontal = pooling["strides"]
    (height, width), (new_height, new_width) = pooling["input_size"], pooling["output_size"]
    assert (
        f"| `block_3/layer_1/pooling` | 2.000, 2.000 | {vertical:.3f}, {horizontal:.3f} | {height}x{width} | "
        f"{new_height}x{new_width} |"
    ) in card
    assert "| `head_pooling` | fixed | fixed |" in card
    for path in re.findall(r"!\[.*\]\((.*)\)", card):
        assert (folder / path).exists()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    names: dict[str, Any] = {}
    exec(snippet.replace('load_model("', f'load_model("{folder}/'), names)
    assert names["model"].count_params() == summary["parameters"]


def test_summary_json_is_what_the_run_returned(full_run: tuple[Path, dict[str, Any], str]):
    folder, summary, _ = full_run
    assert json_of(folder / "summary.json") == json.loads(json.dumps(summary))
    model = load(folder)
    cost = macs(model, (32, 32, 1))
    assert summary["macs"] == cost.macs
    assert summary["pooling_macs"] == cost.pooling_macs
    assert summary["parameters"] == model.count_params()
    assert (summary["epochs"], summary["steps"]) == (2, 4)
    poolings = {pooling["layer"]: pooling for pooling in summary["poolings"]}
    assert list(poolings) == ["pooling", *POOLINGS_OF_BLOCKS, "head_pooling"]
    assert poolings["head_pooling"]["strides"] is None
    for layer in diffstride_layers(model):
        pooling = poolings[layer.path.removeprefix(f"{model.name}/")]
        np.testing.assert_array_equal(np.float32(pooling["strides"]), layer.strides.numpy())
    for pooling, (input_size, output_size) in zip(poolings.values(), cost.pooling_sizes().values(), strict=True):
        assert (tuple(pooling["input_size"]), tuple(pooling["output_size"])) == (input_size, output_size)


def test_the_saved_models_give_the_accuracies_in_the_summary(
    full_run: tuple[Path, dict[str, Any], str], uncompiled: None
):
    folder, summary, _ = full_run
    datasets, loss = digits(seed=5, batch_size=360), keras.losses.CategoricalCrossentropy()
    test = evaluate(load(folder), loss, datasets)
    assert test["accuracy"] == summary["test_accuracy"]
    assert test["loss"] == pytest.approx(summary["test_loss"], rel=1e-5)
    best = evaluate(load(folder, "best.keras"), loss, datasets, "validation")
    rows = rows_of(folder / "metrics.csv")
    assert best["accuracy"] == summary["best_validation_accuracy"] == max(float(row["val_accuracy"]) for row in rows)


def test_a_run_prints_one_line_an_epoch(full_run: tuple[Path, dict[str, Any], str]):
    lines = full_run[2].splitlines()
    assert [line.split()[:2] for line in lines] == [["epoch", "1/2"], ["epoch", "2/2"]]
    for line in lines:
        assert re.search(r"loss \d.* accuracy [\d.]+%.* validation [\d.]+%.* images/s", line)


# --- Seeds and resuming ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    train(folder)
    return folder


def test_the_same_seed_gives_the_same_weights_to_the_bit(small_run: Path, tmp_path: Path):
    keras.utils.set_random_seed(99)
    train(tmp_path, steps_per_execution=1)  # Nor does it matter how many steps run in one call.
    assert_same_weights(load(tmp_path), load(small_run))


@pytest.mark.slow
def test_another_seed_gives_other_weights(tmp_path: Path, uncompiled: None):
    runs = [tmp_path / str(seed) for seed in (1, 2)]
    for run in runs:
        train_a_step(run, seed=int(run.name))
    for weight, other in zip(*(load(run).trainable_weights for run in runs), strict=True):
        if weight.name == "kernel":
            assert not np.array_equal(weight.numpy(), other.numpy()), weight.path


@contextlib.contextmanager
def save_no_more_than(steps: int) -> Iterator[None]:
    """Ends a run when it is about to save the backup of a later step."""
    save = Backups.save

    def save_or_stop(backups: Backups, step: int) -> None:
        if step > steps:
            raise InterruptedError("stopped")
        save(backups, step)

    with mock.patch.object(Backups, "save", save_or_stop):
        yield


def read(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


class Stop(keras.callbacks.Callback):
    """Ends a run by an exception."""

    def __init__(self, event: str, epoch: int):
        super().__init__()
        setattr(self, event, partial(self.stop, epoch))

    def stop(self, at_epoch: int, epoch: int, logs: Any = None) -> None:
        if epoch == at_epoch:
            raise InterruptedError("stopped")


def test_a_stopped_run_goes_on_as_if_it_had_not_been(
    small_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for stop in (
        {"saved_steps": 2},  # The second epoch is recorded, not saved.
        {"callbacks": [Stop("on_epoch_begin", 1)]},  # Between two epochs.
    ):
        with save_no_more_than(stop.pop("saved_steps", 4)), pytest.raises(InterruptedError):
            train(tmp_path, **stop)
        assert not (tmp_path / "summary.json").exists()
    assert len(rows_of(tmp_path / "metrics.csv")) == 2
    train(tmp_path)
    lines = [line.split()[0] + " " + line.split()[-1 if "resuming" in line else 1] for line in read(capsys)]
    assert lines == ["epoch 1/2", "resuming 1", "resuming 1", "epoch 2/2"]

    for name in ("final.keras", "best.keras"):
        assert_same_weights(load(tmp_path, name), load(small_run, name))
    assert (tmp_path / "strides.csv").read_text() == (small_run / "strides.csv").read_text()
    timed = {"seconds", "images_per_second"}
    metrics, expected = (
        [{name: value for name, value in row.items() if name not in timed} for row in rows_of(run / "metrics.csv")]
        for run in (tmp_path, small_run)
    )
    assert metrics == expected
    summary, expected = (json_of(run / "summary.json") for run in (tmp_path, small_run))
    assert summary | {"training_seconds": 0} == expected | {"training_seconds": 0}
    seconds = [float(row["seconds"]) for row in rows_of(tmp_path / "metrics.csv")]  # Of both sittings.
    assert summary["training_seconds"] > sum(seconds) - 0.1


def test_a_folder_with_the_backup_of_another_model_is_refused(tmp_path: Path, uncompiled: None):
    with pytest.raises(InterruptedError):
        train(tmp_path, callbacks=[Stop("on_epoch_begin", 1)])
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=rf"{tmp_path}.* another (model|run)"):
        train(tmp_path, model_cls=partial(small, pooling_cls=None))
    assert contents(tmp_path) == before


# --- Folders that cannot be used -------------------------------------------------------------------------------------


def test_a_finished_folder_is_refused_and_kept(small_run: Path):
    before = contents(small_run)
    with pytest.raises(ValueError, match=rf"{small_run} holds a finished run"):
        train(small_run)
    assert contents(small_run) == before


@pytest.mark.parametrize("below", ["", "run", "run/1"])
def test_a_folder_that_cannot_be_written_to_is_refused(tmp_path: Path, below: str):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(OSError, match=rf"The workdir {file / below} cannot be written to"):
        train(file / below)
    assert file.read_text() == "mine"


def test_what_is_in_the_folder_survives_a_failed_start(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match="batch_size is too large"):
        train(tmp_path, load_data_fn=partial(digits, batch_size=9999))
    assert contents(tmp_path) == before


# --- Loss, precision, evaluation -------------------------------------------------------------------------------------


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray, label_smoothing: float) -> float:
    targets = labels * (1 - label_smoothing) + label_smoothing / labels.shape[1]
    return float(-(targets * np.log(probabilities)).sum(axis=1).mean())


def test_evaluation_counts_every_image_once(uncompiled: None):
    datasets = small_digits()
    model = small(num_output_classes=10)
    model.build((None, *datasets.image_shape))
    batches = datasets.evaluation("test").as_numpy_iterator()
    images, labels, weights = (np.concatenate(parts) for parts in zip(*batches))
    assert len(weights) > np.sum(weights) == 360
    images, labels = images[weights > 0], labels[weights > 0]
    probabilities = model.predict(images, verbose=0)
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.2)
    results = evaluate(model, loss, datasets)
    assert results["accuracy"] == pytest.approx(np.mean(probabilities.argmax(1) == labels.argmax(1)), abs=1e-6)
    expected = cross_entropy(probabilities, labels, 0.2) + float(sum(model.losses))
    assert results["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_label_smoothing_takes_effect_in_training(tmp_path: Path, uncompiled: None):
    loss_cls = partial(keras.losses.CategoricalCrossentropy, label_smoothing=0.2)
    train_a_step(tmp_path, load_data_fn=small_digits, loss_cls=loss_cls)
    keras.utils.set_random_seed(1)  # As `train` does, so this model is as that one was at the start.
    model = small(num_output_classes=10)
    model.build((None, 16, 16, 1))
    images, labels = next(small_digits().train().as_numpy_iterator())
    probabilities = np.asarray(model(images, training=True))
    smoothed, plain = (cross_entropy(probabilities, labels, smoothing) for smoothing in (0.2, 0.0))
    loss = float(rows_of(tmp_path / "metrics.csv")[0]["loss"]) - float(sum(model.losses))
    assert loss == pytest.approx(smoothed, rel=1e-4)
    assert loss != pytest.approx(plain, rel=1e-2)


@pytest.mark.parametrize(
    ("activation", "from_logits", "message"),
    [("softmax", True, "got 'softmax' and True"), (None, False, "got 'linear' and False")],
)
def test_a_loss_that_does_not_fit_the_outputs_is_refused(
    tmp_path: Path, activation: str | None, from_logits: bool, message: str
):
    with pytest.raises(ValueError, match=rf"output_activation must be 'softmax', .*from_logits = True; {message}"):
        train_a_step(
            tmp_path,
            model_cls=partial(small, output_activation=activation),
            loss_cls=partial(keras.losses.CategoricalCrossentropy, from_logits=from_logits),
        )


@pytest.mark.parametrize(
    "options",
    [
        {
            "model_cls": partial(small, output_activation=None),
            "loss_cls": partial(keras.losses.CategoricalCrossentropy, from_logits=True),
        },
        {"model_cls": partial(small, output_activation="sigmoid"), "loss_cls": keras.losses.BinaryCrossentropy},
        {"model_cls": partial(functional, activation=keras.layers.Softmax())},
    ],
    ids=["logits", "another loss", "a model of one's own"],
)
def test_other_losses_and_models_train(tmp_path: Path, uncompiled: None, options: dict[str, Any]):
    summary = train_a_step(tmp_path, **options)
    assert np.isfinite(summary["test_loss"])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_other_precisions_train_and_save(tmp_path: Path, request: pytest.FixtureRequest, policy: str):
    if policy != "mixed_float16":  # Whose loss scaling differs between eager and compiled steps.
        request.getfixturevalue("uncompiled")
    scaling = mock.Mock(wraps=distribution.LossScaleOptimizer)
    with mock.patch.object(distribution, "LossScaleOptimizer", scaling):
        summary = train_a_step(tmp_path, dtype_policy=policy)
    assert scaling.call_count == (policy == "mixed_float16")
    assert keras.config.dtype_policy().name == "float32"
    assert json_of(tmp_path / "run.json")["dtype_policy"] == policy
    assert np.isfinite(summary["test_loss"])
    model = load(tmp_path)
    assert model.dtype_policy.name == policy
    start = small(num_output_classes=10, dtype=policy)
    start.build((None, 16, 16, 1))
    for weight, initial in zip(model.trainable_weights, start.trainable_weights, strict=True):
        assert np.isfinite(weight.numpy()).all()
        assert weight.dtype == initial.dtype
        if weight.name != "strides":  # They may have been held at their least value.
            assert not np.array_equal(weight.numpy(), initial.numpy()), weight.path
    results = evaluate(model, keras.losses.CategoricalCrossentropy(), large_batches())
    assert results["accuracy"] == summary["test_accuracy"]


def test_the_global_dtype_policy_is_restored_after_an_error(tmp_path: Path):
    def fail(seed: int) -> Datasets:
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
        raise OSError("no data")

    with pytest.raises(OSError, match="no data"):
        train(tmp_path, load_data_fn=fail, dtype_policy="mixed_bfloat16")
    assert keras.config.dtype_policy().name == "float32"


def test_a_run_without_validation_split(tmp_path: Path, uncompiled: None):
    load_data_fn = partial(large_batches, validation_fraction=0.0)
    summary = train_a_step(tmp_path, load_data_fn=load_data_fn)
    assert summary["best_validation_accuracy"] is None
    assert not (tmp_path / "best.keras").exists()
    assert (tmp_path / "figures" / "curves.png").exists()
    assert not [name for name in rows_of(tmp_path / "metrics.csv")[0] if name.startswith("val_")]
    with pytest.raises(ValueError, match="The validation split of digits has no images"):
        evaluate(load(tmp_path), keras.losses.CategoricalCrossentropy(), load_data_fn(), "validation")


def test_a_run_without_learned_strides_has_no_figure_of_them(tmp_path: Path, uncompiled: None):
    train_a_step(tmp_path, model_cls=partial(small, pooling_cls=None, head_pooling_cls=None))
    assert (tmp_path / "figures" / "curves.png").exists()
    assert "strides.png" not in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert not (tmp_path / "figures" / "strides.png").exists()
    assert set(rows_of(tmp_path / "strides.csv")[0]) == {"epoch", "macs"}


def test_steps_per_epoch_is_one_pass_over_the_data_unless_given(tmp_path: Path, uncompiled: None):
    summary = train_a_step(tmp_path, steps_per_epoch=None, load_data_fn=partial(small_digits, batch_size=600))
    assert summary["steps"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_epochs": 0}, r"train\.train\.num_epochs must be a whole number of at least 1, got 0\."),
        ({"num_epochs": "three"}, r"train\.train\.num_epochs must be a whole number of at least 1, got 'three'\."),
        ({"num_epochs": True}, r"train\.train\.num_epochs must be a whole number of at least 1, got True\."),
        ({"steps_per_epoch": 0}, r"train\.train\.steps_per_epoch must be a whole number of at least 1, got 0\."),
        ({"steps_per_epoch": 1.5}, r"train\.train\.steps_per_epoch must be a whole number of at least 1, got 1\.5\."),
        ({"steps_per_execution": 0}, r"train\.train\.steps_per_execution must be a whole number of at least 1"),
        ({"dtype_policy": "half"}, r"train\.train\.dtype_policy must be one of 'auto', 'float32', .*, got 'half'\."),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **options)


# --- XLA and static crops --------------------------------------------------------------------------------------------


METHODS = {
    "strided": {},
    "spectral": {"pooling_cls": FixedSpectralPooling},
    "DiffStride": {"pooling_cls": DiffStride},
    "hybrid": hybrid,
    "hybrid before the activation": {**hybrid, "head_placement": "before_activation"},
}


def loop_of(jit_compile: bool = False, **options: Any) -> TrainingLoop:
    keras.utils.set_random_seed(1)
    loop = make_loop(
        small_digits(augment_fn=augment),
        partial(Resnet, [4, 6], num_layers=1, **{"strides": [1, 2], **options, "output_activation": "softmax"}),
        partial(keras.optimizers.SGD, 0.01, momentum=0.9),
        keras.losses.CategoricalCrossentropy,
        jit_compile=jit_compile,
    )
    loop.start(0)
    return loop


def losses_of(loop: TrainingLoop, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        loop.train_steps(1)
        losses.append(loop.results()["loss"])
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_xla_trains_every_method_to_the_same_losses(options: dict[str, Any], eager_steps: Any):
    compiled = loop_of(jit_compile=True, **options)
    losses, results = losses_of(compiled, 10), compiled.evaluate("test")
    with eager_steps():
        plain = loop_of(**options)
        expected, expected_results = losses_of(plain, 10), plain.evaluate("test")
    assert max(expected) - min(expected) > 1e-2
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert results["loss"] == pytest.approx(expected_results["loss"], rel=1e-3)


@pytest.mark.slow
def test_xla_trains_in_bfloat16(eager_steps: Any):
    keras.config.set_dtype_policy("mixed_bfloat16")
    compiled = losses_of(loop_of(jit_compile=True, **hybrid), 10)
    with eager_steps():
        plain = losses_of(loop_of(**hybrid), 10)
    np.testing.assert_allclose(compiled, plain, rtol=3e-2)  # A few of bfloat16's steps of 2^-8.


@pytest.mark.parametrize("jit_compile", [pytest.param(False, marks=pytest.mark.slow), True], ids=["plain", "XLA"])
def test_a_static_crop_that_must_change_goes_on_as_the_dynamic_one(jit_compile: bool):
    """With a look before each step and no hysteresis both crop alike, so that they differ by rounding only.

    Rounding grows to some 1e-4 of the greatest weight in eight steps; a crop off by one bin makes 1e-2 of it.
    """
    dynamic = loop_of(strides=[1.4, 2.2], pooling_cls=DiffStride)
    static = loop_of(jit_compile, strides=[1.4, 2.2], pooling_cls=partial(DiffStride, static_crop=True))
    for loop in (dynamic, static):
        for step in range(8):
            if step == 4:
                for layer in diffstride_layers(loop.model):
                    layer.strides.assign([2.9, 1.8])
            refresh_crops(loop.model, (16, 16, 1))
            loop.train_steps(1)
    assert (static.retraces, dynamic.retraces) == (1, 0)
    for weight, other in zip(static.model.weights, dynamic.model.weights, strict=True):
        scale = max(np.abs(other.numpy()).max(), 0.1)
        np.testing.assert_allclose(weight.numpy(), other.numpy(), rtol=1e-3, atol=1e-3 * scale, err_msg=weight.path)
    assert static.results()["loss"] == pytest.approx(dynamic.results()["loss"], rel=1e-4)


def test_a_run_with_static_crops_refreshes_them_and_counts_the_retraces(tmp_path: Path):
    strides = [[1.6, 1.6], [2.9, 1.9], [2.9, 1.9]]  # At the start, and as they become during each epoch.

    class Move(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            for layer in diffstride_layers(self.model):
                layer.strides.assign(strides[epoch])

    options = {"model_cls": partial(small, pooling_cls=partial(DiffStride, static_crop=True)), "callbacks": [Move()]}
    summary = train(tmp_path, num_epochs=3, **options)
    assert summary["retraces"] == 1
    rows = rows_of(tmp_path / "strides.csv")
    sizes = [(row["pooling/height"], row["pooling/width"]) for row in rows]
    assert sizes[1] != sizes[2] == sizes[3]
    model = load(tmp_path)
    for layer in diffstride_layers(model):
        assert layer.crops
    poolings = [tuple(pooling["output_size"]) for pooling in summary["poolings"]]
    assert [size for _, size in macs(model, (16, 16, 1)).pooling_sizes().values()] == poolings


@pytest.mark.slow
def test_a_stopped_run_keeps_its_static_crops(tmp_path: Path, uncompiled: None):
    """Strides that have gone back over the edge, but not far enough, alone do not tell the crop."""
    looks = []

    class Waver(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            for layer in diffstride_layers(self.model):
                layer.strides.assign([2.9, 2.0] if epoch == 0 else [2.66, 2.0])  # The edge is at 8 / 3.

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            looks.append([layer.crops for layer in diffstride_layers(self.model)])

    options = {
        "load_data_fn": large_batches,
        "steps_per_epoch": 2,
        "steps_per_execution": 1,
        "num_epochs": 3,
        "optimizer_cls": partial(keras.optimizers.SGD, 1e-6),
        "model_cls": partial(small, pooling_cls=partial(DiffStride, static_crop=True)),
    }
    train(tmp_path / "whole", callbacks=[Waver()], **options)
    expected, looks = looks, []
    with pytest.raises(InterruptedError):
        train(tmp_path / "stopped", callbacks=[Waver(), Stop("on_epoch_begin", 2)], **options)
    summary = train(tmp_path / "stopped", callbacks=[Waver()], **options)
    assert looks == expected
    # Run eagerly, each step counts as a trace, of which all but the first of each sitting are retraces.
    assert summary["retraces"] == 4 - 1 + 2 - 1
    fresh = load(tmp_path / "stopped")
    before = [layer.crops for layer in diffstride_layers(fresh)]
    assert refresh_crops(fresh, (16, 16, 1))
    assert [layer.crops for layer in diffstride_layers(fresh)] != before


def test_a_resumed_run_looks_at_the_crops_at_the_same_steps():
    def looks(first_epoch: int) -> list[tuple[int, int]]:
        refresh, found = CropRefresh(every_steps=22), []
        refresh.set_params({"steps": 22})
        for epoch in range(first_epoch, 4):
            refresh.on_epoch_begin(epoch)
            for batch in (7, 15, 21):
                with mock.patch.object(refresh, "_refresh", partial(found.append, (epoch, batch))):
                    refresh.on_train_batch_end(batch)
        return found

    assert looks(0) == [(epoch, 21) for epoch in range(4)]
    assert looks(2) == looks(0)[2:]


def test_a_map_of_another_size_is_no_change_of_the_crops():
    model = small(num_output_classes=10, pooling_cls=partial(DiffStride, static_crop=True))
    model.build((None, 16, 16, 1))
    refresh_crops(model, (16, 16, 1))
    model(tf.zeros([1, 12, 12, 1]))
    assert not refresh_crops(model, (16, 16, 1))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [40, 8])
def test_retraces_over_a_full_digits_run_stay_under_ten(tmp_path: Path, steps: int):
    gin_files.parse([gin_files.find_gin_file("digits_hybrid")], ["pooling.DiffStride.static_crop = True"])
    summary = gin_names.train(workdir=str(tmp_path), crop_refresh_steps=steps)
    assert summary["test_accuracy"] > 0.98
    assert summary["retraces"] < 10


# --- Callbacks in a user's own fit -----------------------------------------------------------------------------------


def test_the_callbacks_serve_a_users_own_fit(tmp_path: Path):
    model = functional(10)
    model.compile(keras.optimizers.SGD(0.5), "categorical_crossentropy", metrics=["accuracy"])
    images, labels = next(small_digits().train().as_numpy_iterator())
    folder = tmp_path / "fit"
    callbacks = [StrideLog(str(folder)), MetricsLog(folder)]
    model.fit(images, labels, batch_size=32, epochs=2, verbose=0, callbacks=callbacks)

    rows = rows_of(folder / "strides.csv")
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert set(rows[0]) == {
        "epoch",
        "learned/vertical_stride",
        "learned/horizontal_stride",
        "learned/height",
        "learned/width",
        "fixed/height",
        "fixed/width",
        "macs",
    }
    np.testing.assert_array_equal([float(rows[0][f"learned/{name}_stride"]) for name in DIRECTIONS], [2, 2])
    strides = [np.float32(rows[-1][f"learned/{name}_stride"]) for name in DIRECTIONS]
    np.testing.assert_array_equal(strides, model.get_layer("learned").strides.numpy())
    assert strides != [2, 2]
    pooled = model.get_layer("learned")(tf.zeros([1, 14, 14, 4]))
    assert (int(rows[-1]["learned/height"]), int(rows[-1]["learned/width"])) == tuple(pooled.shape[1:3])
    metrics = rows_of(folder / "metrics.csv")
    assert [list(row) for row in metrics] == 2 * [["epoch", "accuracy", "loss"]]


DIRECTIONS = ("vertical", "horizontal")


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True], ids=["plain", "XLA"])
def test_static_crops_follow_the_strides_in_a_users_own_fit(jit_compile: bool):
    model = functional(10)
    layer = model.get_layer("learned")
    if not jit_compile:
        layer.fix_crop()  # With XLA it is fixed by itself.
    model.compile(keras.optimizers.SGD(0.0), "categorical_crossentropy", jit_compile=jit_compile)
    images, labels = next(small_digits().train().as_numpy_iterator())
    refresh = CropRefresh(every_steps=2)
    widths = []

    class Move(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            widths.append(dict(layer.crops))
            layer.strides.assign([2.0, 2.0] if batch < 4 else [4.0, 4.0])

    model.fit(images, labels, batch_size=8, verbose=0, callbacks=[Move(), refresh])
    assert model.jit_compile == jit_compile
    assert refresh.changes == 1
    assert len({str(crops) for crops in widths}) == 2
    assert model.predict(images[:2], verbose=0).shape == (2, 10)
    (crop,) = layer.crops.values()
    windows = diffstride_windows(
        14,
        14,
        layer.strides,
        smoothness_factor=4.0,
        cropping=True,
        lower_limit_stride=None,
        upper_limit_stride=None,
        mask="released",
    )
    assert crop == kept_bins(*windows)
