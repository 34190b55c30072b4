"""Every example in a docstring runs and gives the output that it shows."""

import doctest
import importlib
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_imports import MODULES

import diffstride_hybrid

NAMES = {"keras": keras, "np": np, "tf": tf, "diffstride_hybrid": diffstride_hybrid}
NAMES |= {name: getattr(diffstride_hybrid, name) for name in diffstride_hybrid.__all__}
WITH_EXAMPLES = [name for name, path in MODULES.items() if ">>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_module_run(name: str):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report: list[str] = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, globs={**NAMES, **vars(module)}):
        runner.run(test, out=report.append)
    assert runner.tries > 0
    assert not report, "".join(report)


@pytest.mark.parametrize("name", diffstride_hybrid.__all__)
def test_each_public_name_has_an_example(name: str):
    assert ">>> " in inspect.getdoc(getattr(diffstride_hybrid, name))
