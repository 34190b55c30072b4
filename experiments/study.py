"""What a study is: a grid of training runs, each with a folder of its own.

A study file is a module of `experiments.studies` whose `STUDY` holds a `Study`. Nothing here needs TensorFlow.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import itertools
import json
import pathlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

STUDIES_PACKAGE = "experiments.studies"
CELL_FILE = "cell.json"

Strides = tuple[float, float, float]
"""The strides of a network's last three blocks where training starts."""


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

    def is_finished(self, runs: str | pathlib.Path) -> bool:
        """Whether the run has ended well."""
        return (self.folder(runs) / "summary.json").exists()

    def description(self) -> dict[str, Any]:
        """What the folder keeps of the cell in `CELL_FILE`, to tell whether a study has changed since."""
        return {
            "data": self.data,
            "method": self.method.name,
            "variant": self.variant.name,
            "strides": format_strides(self.strides),
            "seed": self.seed,
            "gin_file": self.gin_file,
            "gin_bindings": list(self.gin_bindings),
        }

    def check_unchanged(self, runs: str | pathlib.Path) -> None:
        """Raises ValueError where the cell's folder was made by another version of its study."""
        path = self.folder(runs) / CELL_FILE
        if not path.exists():
            return
        before, now = json.loads(path.read_text(encoding="utf-8")), self.description()
        changed = [f"{name} was {before.get(name)}, is {now[name]}" for name in now if before.get(name) != now[name]]
        if changed:
            raise ValueError(
                f"{path.parent} was run by another version of the study: {'; '.join(changed)}. Move it away, or give "
                "another --runs."
            )


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

Both are strided convolutions matched to the `diffstride` run of the same seed: one samples its maps to the sizes that
DiffStride ended with, so that maps, MACs and parameters are equal, the other is wider until the MACs are.
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
    heads = [cell for cell in cells if cell.reference is None]
    return [cell for cell in cells if heads.index(cell.reference or cell) % count == index - 1]


def format_strides(strides: Sequence[float]) -> str:
    """Strides as they stand in names and tables, such as '2,2,2'."""
    return ",".join(f"{stride:g}" for stride in strides)


def study_names() -> list[str]:
    """The names of all studies."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(STUDIES_PACKAGE).__path__))


def load_study(name: str) -> Study:
    """Loads a study by its name.

    Args:
        name: of a module of `experiments.studies`.

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
    return importlib.import_module(f"{STUDIES_PACKAGE}.{name}").STUDY
