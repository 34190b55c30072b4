"""Command lines, bindings and gin files that nobody would write, from a seed: a run, or one clear line."""

import random
from pathlib import Path

import pytest
from absl import flags
from support.commands import assert_one_clear_line, run_here

from diffstride_hybrid.config import gin_files, gin_names

CASES = 200
IN_CI = 5

SMALL = """
include 'digits_hybrid.gin'
train.train:
  model_cls = @resnet.Resnet
  num_epochs = 1
  steps_per_epoch = 1
data.load_datasets:
  image_size = 8
  batch_size = 100
resnet.Resnet:
  filters = [2, 3]
  strides = [1, 2]
  num_layers = 1
"""

# What takes a size or a count gets none so great that the machine, and not the package, would end the run.
VALUES = (
    *("0", "1", "2", "-1", "7", "1.5", "-0.5", "1e300", "-1e-300", "1e999", "True", "False", "None"),
    *("''", "'released'", "'no such thing'", "'a' 'b'", "'\\n'", "'../../etc'", "'ü' * 3", "u'☃'", "b'x'"),
    *("[]", "[1]", "[1, 2]", "[1.5, 'x']", "(2, 2)", "((2, 1), (1, 2))", "{}", "{'a': 1}", "[[]]", "[None, None]"),
    *("@pooling.DiffStride", "@pooling.SpectralPooling()", "@resnet.resnet18", "@data.augment", "@no.such_thing"),
    *("%macro", "@", "[", "1 2", "lambda: 1", "__import__('os')", "=", ""),
)

FLAGS = (
    *(
        "--seed=x",
        "--seed=-1",
        "--seed=1.5",
        "--seed=99999999999999999999",
        "--seed",
        "--workdir=",
        "--workdir=/dev/null",
    ),
    *("--strategy=tpu", "--strategy=none", "--gin_file=", "--gin_file=no such", "--gin_file=/", "--gin_bindings="),
    *(
        "--gin_bindings=x",
        "--data_dir=/dev/null",
        "--no_such_flag",
        "--no_such_flag=1",
        "stray",
        "--",
        "-",
        "--tpu=local",
    ),
    *("--gin_bindings=a.b = 1", "--gin_bindings=import os", "--gin_bindings=include 'x.gin'", "--strategy"),
)


def mutated(text: str, rng: random.Random) -> str:
    """A text with some characters or lines changed, left out, or twice there."""
    lines = text.splitlines()
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(lines))
        kind = rng.randrange(5)
        if kind == 0:
            del lines[place]
        elif kind == 1:
            lines.insert(place, lines[rng.randrange(len(lines))])
        elif kind == 2:
            lines[place] = lines[place][: rng.randrange(len(lines[place]) + 1)]
        elif kind == 3:
            at = rng.randrange(len(lines[place]) + 1)
            lines[place] = lines[place][:at] + rng.choice("=@%'\"[](){}.,#\t\0é ") + lines[place][at:]
        else:
            name, _, _ = lines[place].partition("=")
            lines[place] = f"{name}= {rng.choice(VALUES)}"
        if not lines:
            return ""
    return "\n".join(lines)


def binding(rng: random.Random) -> str:
    names = [name for name in gin_names.PARAMETERS if name.startswith(("train", "data", "resnet", "pooling"))]
    names += ["tf.keras.optimizers.Adam", "tf.keras.losses.CategoricalCrossentropy"]
    name = rng.choice(names)
    return f"--gin_bindings={name}.{rng.choice(gin_names.PARAMETERS[name])} = {rng.choice(VALUES)}"


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.slow] if seed >= IN_CI else []) for seed in range(CASES)]
)
def test_no_command_line_ends_in_a_traceback(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uncompiled: None
):
    rng = random.Random(seed)
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.gin"
    text = SMALL
    kind = rng.choice(("bindings", "bindings", "file", "flags"))
    arguments = [f"--gin_file={config}", "--workdir=run"]
    if kind == "file":
        base = (gin_files.shipped_configs() / "base.gin").read_text(encoding="utf-8")
        text = mutated(SMALL, rng) if rng.random() < 0.7 else f"{mutated(base, rng)}\n{SMALL}"
    elif kind == "flags":
        arguments += rng.sample(FLAGS, rng.randint(1, 2))
    else:
        arguments += [binding(rng) for _ in range(rng.randint(1, 3))]
    # The last ones win: nothing may make a run long.
    limits = {"train.train.num_epochs": 1, "train.train.steps_per_epoch": 1}
    arguments += [f"--gin_bindings={name} = {value}" for name, value in limits.items()]
    config.write_text(text, encoding="utf-8")
    try:
        result = run_here("train", *arguments)
    except flags.Error:
        return  # absl says in a line what is wrong, before the command starts.
    if result.code != 0:
        assert_one_clear_line(result)
    else:
        assert list(tmp_path.rglob("summary.json"))
    outside = {path.name for path in tmp_path.iterdir()} - {"config.gin", "run", "runs"}
    assert not outside
