import contextlib
import csv
import functools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import gin
import keras
import numpy as np
import pytest

from diffstride_hybrid import DiffStride, FixedSpectralPooling, SpectralPooling
from diffstride_hybrid.config import gin_files, gin_names
from diffstride_hybrid.models.residual import ResidualLayer
from diffstride_hybrid.training import run as run_module
from diffstride_hybrid.training.run import evaluate
from experiments.studies.grids import fashion_mnist_small

CONFIGS = sorted(path.stem for path in gin_files.shipped_configs().glob("*.gin"))
every_config = pytest.mark.parametrize("name", CONFIGS)

# These run the compiled loop. The others run it eagerly, to save time; test_commands compiles digits_hybrid.
COMPILED = ("cifar10_strided", "cifar100_spectral")

TINY = ("train.train.num_epochs = 1", "train.train.steps_per_epoch = 1")


class Trained(NamedTuple):
    """What is left of a run of a config."""

    folder: Path
    summary: dict[str, Any]
    model: keras.Model
    unread: list[str]


class AtTheStart(keras.callbacks.Callback):
    """Notes which bindings nothing has read when training begins."""

    unread: list[str] | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        self.unread = gin_files.unread_bindings()


def train(folder: Path, data_dir: Path, file: Path, batch_size: int = 24) -> Trained:
    data = [f"data.load_datasets.{name}" for name in (f"data_dir = {str(data_dir)!r}", f"batch_size = {batch_size}")]
    is_imagenet = file.stem.startswith("imagenet")
    width = f"resnet.{'resnet34' if is_imagenet else 'resnet18'}.width = 4"
    image_size = ["data.load_datasets.image_size = 32"] if is_imagenet else []
    gin_files.parse([str(file)], [*TINY, width, *data, *image_size])
    callback = AtTheStart()
    summary = gin_names.train(workdir=str(folder), callbacks=[callback])
    return Trained(folder, summary, callback.model, callback.unread)


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, tiny_data_dir: Path, eager_steps: Callable[[], Any]
) -> Callable[[str], Trained]:
    """Trains a config for one step, once in this module, and keeps some of the model's outputs beside the model."""
    folder = tmp_path_factory.mktemp("configs")

    @functools.cache
    def train_config(name: str) -> Trained:
        file = gin_files.shipped_configs() / f"{name}.gin"
        batch_size = 360 if name in ("base", "digits_hybrid") else 24  # All test images in one batch.
        with (
            contextlib.nullcontext() if name in COMPILED else eager_steps(),
            mock.patch.object(run_module.figures, "write_figures"),
        ):
            run = train(folder / name, tiny_data_dir, file, batch_size)
        image_shape = json.loads((run.folder / "run.json").read_text())["data"]["image_shape"]
        images = np.random.default_rng(0).normal(size=(3, *image_shape)).astype("float32")
        np.savez(run.folder / "outputs.npz", images=images, outputs=run.model(images, training=False))
        return run

    return train_config


def metrics_of(run: Trained) -> dict[str, float]:
    with open(run.folder / "metrics.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    return {name: float(value) for name, value in row.items()}


# --- The shipped files -----------------------------------------------------------------------------------------------


def test_the_configs_are_those_of_the_plan():
    variants = ("strided", "spectral", "diffstride", "hybrid", "hybrid_before_activation")
    assert set(CONFIGS) == {
        "base",
        "digits_hybrid",
        "cifar10_diffstride_released",
        *(f"{name}_{variant}" for name in ("fashion_mnist", "cifar10", "cifar100", "imagenet") for variant in variants),
    }


@every_config
def test_each_file_opens_with_its_command_and_what_it_costs(name: str):
    text = (gin_files.shipped_configs() / f"{name}.gin").read_text()
    comment = text[: text.index("\n\n") if name == "base" else text.index("\ninclude")]
    assert all(line.startswith("#") for line in comment.splitlines())
    assert f"#   python -m diffstride_hybrid.train --gin_file={name}\n" in comment + "\n"
    assert "Cost: " in comment
    assert "\n# Learning rate: " in comment


@pytest.mark.parametrize("name", [name for name in CONFIGS if name.startswith("fashion_mnist")] + ["digits_hybrid"])
def test_tuned_rates_are_those_of_the_study(name: str):
    gin_files.parse([str(gin_files.shipped_configs() / f"{name}.gin")], [])
    method = name.removeprefix("fashion_mnist_").removeprefix("digits_")
    schedule = gin.get_bindings("tf.keras.optimizers.schedules.CosineDecay")
    assert schedule["initial_learning_rate"] == fashion_mnist_small.LEARNING_RATES[method]


@every_config
def test_each_file_trains_a_step(trained: Callable[[str], Trained], name: str):
    run = trained(name)
    assert run.unread == []
    assert run.summary["steps"] == 1
    assert math.isfinite(run.summary["test_loss"])
    assert all(math.isfinite(value) for value in metrics_of(run).values())


def test_the_saved_models_give_the_same_bits_where_only_the_package_is_imported(
    trained: Callable[[str], Trained], tmp_path: Path
):
    script = """
import sys
import keras
import diffstride_hybrid
import numpy as np
from absl import flags

for folder in sys.argv[1:]:
    saved = np.load(f"{folder}/outputs.npz")
    model = keras.saving.load_model(f"{folder}/final.keras")
    np.testing.assert_array_equal(model(saved["images"], training=False), saved["outputs"], err_msg=folder)
    print(folder)
assert not {"gin", "tensorflow_datasets", "diffstride_hybrid.training", "diffstride_hybrid.config"} & set(sys.modules)
assert "traceback" not in flags.FLAGS  # Flags are for commands: a user's own may have the same names.
"""
    folders = [str(trained(name).folder) for name in CONFIGS]
    command = [sys.executable, "-c", script, *folders]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == folders


@every_config
def test_poolings_and_head_are_what_the_name_says(trained: Callable[[str], Trained], name: str):
    variant = name.removeprefix("fashion_mnist_").partition("_")[2] if name != "base" else "strided"
    variant = name.removeprefix("fashion_mnist_") if name.startswith("fashion_mnist_") else variant
    model = trained(name).model
    layers = {layer.name: layer for layer in model.layers}
    poolings = [layer._pooling for layer in model._flatten_layers() if isinstance(layer, ResidualLayer)]
    kinds = {type(pooling) for pooling in poolings if pooling is not None} | {type(layers.get("pooling"))}
    family = variant.split("_")[0]
    assert (
        kinds
        == {
            "strided": {type(None)},
            "spectral": {FixedSpectralPooling},
            "diffstride": {DiffStride},
            "hybrid": {DiffStride},
        }[family]
    )
    assert ("head_pooling" in layers) == (family == "hybrid")
    if family == "hybrid":
        assert type(layers["head_pooling"]) is SpectralPooling
        order = list(layers)
        follows = order[order.index("head_pooling") + 1]
        assert follows == ("norm" if variant == "hybrid_before_activation" else "average")


@every_config
def test_data_are_what_the_name_says(trained: Callable[[str], Trained], name: str):
    data = json.loads((trained(name).folder / "run.json").read_text())["data"]
    known = ("cifar100", "cifar10", "fashion_mnist", "imagenet")
    expected = next((part for part in known if name.startswith(part)), "digits")
    assert data["name"] == expected.replace("imagenet", "imagenet2012")
    assert (data["split_sizes"]["validation"] == 0) == (name == "cifar10_diffstride_released")


@pytest.mark.parametrize(
    ("name", "augmented", "label_smoothing"),
    [("cifar10_diffstride", True, 0.2), ("cifar100_hybrid", True, 0.2), ("cifar10_diffstride_released", False, 0.0)],
)
def test_the_recipe_as_written_and_as_released(name: str, augmented: bool, label_smoothing: float):
    gin_files.parse([str(gin_files.shipped_configs() / f"{name}.gin")], [])
    loss = gin.get_bindings("train.train")["loss_cls"]()
    assert loss.get_config()["label_smoothing"] == label_smoothing
    bindings = gin.get_bindings("data.load_datasets")
    assert (bindings["augment_fn"] is not None) == augmented
    assert bindings["mixup_alpha"] == 0.2
    assert gin.get_bindings("train.train")["num_epochs"] == 400


def test_the_learning_rate_of_the_cifar_recipe_follows_its_schedule(trained: Callable[[str], Trained]):
    assert metrics_of(trained("cifar10_strided"))["learning_rate"] == pytest.approx(0.01)


# --- Files of one's own ----------------------------------------------------------------------------------------------

# The bindings of the release's cifar10.gin, by the names that it uses.
RELEASED = """
data.load_datasets:
  name = 'cifar10'
  batch_size = 128
  mixup_alpha = 0.2

train.train:
  load_data_fn = @data.load_datasets
  model_cls = @resnet.resnet18
  optimizer_cls = @tf.keras.optimizers.SGD
  num_epochs = 400

tf.keras.optimizers.SGD:
  learning_rate = @tf.keras.optimizers.schedules.PiecewiseConstantDecay()
  momentum = 0.9

tf.keras.optimizers.schedules.PiecewiseConstantDecay:
  boundaries = [400, 18_000, 32_000]
  values = [0.01, 0.1, 0.01, 0.001]

tf.keras.losses.CategoricalCrossentropy.label_smoothing = 0.2

resnet.resnet18.strides = [1, 1, 3, 2, 2]
resnet.Resnet:
  output_activation = 'softmax'
  weight_decay = 5e-4
  pooling_cls = @pooling.DiffStride

batch_norm:
  momentum = 0.9
  epsilon = 1e-5

pooling.DiffStride:
  smoothness_factor = 3.0
  cropping = True
  trainable = True
  shared_stride = False
  lower_limit_stride = None
  upper_limit_stride = None
"""


def test_the_config_of_the_release_works_without_its_imports(tmp_path: Path, tiny_data_dir: Path, uncompiled: None):
    file = tmp_path / "cifar10.gin"
    file.write_text(RELEASED)
    run = train(tmp_path / "run", tiny_data_dir, file)
    assert run.unread == []
    datasets = gin_names.load_datasets()
    smoothed, plain = (
        evaluate(run.model, keras.losses.CategoricalCrossentropy(label_smoothing=smoothing), datasets)
        for smoothing in (0.2, 0.0)
    )
    assert run.summary["test_loss"] == pytest.approx(smoothed["loss"], rel=1e-6)
    assert run.summary["test_loss"] != pytest.approx(plain["loss"], rel=1e-3)
    assert metrics_of(run)["learning_rate"] == pytest.approx(0.01)
    norm = run.model.get_layer("norm")
    assert (norm.momentum, norm.epsilon) == (0.9, 1e-5)
    pooling = run.model.get_layer("block_2").layers[0]._pooling
    assert pooling.smoothness_factor == 3
    assert pooling.initial_strides == (3, 3)
    assert run.model.get_layer("conv").kernel_regularizer.l2 == pytest.approx(5e-4)


def test_files_include_shipped_ones_and_their_neighbours(tmp_path: Path):
    (tmp_path / "common.gin").write_text("train.train.num_epochs = 7\nresnet.resnet18.width = 5\n")
    (tmp_path / "mine.gin").write_text("include 'digits_hybrid.gin'\ninclude 'common.gin'\nresnet.resnet18.width = 6\n")
    gin_files.parse([str(tmp_path / "mine.gin")], ["resnet.Resnet.weight_decay = 0.5"])
    assert gin.query_parameter("data.load_datasets.name") == "digits"
    assert gin.query_parameter("train.train.num_epochs") == 7
    assert gin.query_parameter("resnet.resnet18.width") == 6
    assert gin.query_parameter("resnet.Resnet.weight_decay") == 0.5


def test_a_file_includes_its_own_neighbours_and_not_those_of_an_earlier_file(tmp_path: Path):
    for epochs in (7, 8):
        folder = tmp_path / str(epochs)
        folder.mkdir()
        (folder / "common.gin").write_text(f"train.train.num_epochs = {epochs}\n")
        (folder / "mine.gin").write_text("include 'base.gin'\ninclude 'common.gin'\n")
        gin_files.parse([str(folder / "mine.gin")], [])
        assert gin.query_parameter("train.train.num_epochs") == epochs


def test_the_current_folder_is_looked_in_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.gin").write_text("this is not read\n")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.gin").write_text("include 'base.gin'\ninclude 'more/epochs.gin'\n")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "epochs.gin").write_text("train.train.num_epochs = 9\n")
    gin_files.parse(["other/mine.gin"], [])
    assert gin.query_parameter("train.train.num_epochs") == 9


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("train.train.num_epoch", 1),
        ("data.load_datasets.batchsize", 1),
        ("pooling.DiffStride.smothness_factor", 1.0),
        ("pooling.SpectralPooling.stride", 1.0),
        ("resnet.resnet18.widht", 4),
        ("resnet.Resnet.pooling", None),
        ("batch_norm.momentun", 0.9),
        ("DiffStride.smothness_factor", 1.0),
        ("tf.keras.optimizers.SGD.lr", 0.1),
        ("tf.keras.losses.CategoricalCrossentropy.smoothing", 0.1),
    ],
)
def test_a_parameter_that_does_not_exist_is_refused_when_the_file_is_read(parameter: str, value: Any):
    name, _, unknown = parameter.rpartition(".")
    with pytest.raises(
        ValueError, match=rf"{name}' doesn't have a parameter named '{unknown}'|{name} has no .*'{unknown}'; it has"
    ):
        gin_files.parse([], [f"{parameter} = {value!r}"])


@pytest.mark.parametrize(
    "parameter",
    [
        "pooling.DiffStride.norm",
        "pooling.DiffStride.method",
        "pooling.DiffStride.mask",
        "pooling.DiffStride.dtype",
        "pooling.SpectralPooling.output_size",
        "pooling.FixedSpectralPooling.strides",
        "pooling.SpatialPooling.pool_size",
        "resnet.resnet34.width",
        "resnet.resnet56.pooling_cls",
        "resnet.resnet18.weight_decay",
        "resnet.Resnet.head_placement",
        "train.train.dtype_policy",
        "train.train.steps_per_epoch",
        "data.augment.pad_size",
        "tf.keras.optimizers.AdamW.weight_decay",
        "tf.keras.optimizers.schedules.CosineDecay.warmup_steps",
        "tf.keras.losses.CategoricalFocalCrossentropy.gamma",
    ],
)
def test_a_parameter_that_exists_can_be_bound(parameter: str):
    gin_files.parse([], [f"{parameter} = None"])
    assert gin_files.unread_bindings() == [parameter]
