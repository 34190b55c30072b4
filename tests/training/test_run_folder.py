"""The files of a finished run."""

import contextlib
import io
import json
import re
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import PIL.Image
import pytest
import tensorflow as tf
from support.paths import ROOT
from support.tiny_runs import digits, hybrid, json_of, load, rows_of, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffstride_hybrid import macs, resnet18
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.runs.logs import stride_row
from diffstride_hybrid.training.run import evaluate

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """A run of the hybrid ResNet-18: its folder, what it returned, what it printed."""
    folder = tmp_path_factory.mktemp("runs") / "made" / "here"
    with contextlib.redirect_stdout(io.StringIO()) as output:
        summary = train(folder, draws=True, load_data_fn=digits, model_cls=partial(resnet18, width=4, **hybrid), seed=5)
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
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    head = subprocess.run(command, capture_output=True, text=True).stdout.strip() if (ROOT / ".git").exists() else None
    commit = json_of(folder / "run.json")["commit"]
    assert commit in ((head, f"{head}-dirty") if head else (None,))


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
    expected = {"epoch": 2, **stride_row(model, macs(model, (32, 32, 1)))}
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
