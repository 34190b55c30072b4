"""Studies: grids of training runs, each run with a folder of its own.

A module of `experiments.studies.grids` is a study if its `STUDY` holds a `Study`.
"""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import pathlib
import pkgutil
import re
from collections.abc import Mapping, Sequence
from typing import Any

from diffstride_hybrid.common.errors import did_you_mean
from diffstride_hybrid.runs.folder import read_json

GRIDS_PACKAGE = "experiments.studies.grids"

MEASURES = {"test": "test_accuracy", "validation": "validation_accuracy"}
"""The accuracies that a study may compare, each with its column in the CSV file."""

Strides = tuple[float, float, float]
"""The strides of a network's last three blocks before training."""

MATCHES = ("maps", "macs")
"""In what a method may be matched to another: the sizes of its maps, or its MACs."""


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to downsample.

    Attributes:
        name: used in tables and folder names.
        gin_file: name of the config; `{data}` stands for the name of the data set.
        bindings: gin bindings that override the config.
        matched_to: name of another method. A run of this method is matched to the finished run of the other method with
            the same data, variant, strides and seed.
        match: 'maps' for strided convolutions with the map sizes that the other run has after training, or 'macs' for
            the method's network so wide that it costs as much as the other run after training.
        curve: a name that methods share if figures join them by a line; None for a method that stands alone.
    """

    name: str
    gin_file: str
    bindings: tuple[str, ...] = ()
    matched_to: str | None = None
    match: str | None = None
    curve: str | None = None


@dataclasses.dataclass(frozen=True)
class Variant:
    """One setting that every method of a study runs with, such as a learning rate.

    Attributes:
        name: used in tables and folder names.
        bindings: gin bindings that are added to those of the method.
    """

    name: str = ""
    bindings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Cell:
    """One training run of a study.

    Attributes:
        study: name of the study.
        data: name of the data set.
        method: the way to downsample.
        variant: the setting.
        strides: of the last three blocks before training.
        seed: of the run.
        model: the network's name in gin.
        gin_bindings: all bindings that override the config, except those that a match adds.
        reference: the cell that this one is matched to. It must run first.
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
        """The name of the run's folder. No other cell of the study has it."""
        parts = (self.data, self.method.name, self.variant.name, format_strides(self.strides), f"seed{self.seed}")
        return "-".join(part for part in parts if part)

    @property
    def gin_file(self) -> str:
        """The name of the shipped config."""
        return self.method.gin_file.format(data=self.data)

    def folder(self, runs: str | pathlib.Path) -> pathlib.Path:
        """Returns the folder of the run; `runs` holds a folder for each study."""
        return pathlib.Path(runs) / self.study / self.name

    def summary(self, runs: str | pathlib.Path) -> dict[str, Any]:
        """Reads the `summary.json` of a finished run; raises OSError if the file is missing or damaged."""
        return read_json(self.folder(runs) / "summary.json")

    def is_finished(self, runs: str | pathlib.Path) -> bool:
        """Tells whether the run has ended well."""
        return (self.folder(runs) / "summary.json").exists()


@dataclasses.dataclass(frozen=True)
class Study:
    """A grid of runs: data sets x variants x strides x methods, for each seed.

    Attributes:
        name: of the study and of its module.
        purpose: the question that the study answers, in one line.
        methods: the methods to compare. A matched method comes after the method that it is matched to.
        data: names of data sets.
        strides: choices of the strides of the last three blocks before training.
        seeds: of the runs.
        bindings: gin bindings of all runs.
        variants: settings that every method runs with.
        first_stride: stride of the first convolution.
        model: the network's name in gin.
        measure: the accuracy that the tables compare after training, on the 'test' or on the 'validation' images.
        baseline: the method that the others are compared with, run by run, or None.
        timed: whether the tables show how long the training took. Its runs must then have the machine to themselves.
        published: accuracies from publications, by data set and method, as the tables show them.

    Raises:
        ValueError: a name has a character that a folder name must not have, the study varies both strides and settings,
            or a method is matched to a method that does not stand before it.
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
    timed: bool = False
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
        """Returns the quantity that the table columns vary, 'variant' or 'strides', and its values in the CSV file."""
        if len(self.variants) > 1:
            return "variant", [variant.name for variant in self.variants]
        return "strides", [format_strides(strides) for strides in self.strides]

    def cells(self) -> list[Cell]:
        """Returns all runs, seed by seed, so that an unfinished study has complete seeds."""
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
"""The initial strides that both papers use on CIFAR-10 and CIFAR-100."""

PAPER_METHODS = (
    Method("strided", "{data}_strided"),
    Method("spectral", "{data}_spectral"),
    Method("diffstride", "{data}_diffstride"),
    Method("hybrid", "{data}_hybrid"),
    Method("hybrid_before_activation", "{data}_hybrid_before_activation"),
    Method("strided_matched_maps", "{data}_strided", matched_to="diffstride", match="maps"),
    Method("strided_matched_macs", "{data}_strided", matched_to="diffstride", match="macs"),
)
"""The five methods of the papers' comparison, and two baselines that tell a gain of the method from a gain of compute.

Both baselines are strided convolutions, matched to the `diffstride` run of the same strides and seed. One samples its
maps to the sizes that DiffStride ended with, so the maps and the MACs of the convolutions are equal. The other is
wider, so that its MACs come as near as a whole width allows, and has more parameters.
"""


def shard_of(cells: Sequence[Cell], index: int, count: int) -> list[Cell]:
    """Selects the cells that one of several machines runs. Matched cells stay with their references.

    Args:
        cells: all cells of a study.
        index: number of the machine, from 1.
        count: how many machines there are.

    Returns:
        The machine's cells, in the order of `cells`. All machines get about the same number.
    """
    groups: dict[Cell, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.reference or cell, []).append(cell)
    shards: list[list[Cell]] = [[] for _ in range(count)]
    for group in groups.values():
        min(shards, key=len).extend(group)
    return sorted(shards[index - 1], key=cells.index)


def column_title(axis: str, value: str) -> str:
    """Returns the title of a table column or figure panel, from what `Study.columns` returns."""
    return f"strides {value}" if axis == "strides" else value


def format_strides(strides: Sequence[float]) -> str:
    """Writes strides as names and tables show them, such as '2,2,2'."""
    return ",".join(f"{stride:g}" for stride in strides)


def study_names() -> list[str]:
    """Returns the names of all studies in alphabetical order. A module of the folder without a `STUDY` is left out."""
    modules = pkgutil.iter_modules(importlib.import_module(GRIDS_PACKAGE).__path__)
    return sorted(module.name for module in modules if isinstance(_study_of(module.name), Study))


def _study_of(module: str) -> Any:
    return getattr(importlib.import_module(f"{GRIDS_PACKAGE}.{module}"), "STUDY", None)


def load_study(name: str) -> Study:
    """Loads a study by its name.

    Args:
        name: name of its module in `experiments.studies.grids`.

    Returns:
        The study.

    Raises:
        ValueError: there is no such study.
    """
    names = study_names()
    if name not in names:
        hint = did_you_mean(name, names) or f"there are {', '.join(names)}."
        raise ValueError(f"No study {name!r}: {hint}")
    return _study_of(name)
