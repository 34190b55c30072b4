"""What the runs of a study cost, and the settings that match one run to the cost or the map sizes of another."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import keras

from diffstride_hybrid.config import gin_files, gin_names
from diffstride_hybrid.model_tools import macs
from experiments.studies.study import Cell

Size = tuple[int, int]


class Cost(NamedTuple):
    """What one image costs in a network.

    Attributes:
        macs: of convolutions and dense layers.
        pooling_sizes: input and output (height, width) of each pooling, by its path.
    """

    macs: int
    pooling_sizes: Mapping[str, tuple[Size, Size]]


@functools.cache
def initial_cost(gin_file: str, bindings: tuple[str, ...]) -> Cost:
    """The cost of a config's network at the strides that it starts with."""
    gin_files.parse([gin_files.find_gin_file(gin_file)], list(bindings))
    model, image_shape = gin_names.bound_model()
    cost = macs.macs(model, image_shape)
    sizes = {path.removeprefix(f"{model.name}/"): size for path, size in cost.pooling_sizes().items()}
    keras.utils.clear_session(free_memory=False)
    return Cost(cost.macs, sizes)


def cell_cost(cell: Cell, runs: str) -> Cost:
    """The cost of a cell: as it ended where it is finished, as it starts where not.

    Args:
        cell: of a study.
        runs: where the folders of all studies are.

    Returns:
        The cost.
    """
    if cell.is_finished(runs):
        summary = cell.summary(runs)
        sizes = {
            pooling["layer"]: (tuple(pooling["input_size"]), tuple(pooling["output_size"]))
            for pooling in summary["poolings"]
        }
        return Cost(summary["macs"], sizes)
    return initial_cost(cell.gin_file, (*cell.gin_bindings, *matched_bindings(cell, runs)))


def matched_bindings(cell: Cell, runs: str) -> tuple[str, ...]:
    """What binds the map sizes or the MACs of the cell that another one is matched to. Nothing for other cells.

    Args:
        cell: of a study.
        runs: where the folders of all studies are.

    Returns:
        Bindings.
    """
    if cell.reference is None:
        return ()
    reference = cell_cost(cell.reference, runs)
    model = cell.model
    if cell.method.match == "maps":
        strides = _strides_of_sizes(reference.pooling_sizes, blocks=len(cell.strides) + 1)
        return ("resnet.Resnet.pooling_cls = @pooling.SpatialPooling", f"{model}.strides = {strides}")
    return (f"{model}.width = {_width_of_macs(cell, reference.macs)}",)


def _strides_of_sizes(sizes: Mapping[str, tuple[Size, Size]], blocks: int) -> list[float | Sequence[float]]:
    """Strides of the first convolution and of each block that give the map sizes of a network."""
    strides: list[float | Sequence[float]] = [1] * (1 + blocks)
    for path, (before, after) in sizes.items():
        first = path.split("/")[0]
        if first == "pooling" or first.startswith("block_"):
            place = 0 if first == "pooling" else int(first.removeprefix("block_"))
            strides[place] = [before[0] / after[0], before[1] / after[1]]
    return strides


def _width_of_macs(cell: Cell, macs: int) -> int:
    """The width at which a cell's network comes nearest to a number of MACs."""
    widths = 8, 16
    costs = [
        initial_cost(cell.gin_file, (*cell.gin_bindings, f"{cell.model}.width = {width}")).macs for width in widths
    ]
    # Two costs fix both coefficients, as every layer's is proportional to the width or to its square.
    square = (costs[1] / widths[1] - costs[0] / widths[0]) / (widths[1] - widths[0])
    linear = costs[0] / widths[0] - square * widths[0]
    exact = (math.sqrt(linear**2 + 4 * square * macs) - linear) / (2 * square)
    return min(
        (max(1, math.floor(exact)), math.ceil(exact)), key=lambda width: abs(square * width**2 + linear * width - macs)
    )
