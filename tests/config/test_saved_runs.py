"""What is read of the config of a run, and what is left alone."""

import re
import shutil
from pathlib import Path

import pytest
from support.paths import TESTS

from diffstride_hybrid.config import gin_files, gin_names, saved_runs
from diffstride_hybrid.data import loading

CANNOT_BE_MADE = "@tf.keras.callbacks.ModelCheckpoint()"
"""A reference that fails if gin resolves it: a parameter of the callback, the path, is not bound."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run."""
    return Path(shutil.copytree(TESTS / "fixtures" / "finished", tmp_path / "run"))


def edit(run: Path, **lines: str) -> None:
    """Changes values in the config of a run."""
    path = run / "operative_config.gin"
    text = path.read_text()
    for name, value in lines.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name.replace('__', '.')} = ")]
        text = text.replace(line, f"{name.replace('__', '.')} = {value}")
    path.write_text(text)


def test_nobody_makes_the_callbacks_of_a_run_that_is_read(run: Path):
    edit(run, train__callbacks=f"[{CANNOT_BE_MADE}]")
    loaded = saved_runs.load_run(run, "final.keras")
    assert loaded.datasets.name == "digits" and loaded.loss.name == "categorical_crossentropy"


def test_only_what_shapes_and_network_need_is_made():
    small = ["filters = [2, 2]", "strides = [1, 2]", "num_layers = 1"]
    gin_files.parse(
        [],
        [
            "data.load_datasets.name = 'digits'",
            "data.load_datasets.image_size = %size",
            "size = 8",
            f"data.load_datasets.augment_fn = {CANNOT_BE_MADE}",
            f"train.train.callbacks = [{CANNOT_BE_MADE}]",
            "train.train.model_cls = @resnet.Resnet",
            *(f"resnet.Resnet.{line}" for line in small),
        ],
    )
    assert gin_names.bound_shapes() == ((8, 8, 1), 10)
    assert gin_names.bound_image_size() == (8, 8)
    model, image_shape = gin_names.bound_model()
    assert model.output_shape == (None, 10) and image_shape == (8, 8, 1)


@pytest.mark.parametrize("scope", ["", "mine/"])
def test_the_folder_of_prepared_sets_counts_in_every_scope(scope: str, run: Path, monkeypatch: pytest.MonkeyPatch):
    """The operative config binds each parameter of a data set in the scope of the reference."""
    edit(run, train__load_data_fn=f"@{scope}data.load_datasets", load_datasets__name="'cifar10'")
    path = run / "operative_config.gin"
    path.write_text(path.read_text().replace("\nload_datasets.", f"\n{scope}load_datasets."))
    asked = []

    def builder_of(name: str, data_dir: str | None) -> None:
        asked.append(data_dir)
        raise ValueError("seen")

    monkeypatch.setattr(loading, "_builder_of", builder_of)
    for data_dir in ("prepared", None):
        with pytest.raises(ValueError, match="seen"):
            saved_runs.load_run(run, "final.keras", data_dir)
    assert asked == ["prepared", None]


@pytest.mark.parametrize(
    ("gone", "model", "cure"),
    [
        (["summary.json", "final.keras"], "final.keras", "start it again, or give --model=best.keras where"),
        (["summary.json", "final.keras", "best.keras"], "best.keras", "start it again."),
    ],
)
def test_an_interrupted_run_says_what_to_do(gone: list[str], model: str, cure: str, run: Path):
    for name in gone:
        (run / name).unlink(missing_ok=True)
    if "best.keras" not in gone:
        (run / "best.keras").touch()
    message = re.escape(f"There is no {run / model}, because the run is not finished: {cure}")
    with pytest.raises(FileNotFoundError, match=message):
        saved_runs.load_model(run, model)


def test_a_model_that_a_finished_run_lacks_is_named(run: Path):
    (run / "final.keras").unlink()
    with pytest.raises(FileNotFoundError, match=r"There is no .*final.keras: --workdir must be the folder of a run"):
        saved_runs.load_model(run, "final.keras")
