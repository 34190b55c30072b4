"""The shipped configs: each trains, and each is as its name and its first lines say."""

import contextlib
import functools
import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import gin
import numpy as np
import pytest
from support.configured_runs import Trained, metrics_of, train

from diffstride_hybrid import DiffStride, FixedSpectralPooling, SpectralPooling
from diffstride_hybrid.config import gin_files
from diffstride_hybrid.model_tools.inspection import leaf_layers
from diffstride_hybrid.models.residual import ResidualLayer
from diffstride_hybrid.training import run as run_module
from experiments.studies import costs
from experiments.studies.grids import fashion_mnist_small

CONFIGS = sorted(path.stem for path in gin_files.shipped_configs().glob("*.gin"))
every_config = pytest.mark.parametrize("name", CONFIGS)

# These run the compiled loop. The others run it eagerly, to save time; test_a_run compiles digits_hybrid.
COMPILED = ("cifar10_strided", "cifar100_spectral")


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


# --- The shipped files -----------------------------------------------------------------------------------------------


def test_the_configs_are_those_of_the_plan():
    variants = ("strided", "spectral", "diffstride", "hybrid", "hybrid_before_activation")
    assert set(CONFIGS) == {
        "base",
        "digits_hybrid",
        "cifar10_diffstride_released",
        "cifar10_diffstride_notebook",
        "cifar10_diffstride_notebook_200",
        *(f"{name}_{variant}" for name in ("fashion_mnist", "cifar10", "cifar100", "imagenet") for variant in variants),
    }


@every_config
def test_each_file_opens_with_its_command_and_what_it_costs(name: str):
    text = (gin_files.shipped_configs() / f"{name}.gin").read_text()
    comment = text[: text.index("\n\n") if name == "base" else text.index("\ninclude")]
    assert all(line.startswith("#") for line in comment.splitlines())
    assert f"#   python -m diffstride_hybrid.train --gin_file={name}\n" in comment + "\n"
    cost = costs.initial_cost(name, ()).macs / 1e9
    epochs = gin.query_parameter("train.train.num_epochs")
    assert re.search(
        rf"\n# Cost: {cost:.{3 if cost < 0.1 else 2}f} G MACs an image[^:.]*, {epochs} epochs of ", comment
    )
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
    """Of every method. The networks for CIFAR are those for Fashion-MNIST."""
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
    folders = [str(trained(name).folder) for name in CONFIGS if not name.startswith("cifar")]
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
    poolings = [layer._pooling for layer in leaf_layers(model) if isinstance(layer, ResidualLayer)]
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
    assert (data["split_sizes"]["validation"] == 0) == name.startswith(
        ("cifar10_diffstride_released", "cifar10_diffstride_notebook")
    )


@pytest.mark.parametrize(
    ("name", "augmented", "label_smoothing", "mixup", "batch_size", "epochs"),
    [
        ("cifar10_diffstride", True, 0.2, 0.2, 128, 400),
        ("cifar100_hybrid", True, 0.2, 0.2, 128, 400),
        ("cifar10_diffstride_released", False, 0.0, 0.2, 128, 400),
        ("cifar10_diffstride_notebook", False, 0.0, 0.0, 32, 40),
        ("cifar10_diffstride_notebook_200", False, 0.0, 0.0, 32, 200),
    ],
)
def test_the_recipe_as_written_as_released_and_as_in_the_notebook(
    name: str, augmented: bool, label_smoothing: float, mixup: float, batch_size: int, epochs: int
):
    gin_files.parse([str(gin_files.shipped_configs() / f"{name}.gin")], [])
    loss = gin.get_bindings("train.train")["loss_cls"]()
    assert loss.get_config()["label_smoothing"] == label_smoothing
    bindings = gin.get_bindings("data.load_datasets")
    assert (bindings["augment_fn"] is not None) == augmented
    assert bindings["mixup_alpha"] == mixup
    assert bindings["batch_size"] == batch_size
    assert gin.get_bindings("train.train")["num_epochs"] == epochs


def test_the_learning_rate_of_the_cifar_recipe_follows_its_schedule(trained: Callable[[str], Trained]):
    assert metrics_of(trained("cifar10_strided"))["learning_rate"] == pytest.approx(0.01)
