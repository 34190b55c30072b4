"""Gin files of one's own, and the names that they can bind."""

import importlib
import json
from pathlib import Path
from typing import Any

import gin
import keras
import pytest
from support.configured_runs import metrics_of, train
from support.paths import REFERENCE

from diffstride_hybrid.config import gin_files, gin_names, saved_runs
from diffstride_hybrid.training.run import evaluate

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
    datasets = gin_names.configured_load_datasets()
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


LONG = [f"'block_{number}/pooling'" for number in range(8)]


@pytest.mark.parametrize("change", ["more", "other", "fewer"])
def test_a_change_within_a_value_of_several_lines_is_a_change(tmp_path: Path, change: str):
    begun, now = (
        LONG,
        {"more": [*LONG[:3], "'new'", *LONG[3:]], "other": ["'new'", *LONG[1:]], "fewer": LONG[1:]}[change],
    )
    texts = []
    for names in (begun, now):
        gin_files.parse([], [f"train.train.callbacks = [{', '.join(names)}]", "train.train.seed = 3"])
        texts.append(gin.config_str())
    assert "\\\n" in texts[0]
    path = tmp_path / "run" / "operative_config.gin"
    path.parent.mkdir()
    path.write_text(texts[0])
    saved_runs._check_same_config(path, texts[0])
    with pytest.raises(ValueError, match=r"was begun with another config: .*callbacks = \["):
        saved_runs._check_same_config(path, texts[1])


def test_a_new_default_of_several_lines_is_no_change(tmp_path: Path):
    gin_files.parse([], ["train.train.seed = 3"])
    begun = gin.config_str()
    new = "train.train.something = \\\n    ['a',\n     'b']\n"
    (tmp_path / "operative_config.gin").write_text(begun)
    saved_runs._check_same_config(
        tmp_path / "operative_config.gin", begun.replace("train.train.seed", f"{new}train.train.seed")
    )


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
        ValueError, match=rf"^{parameter} = .*: {name} has no parameter '{unknown}'(: did you mean '|; it has )"
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


OF_KERAS = "tf.keras."
BEFORE = json.loads((REFERENCE / "gin_names.json").read_text(encoding="utf-8"))
"""Every name and its parameters at commit 39a27c4, before the package had rooms, and the version of Keras then."""


LATER = {
    "data.load_datasets": ("test_fraction",),
    **dict.fromkeys(("resnet.Resnet", "resnet.resnet18", "resnet.resnet34", "resnet.resnet56"), ("recompute_pooling",)),
    "train.train": ("stride_learning_rate", "stride_warmup_epochs", "macs_budget", "macs_budget_epoch"),
}
"""Parameters that came afterwards."""


def test_gin_files_can_bind_the_names_that_they_could_before_the_package_had_rooms():
    now = {
        name: [parameter for parameter in known if parameter not in LATER.get(name, ())]
        for name, known in gin_names.PARAMETERS.items()
        if not name.startswith(("tf.keras.callbacks.", "pooling.SpectralResizing"))  # These came afterwards.
    }
    own = {name: known for name, known in now.items() if not name.startswith(OF_KERAS)}
    assert own == {name: known for name, known in BEFORE["parameters"].items() if not name.startswith(OF_KERAS)}
    if keras.__version__ == BEFORE["keras"]:  # Another version may have other optimizers and losses.
        assert BEFORE["parameters"] == now


def test_gin_knows_the_names_that_are_listed_and_no_others():
    known = {name for name, _ in gin.config._REGISTRY.items() if not name.startswith("gin.")}
    assert known == set(gin_names.PARAMETERS)
    for name, parameters in gin_names.PARAMETERS.items():
        assert list(gin.config._REGISTRY[name].allowlist) == parameters


@pytest.mark.parametrize("encode", [lambda text: b"\xef\xbb\xbf" + text.encode(), lambda text: text.encode("utf-8")])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_files_of_other_systems_are_read(tmp_path: Path, encode: Any, ending: str):
    text = "include 'inner.gin'\n# Größe\ntrain.train.num_epochs = 7\n"
    (tmp_path / "outer.gin").write_bytes(encode(text.replace("\n", ending)))
    (tmp_path / "inner.gin").write_bytes(encode("resnet.resnet18.width = 3\n".replace("\n", ending)))
    gin_files.parse([str(tmp_path / "outer.gin")], [])
    assert gin.query_parameter("train.train.num_epochs") == 7
    assert gin.query_parameter("resnet.resnet18.width") == 3


def test_the_names_may_be_registered_again_as_a_notebook_does():
    importlib.reload(gin_names)
    gin_files.parse([gin_files.find_gin_file("digits_hybrid")], ["train.train.num_epochs = 7"])
    assert gin.query_parameter("train.train.num_epochs") == 7


def test_a_name_of_someone_else_is_not_taken_over():
    def train() -> None:
        """Not this package's."""

    with pytest.raises(ValueError, match="already exists"):
        gin_names._register("train", train)
