import importlib.util
import re
import shlex
from pathlib import Path

import keras
import pytest

from diffstride_hybrid import command_line

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(part) for line in lines for part in line.split("&&")]


OURS = ("diffstride_hybrid", "experiments")
PACKAGE_COMMANDS = [words for words in commands() if "-m" in words and words[words.index("-m") + 1].startswith(OURS)]


@pytest.mark.parametrize("snippet", [part for block in blocks("python") for part in block.split("\n\n")])
def test_each_snippet_runs_on_a_feature_map(snippet: str):
    names = {"keras": keras, "x": keras.Input((32, 32, 8))}
    exec("from diffstride_hybrid import *\n" + snippet, names)
    assert names["x"].shape[-1] in (8, 64)


@pytest.mark.parametrize("words", PACKAGE_COMMANDS, ids=" ".join)
def test_each_command_names_a_module_options_and_configs_that_exist(words: list[str]):
    module = words[words.index("-m") + 1]
    source = importlib.util.find_spec(module).loader.get_source(module)
    known = re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', source)
    for option in words[words.index("-m") + 2 :]:
        name, _, value = option.removeprefix("--").partition("=")
        assert name in known, option
        if name == "gin_file":
            command_line.find_gin_file(value)


def test_the_test_command_is_that_of_ci():
    install, test = (
        re.sub(r"\s+", " ", line.strip())
        for line in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
        if "pip install" in line or "pytest" in line
    )
    spoken = " ".join(README.split())
    assert install in spoken
    assert spoken.index(install) < spoken.index(test)


def test_the_readme_names_each_family_of_configs():
    for name in ("digits_hybrid", "cifar10_hybrid", "fashion_mnist_hybrid"):
        assert name in README
