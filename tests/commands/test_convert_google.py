"""Checkpoints of the release, converted by the command."""

from pathlib import Path

import keras
import numpy as np
from support.commands import assert_one_clear_line, run_here
from support.paths import REFERENCE


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
    model = keras.saving.load_model(tmp_path / "model.keras")
    with np.load(saved / "outputs.npz") as outputs:
        np.testing.assert_allclose(model(outputs["inputs"]), outputs["probabilities"], atol=1e-5)
    assert_one_clear_line(run_here("convert_google", *arguments, f"--output={tmp_path / 'model.keras'}"), "exists")
    assert_one_clear_line(run_here("convert_google", *arguments, f"--output={tmp_path / 'model.h5'}"), "'.keras'")
    arguments[1] = "--gin_file=cifar10_strided"
    other = run_here("convert_google", *arguments, f"--output={tmp_path / 'other.keras'}")
    assert_one_clear_line(other, "another architecture")
    assert not (tmp_path / "other.keras").exists()
