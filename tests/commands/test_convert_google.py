"""Checkpoints of the release, converted by the command."""

from pathlib import Path

import keras
import numpy as np
from support.commands import assert_one_clear_line, run_here, start_command, wait_for
from support.paths import REFERENCE


def test_no_data_set_need_be_bound(tmp_path: Path):
    config = tmp_path / "small.gin"
    config.write_text(
        "train.train.model_cls = @resnet.Resnet\nbatch_norm.epsilon = 1e-5\n"
        "resnet.Resnet:\n  filters = [4, 4, 8, 8, 8]\n  strides = [1, 1, 2, 2, 2]\n  id_only = [0]\n"
        "  pooling_cls = @pooling.DiffStride\n  output_activation = 'softmax'\n"
    )
    saved, output = REFERENCE / "google_small", tmp_path / "model.keras"
    result = run_here("convert_google", f"--checkpoint={saved}", f"--gin_file={config}", f"--output={output}")
    assert result.code == 0, result.err
    assert "the mean and standard deviation of its training images are not known here" in result.out
    with np.load(saved / "outputs.npz") as outputs:
        model = keras.saving.load_model(output)
        np.testing.assert_allclose(model(outputs["inputs"]), outputs["probabilities"], atol=1e-5)


def test_a_data_set_of_other_channels_does_no_harm(tmp_path: Path):
    """`base` binds the digits, which are gray."""
    arguments = [
        f"--checkpoint={REFERENCE / 'google_small'}",
        "--gin_file=base",
        f"--output={tmp_path / 'model.keras'}",
    ]
    small = {
        "filters": [4, 4, 8, 8, 8],
        "strides": [1, 1, 2, 2, 2],
        "id_only": [0],
        "pooling_cls": "@pooling.DiffStride",
    }
    bindings = ["train.train.model_cls = @resnet.Resnet", *(f"resnet.Resnet.{name} = {v}" for name, v in small.items())]
    result = run_here("convert_google", *arguments, *(f"--gin_bindings={binding}" for binding in bindings))
    assert result.code == 0, result.err


def test_errors_come_last_and_alone(tmp_path: Path):
    arguments = [f"--checkpoint={REFERENCE / 'google_small'}", "--gin_file=cifar10_strided", "--output=model.keras"]
    result = wait_for(start_command("convert_google", *arguments, cwd=tmp_path))
    assert len(result.err.splitlines()) == 1, result.err
    assert "another architecture" in result.err


def test_a_checkpoint_of_the_release_becomes_a_model(tmp_path: Path):
    config = tmp_path / "small.gin"
    config.write_text(
        "include 'base.gin'\ndata.load_datasets.name = 'cifar10'\ntrain.train.model_cls = @resnet.Resnet\n"
        "resnet.Resnet:\n  filters = [4, 4, 8, 8, 8]\n  strides = [1, 1, 2, 2, 2]\n  id_only = [0]\n"
        "  pooling_cls = @pooling.DiffStride\n"
    )
    saved = REFERENCE / "google_small"
    arguments = [f"--checkpoint={saved}", f"--gin_file={config}"]
    result = run_here("convert_google", *arguments, f"--output={tmp_path / 'model.keras'}")
    assert result.code == 0, result.err
    assert "block_4/layer_1/pooling   2.023, 2.006" in result.out
    statistics = "less 0.4914, 0.4822, 0.4465, over 0.2023, 0.1994, 0.2010, as those of cifar10"
    assert f"it takes images scaled to 0..1, {statistics}" in result.out
    assert "--mean=0.4914,0.4822,0.4465 --std=0.2023,0.1994,0.2010" in result.out
    model = keras.saving.load_model(tmp_path / "model.keras")
    with np.load(saved / "outputs.npz") as outputs:
        np.testing.assert_allclose(model(outputs["inputs"]), outputs["probabilities"], atol=1e-5)
    assert_one_clear_line(run_here("convert_google", *arguments, f"--output={tmp_path / 'model.keras'}"), "exists")
    assert_one_clear_line(run_here("convert_google", *arguments, f"--output={tmp_path / 'model.h5'}"), "'.keras'")
    arguments[1] = "--gin_file=cifar10_strided"
    other = run_here("convert_google", *arguments, f"--output={tmp_path / 'other.keras'}")
    assert_one_clear_line(other, "another architecture")
    assert not (tmp_path / "other.keras").exists()
