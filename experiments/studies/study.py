"""What a study is: a grid of training runs, each with a folder of its own.

A study file is a module of `experiments.studies.grids` whose `STUDY` holds a `Study`. Nothing here needs TensorFlow.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import itertools
import json
import pathlib
import pkgutil
import re
from collections.abc import Mapping, Sequence
from typing import Any

GRIDS_PACKAGE = "experiments.studies.grids"

MEASURES = {"test": "test_accuracy", "validation": "validation_accuracy"}
"""What a study compares, and the column of its CSV file that holds it."""

Strides = tuple[float, float, float]
"""The strides of a network's last three blocks where training starts."""

MATCHES = ("maps", "macs")


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to downsample.

    Attributes:
        name: in tables and folder names.
        gin_file: the config, with `{data}` where the name of the data set stands.
        bindings: on top of it.
        matched_to: the method whose finished run of the same data, variant, strides and seed this one is matched to.
        match: 'maps' for strided convolutions with the map sizes that the other has after training, or 'macs' for
            strided convolutions at the usual strides, so wide that they cost as much as the other after training.
    """

    name: str
    gin_file: str
    bindings: tuple[str, ...] = ()
    matched_to: str | None = None
    match: str | None = None


@dataclasses.dataclass(frozen=True)
class Variant:
    """One setting that all methods of a study are run with, such as a learning rate.

    Attributes:
        name: in tables and folder names.
        bindings: on top of those of the method.
    """

    name: str = ""
    bindings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run of a study.

    Attributes:
        study: name of the study.
        data: name of the data set.
        method: how to downsample.
        variant: with which setting.
        strides: of the last three blocks.
        seed: of the run.
        model: the network's name in gin.
        gin_bindings: what is bound on top of the config, but for what a match with another run adds.
        reference: the cell that this one is matched to, which must be run before.
    """

    study: str
    data: str
    method: Method
    variant: Variant
    strides: Strides
    seed: int
    model: str
    gin_bindings: tuple[str, ...]
    reference: Cell | None = None

    @property
    def name(self) -> str:
        """Of the folder, unlike that of any other cell of the study."""
        parts = (self.data, self.method.name, self.variant.name, format_strides(self.strides), f"seed{self.seed}")
        return "-".join(part for part in parts if part)

    @property
    def gin_file(self) -> str:
        """Name of the shipped config."""
        return self.method.gin_file.format(data=self.data)

    def folder(self, runs: str | pathlib.Path) -> pathlib.Path:
        """The folder of the run among those of all studies."""
        return pathlib.Path(runs) / self.study / self.name

    def summary(self, runs: str | pathlib.Path) -> dict[str, Any]:
        """What a finished run has written last."""
        return json.loads((self.folder(runs) / "summary.json").read_text(encoding="utf-8"))

    def is_finished(self, runs: str | pathlib.Path) -> bool:
        """Whether the run has ended well."""
        return (self.folder(runs) / "summary.json").exists()


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid of runs: data sets x variants x strides x methods, for each seed.

    Attributes:
        name: of the study.
        purpose: what it answers, in one line.
        methods: those compared. One that is matched to another comes after it.
        data: names of data sets.
        strides: of the last three blocks where training starts.
        seeds: of the runs.
        bindings: of all runs.
        variants: settings that all methods are run with.
        first_stride: of the first convolution.
        model: the network's name in gin.
        measure: what the tables compare: accuracy on the 'test' or on the 'validation' images, after training.
        baseline: the method whose runs those of the others are compared to one by one, or None.
        published: figures of others, by data set and method, as they stand in the tables.
    """

    name: str
    purpose: str
    methods: tuple[Method, ...]
    data: tuple[str, ...]
    strides: tuple[Strides, ...] = ((2, 2, 2),)
    seeds: tuple[int, ...] = (1,)
    bindings: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = (Variant(),)
    first_stride: float = 1
    model: str = "resnet.resnet18"
    measure: str = "test"
    baseline: str | None = None
    published: Mapping[tuple[str, str], str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [*self.data, *(method.name for method in self.methods), *(variant.name for variant in self.variants)]
        for name in (self.name, *names):
            if not re.fullmatch(r"[\w.]*", name):
                raise ValueError(f"A name in a study may have letters, digits, '_' and '.', got {name!r}.")
        if len(self.variants) > 1 and len(self.strides) > 1:
            raise ValueError(f"Study {self.name} may vary its strides or have variants, not both.")
        unmatched: set[str] = set()
        for method in self.methods:
            if method.matched_to is None:
                unmatched.add(method.name)
            elif method.matched_to not in unmatched or method.match not in MATCHES:
                raise ValueError(
                    f"Method {method.name} must be matched in {' or '.join(MATCHES)} to an earlier one that is not "
                    f"matched itself, got {method.match} to {method.matched_to}."
                )

    def columns(self) -> tuple[str, list[str]]:
        """What the columns of the tables are: 'variant' or 'strides', and their values in the CSV file."""
        if len(self.variants) > 1:
            return "variant", [variant.name for variant in self.variants]
        return "strides", [format_strides(strides) for strides in self.strides]

    def cells(self) -> list[Cell]:
        """All runs. Seeds come last, so that a study that is not finished has whole seeds."""
        cells: dict[tuple[Any, ...], Cell] = {}
        for seed, data, variant, strides in itertools.product(self.seeds, self.data, self.variants, self.strides):
            for method in self.methods:
                bound = (
                    *self.bindings,
                    f"{self.model}.strides = {[self.first_stride, 1, *strides]}",
                    *method.bindings,
                    *variant.bindings,
                )
                place = (data, variant.name, strides, seed)
                reference = cells[(*place, method.matched_to)] if method.matched_to else None
                cells[(*place, method.name)] = Cell(
                    self.name, data, method, variant, strides, seed, self.model, bound, reference
                )
        return list(cells.values())


PAPER_STRIDES: tuple[Strides, ...] = ((2, 2, 2), (2, 2, 3), (1, 3, 1), (3, 1, 3), (3, 1, 2), (3, 2, 3))
"""Those that both papers start from on CIFAR-10 and CIFAR-100."""

PAPER_METHODS = (
    Method("strided", "{data}_strided"),
    Method("spectral", "{data}_spectral"),
    Method("diffstride", "{data}_diffstride"),
    Method("hybrid", "{data}_hybrid"),
    Method("hybrid_before_activation", "{data}_hybrid_before_activation"),
    Method("strided_matched_maps", "{data}_strided", matched_to="diffstride", match="maps"),
    Method("strided_matched_macs", "{data}_strided", matched_to="diffstride", match="macs"),
)
"""The five methods of the papers' comparison, and two baselines that tell a gain of the method from one of compute.

Both are strided convolutions matched to the `diffstride` run of the same seed. One samples its maps to the sizes that
DiffStride ended with, so that maps and the MACs of convolutions are equal. The other is wider until those MACs are as
near as a whole width gets, and has more parameters for it.
"""


def shard_of(cells: Sequence[Cell], index: int, count: int) -> list[Cell]:
    """The cells of one of several machines. A cell is always with the one that it is matched to.

    Args:
        cells: all of a study.
        index: which machine, from 1.
        count: how many machines.

    Returns:
        About the same number for each machine.
    """
    groups: dict[Cell, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.reference or cell, []).append(cell)
    shards: list[list[Cell]] = [[] for _ in range(count)]
    for group in groups.values():
        min(shards, key=len).extend(group)
    return sorted(shards[index - 1], key=cells.index)


def column_title(axis: str, value: str) -> str:
    """What stands above a column of a table or figure."""
    return f"strides {value}" if axis == "strides" else value


def format_strides(strides: Sequence[float]) -> str:
    """Strides as they stand in names and tables, such as '2,2,2'."""
    return ",".join(f"{stride:g}" for stride in strides)


def study_names() -> list[str]:
    """The names of all studies."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(GRIDS_PACKAGE).__path__))


def load_study(name: str) -> Study:
    """Loads a study by its name.

    Args:
        name: of a module of `experiments.studies.grids`.

    Returns:
        The study.

    Raises:
        ValueError: there is none.
    """
    names = study_names()
    if name not in names:
        near = difflib.get_close_matches(name, names)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}."
        raise ValueError(f"No study {name!r}: {hint}")
    return importlib.import_module(f"{GRIDS_PACKAGE}.{name}").STUDY
