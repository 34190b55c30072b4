from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from support.paths import REFERENCE

from diffstride_hybrid import DiffStride, Resnet
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.models import google_checkpoint

SAVED = REFERENCE / "google_small"


def network(**changes: Any) -> Resnet:
    architecture = {
        "filters": [4, 4, 8, 8, 8],
        "strides": [1, 1, 2, 2, 2],
        "num_output_classes": 10,
        "output_activation": "softmax",
        "id_only": [0],
        "pooling_cls": DiffStride,
    }
    # The release's batch normalization has this epsilon.
    normalization = {"normalization_cls": lambda **kwargs: keras.layers.BatchNormalization(epsilon=1e-5, **kwargs)}
    model = Resnet(**{**architecture, **normalization, **changes})
    model.build((None, 32, 32, 3))
    return model


@pytest.fixture(scope="module")
def outputs() -> dict[str, np.ndarray]:
    with np.load(SAVED / "outputs.npz") as file:
        return dict(file)


@pytest.mark.parametrize("path", [SAVED, SAVED / "variables" / "variables"], ids=["SavedModel", "checkpoint"])
def test_a_network_of_the_release_gives_its_outputs(path: Path, outputs: dict[str, np.ndarray]):
    model = network()
    google_checkpoint.restore(model, path)
    np.testing.assert_allclose(model(outputs["inputs"], training=False), outputs["probabilities"], atol=1e-6)
    strides = np.stack([layer.strides.numpy() for layer in diffstride_layers(model)])
    np.testing.assert_allclose(strides, outputs["strides"], rtol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_layers": 1},
        {"num_layers": 3},
        {"pooling_cls": None},
        {"filters": [4, 4, 8, 8, 16]},
        {"num_output_classes": 5},
        {"filters": [4, 4, 8, 8], "strides": [1, 1, 2, 2]},
    ],
    ids=str,
)
def test_a_network_of_another_architecture_is_refused(changes: dict[str, Any]):
    model = network(**changes)
    with pytest.raises(ValueError, match="holds a network of another architecture") as error:
        google_checkpoint.restore(model, SAVED)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("folder", [".", "strides=[1,2]"])  # TensorFlow takes the latter for a pattern.
def test_every_variable_is_restored(tmp_path: Path, folder: str):
    saved, restored = network(), network()
    for weight in saved.weights:
        weight.assign(np.random.default_rng(0).uniform(2, 3, weight.shape))
    google_checkpoint._as_saved(saved).write(tmp_path / folder / "weights")
    google_checkpoint.restore(restored, tmp_path / folder / "weights")
    for before, after in zip(saved.weights, restored.weights):
        np.testing.assert_array_equal(before, after, err_msg=before.path)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"No TensorFlow checkpoint .*nothing: give the folder of a SavedModel"):
        google_checkpoint.restore(network(), tmp_path / "nothing")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path):
    for part in (SAVED / "variables").iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes()[: 1000 if "data" in part.name else None])
    with pytest.raises(ValueError, match="is damaged: "):
        google_checkpoint.restore(network(), tmp_path / "variables")
