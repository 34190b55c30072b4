"""The cost of a study's runs, and the settings that match one run to the cost or the map sizes of another."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import keras

from diffstride_hybrid.config import gin_files, gin_names
from diffstride_hybrid.model_tools.inspection import short_path
from diffstride_hybrid.model_tools.macs import macs
from experiments.studies.study import Cell

Size = tuple[int, int]


class Cost(NamedTuple):
    """The cost of one image in a network.

    Attributes:
        macs: multiply-accumulate operations of convolutions and dense layers.
        pooling_sizes: input and output (height, width) of each pooling, by the layer's path within the model.
    """

    macs: int
    pooling_sizes: Mapping[str, tuple[Size, Size]]


@functools.cache
def initial_cost(gin_file: str, bindings: tuple[str, ...]) -> Cost:
    """Returns the cost of a config's network before training.

    Args:
        gin_file: path of a gin file, or the name of a shipped config.
        bindings: gin bindings that override the file.

    Returns:
        The cost at the initial strides.
    """
    gin_files.parse([gin_files.find_gin_file(gin_file)], list(bindings))
    model, image_shape = gin_names.bound_model()
    cost = macs(model, image_shape)
    sizes = {short_path(model, path): size for path, size in cost.pooling_sizes().items()}
    keras.utils.clear_session(free_memory=False)
    return Cost(cost.macs, sizes)


def cell_cost(cell: Cell, runs: str) -> Cost:
    """Returns the cost of a cell's network: after training if the cell is finished, else before it.

    Args:
        cell: of a study.
        runs: the folder that holds a folder for each study.

    Returns:
        The cost.

    Raises:
        OSError: the `summary.json` of the finished cell is damaged.
    """
    if cell.is_finished(runs):
        summary = cell.summary(runs)
        sizes = {
            pooling["layer"]: (tuple(pooling["input_size"]), tuple(pooling["output_size"]))
            for pooling in summary["poolings"]
        }
        return Cost(summary["macs"], sizes)
    return initial_cost(cell.gin_file, (*cell.gin_bindings, *matched_bindings(cell, runs)))


def matched_bindings(cell: Cell, runs: str, recorded: Mapping[Cell, Cost] | None = None) -> tuple[str, ...]:
    """Finds the bindings that give a cell the map sizes or the MACs of its reference.

    Args:
        cell: of a study.
        runs: the folder that holds a folder for each study.
        recorded: the costs of cells that are finished elsewhere.

    Returns:
        Gin bindings; none for a cell without a reference.
    """
    if cell.reference is None:
        return ()
    is_here = recorded is None or cell.reference not in recorded or cell.reference.is_finished(runs)
    reference = cell_cost(cell.reference, runs) if is_here else recorded[cell.reference]
    model = cell.model
    if cell.method.match == "maps":
        strides = _strides_of_sizes(reference.pooling_sizes, blocks=len(cell.strides) + 1)
        return ("resnet.Resnet.pooling_cls = @pooling.SpatialPooling", f"{model}.strides = {strides}")
    return (f"{model}.width = {_width_of_macs(cell, reference.macs)}",)


def _strides_of_sizes(sizes: Mapping[str, tuple[Size, Size]], blocks: int) -> list[float | Sequence[float]]:
    """Finds strides of the first convolution and of each block that lead to the given map sizes."""
    strides: list[float | Sequence[float]] = [1] * (1 + blocks)
    for path, (before, after) in sizes.items():
        first = path.split("/")[0]
        if first == "pooling" or first.startswith("block_"):
            place = 0 if first == "pooling" else int(first.removeprefix("block_"))
            strides[place] = [before[0] / after[0], before[1] / after[1]]
    return strides


def _width_of_macs(cell: Cell, wanted: int) -> int:
    """Finds the width at which the MACs of a cell's network come nearest to a wanted number."""
    widths = 8, 16
    costs = [
        initial_cost(cell.gin_file, (*cell.gin_bindings, f"{cell.model}.width = {width}")).macs for width in widths
    ]
    # Each layer's cost is proportional to the width or to its square, so two widths give both coefficients.
    square = (costs[1] / widths[1] - costs[0] / widths[0]) / (widths[1] - widths[0])
    linear = costs[0] / widths[0] - square * widths[0]
    exact = (math.sqrt(linear**2 + 4 * square * wanted) - linear) / (2 * square)
    return min(
        (max(1, math.floor(exact)), math.ceil(exact)),
        key=lambda n: abs(square * n**2 + linear * n - wanted),
    )
