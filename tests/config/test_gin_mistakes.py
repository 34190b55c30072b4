"""What is said of a binding that gin refuses: which one it is, and what to write in its place."""

from pathlib import Path

import pytest

from diffstride_hybrid.common.errors import one_line
from diffstride_hybrid.config import gin_files, gin_mistakes


def told(files: list[str], bindings: list[str]) -> str:
    with pytest.raises((ValueError, SyntaxError)) as caught:
        gin_files.parse(files, bindings)
    return one_line(caught.value)


CURES = {
    "data.load_datasets.name = ./photos": "texts need quotes: data.load_datasets.name = './photos'",
    "data.load_datasets.name = /my/photos-2": "texts need quotes: data.load_datasets.name = '/my/photos-2'",
    "data.load_datasets.name = 2024/photos": "texts need quotes: data.load_datasets.name = '2024/photos'",
    "pooling.DiffStride.mask = symmetric": "texts need quotes: pooling.DiffStride.mask = 'symmetric'",
    "place = here": "texts need quotes: place = 'here'",
    "resnet.resnet18.strides = [1, 1, full, 2]": "full is no value: texts need quotes: 'full'",
    "train.train.jit_compile = true": "this value is spelled train.train.jit_compile = True.",
    "train.train.model_cls = resnet18": "a function or class needs an @: train.train.model_cls = @resnet18.",
    "train.train.num_epochs =": "there is no value after the '='.",
    "train.train.num_epochs = 3 4": "something follows the value that does not belong to it.",
    "train.train.values = [./a]": "a value is a number, True, False, None, a quoted text, a list of values, or "
    "a name with an @.",
    "train.train.num_epochs 3": "expected ':' or '='.",
    "train.train.num_epoch = 1": "train.train has no parameter 'num_epoch': did you mean 'num_epochs'?",
    "pooling.DiffStride.smothness_factor=1": "pooling.DiffStride has no parameter 'smothness_factor': did you mean "
    "'smoothness_factor'?",
    "resnet.batch_norm.qqqq = 1": "resnet.batch_norm has no parameter 'qqqq'; it has axis, ",
    "load_dataset.image_size = 64": "there is no 'load_dataset': did you mean 'data.load_datasets'?",
    "model.DiffStride.mask = 'symmetric'": "there is no 'model.DiffStride': did you mean 'pooling.DiffStride'?",
    "qqqq.mask = 1": "there is no 'qqqq': if it is your own, a gin file must import its module.",
    "train.train.callbacks = [@tf.keras.callbacks.EarlyStoping()]": "there is no 'tf.keras.callbacks.EarlyStoping': "
    "did you mean 'tf.keras.callbacks.EarlyStopping'?",
}


@pytest.mark.parametrize(("binding", "cure"), CURES.items(), ids=CURES)
def test_a_wrong_binding_is_quoted_with_its_cure(binding: str, cure: str):
    message = told([], ["train.train.seed = 3", binding, "resnet.resnet18.width = 3"])
    assert message.startswith(f"{binding}: {cure}")


FILES = {
    "a binding": (
        "data.load_datasets.name = ./photos  # mine\n",
        "data.load_datasets.name = ./photos # mine ({}, line 2): texts need quotes: "
        "data.load_datasets.name = './photos'",
    ),
    "in a block": (
        "pooling.DiffStride:\n  norm = True\n  mask = symmetric\n",
        "mask = symmetric ({}, line 4): texts need quotes: mask = 'symmetric'",
    ),
    "a parameter in a block": (
        "train.train:\n  num_epoch = 3\n",
        "num_epoch = 3 ({}, line 3): train.train has no parameter 'num_epoch': did you mean 'num_epochs'?",
    ),
    "a block": (
        "train.trian:\n  num_epochs = 3\n",
        "train.trian: ({}, line 2): there is no 'train.trian': did you mean 'train.train'?",
    ),
    "a long line": (f"train.train.a{'b' * 200} = 3\n", f"train.train.a{'b' * 137}… ({{}}, line 2): train.train has no"),
}


@pytest.mark.parametrize("included", [False, True])
@pytest.mark.parametrize(("text", "message"), FILES.values(), ids=FILES)
def test_a_binding_of_a_file_is_quoted_with_its_file_and_line(tmp_path: Path, text: str, message: str, included: bool):
    file = tmp_path / "mine.gin"
    file.write_text(f"include 'base.gin'\n{text}", encoding="utf-8")
    (tmp_path / "outer.gin").write_text("include 'mine.gin'\n", encoding="utf-8")
    assert told([str(tmp_path / "outer.gin" if included else file)], []).startswith(message.format(file))


def test_a_macro_that_is_bound_nowhere_is_named():
    message = told([], ["data.load_datasets.name = %place"])
    assert message == "%place is used, but bound nowhere: add the line place = VALUE."


def test_a_mistake_in_a_module_that_a_file_imports_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_wrong_module.py").write_text("value = = 3\n")
    (tmp_path / "mine.gin").write_text("import my_wrong_module\n")
    assert told([str(tmp_path / "mine.gin")], []) == "invalid syntax (my_wrong_module.py, line 1)"
    (tmp_path / "my_wrong_module.py").write_text("raise ValueError('of mine')\n")
    assert told([str(tmp_path / "mine.gin")], []) == "of mine"


def test_what_gin_says_of_a_configurable_of_the_users_own_is_said(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(gin_mistakes, "PARAMETERS", {})  # As of a configurable that this package does not know.
    message = told([], ["pooling.DiffStride.depth = 3"])
    assert message == (
        "pooling.DiffStride.depth = 3: Configurable 'pooling.DiffStride' doesn't include kwarg 'depth' in "
        "its allowlist."
    )
