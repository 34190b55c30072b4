"""Moves strides until a model has a wanted cost: along the gradient of its MACs, or from size to size of its maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from diffstride_hybrid.model_tools.cost_model import CostModel, Strides

_INSIDE = 1.021
"""How far within the range of its size a stride is put. A static crop changes size only 2 % past a boundary."""

_CELLS = 2
"""By how many sizes a stride may move, up or down."""

_MOST_COMBINED = 3
"""How many strides may move together."""

_MOST_IN_THREES = 16
"""Of more strides than that, only two move together: there are enough pairs, and too many triples."""

_AROUND = np.linspace(0.85, 1.15, 13)
"""Factors of strides. On small maps they reach the next sizes."""

_NEAR = 1.01
"""The factor between the strides whose costs give a derivative."""

_DOUBLINGS, _HALVINGS = 60, 60

_MOST_OF_A_LOGARITHM = 20.0
"""A stride that has moved so far in its logarithm is at its limit."""


class StrideLimits(NamedTuple):
    """Between what values the strides of each layer may move.

    Attributes:
        least: float32, in the shapes of the strides.
        most: the same.
    """

    least: list[np.ndarray]
    most: list[np.ndarray]


def stride_limits(costs: CostModel, frozen: bool = True) -> StrideLimits:
    """Finds the limits of the strides of a model's layers.

    They are those of the layers' constraints, and upward also the stride at which a map has become as small as it can:
    half its length.

    Args:
        costs: of the model.
        frozen: whether layers that are not trained keep their strides.
    """
    strides = costs.strides()
    least, most = [], []
    for layer, present in zip(costs.layers, strides):
        lower, upper = layer.strides.constraint.lower_limit, layer.strides.constraint.upper_limit
        low = np.maximum(np.ones_like(present), np.float32(1.0 if lower is None else lower))
        high = np.full_like(present, np.inf if upper is None else upper)
        can_move = layer.trainable or not frozen
        least.append(low if can_move else present)
        most.append(high if can_move else present)
    for i, size in enumerate(costs.inputs(least)):
        halves = np.array(size, "float32") / 2 if len(strides[i]) == 2 else np.float32(max(size) / 2)
        most[i] = np.minimum(most[i], np.maximum(np.maximum(halves, strides[i]), least[i]))
    return StrideLimits(least, most)


def stepped(costs: CostModel, strides: Strides, limits: StrideLimits, wanted: float) -> list[np.ndarray]:
    """Moves strides along the gradient of the MACs until the smooth cost is as wanted, or the limits are met.

    The step is `log s - a dC/dlog s` with the smooth cost `C`, within the limits: the least change of the logarithms
    that lowers the cost by so much. The cost falls as `a` grows, so bisection finds `a`, which is negative if the cost
    shall grow.

    Args:
        costs: of the model.
        strides: of each layer.
        limits: from `stride_limits`.
        wanted: MACs, as `costs.smooth` counts them.

    Returns:
        Strides of each layer, float32.
    """
    slopes = _slopes(costs, strides, limits)

    def at(weight: float) -> list[np.ndarray]:
        moved = [(each * np.exp(-weight * slope)).astype("float32") for each, slope in zip(strides, slopes)]
        return [np.clip(each, low, high) for each, low, high in zip(moved, *limits)]

    sign = 1.0 if costs.smooth(strides) > wanted else -1.0
    weight = 1e-4
    for _ in range(_DOUBLINGS):
        if sign * costs.smooth(at(sign * weight)) <= sign * wanted or weight > _MOST_OF_A_LOGARITHM:
            break
        weight *= 2
    low, high = 0.0, weight
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if sign * costs.smooth(at(sign * middle)) <= sign * wanted:
            high = middle
        else:
            low = middle
    return at(sign * high)


def _slopes(costs: CostModel, strides: Strides, limits: StrideLimits) -> list[np.ndarray]:
    """Derivatives of the smooth cost by the logarithms of the strides, up to a factor: the greatest is -1 or 1.

    Where no stride changes the cost, as on the smallest maps, all are -1.
    """
    slopes = [np.zeros(len(each)) for each in strides]
    for place, component in ((place, i) for place, each in enumerate(strides) for i in range(len(each))):
        ends = []
        for factor in (_NEAR, 1 / _NEAR):
            moved = [each.copy() for each in strides]
            least, most = limits.least[place][component], limits.most[place][component]
            moved[place][component] = np.clip(moved[place][component] * np.float32(factor), least, most)
            ends.append(costs.smooth(moved))
        slopes[place][component] = ends[0] - ends[1]
    greatest = max(np.abs(slope).max() for slope in slopes)
    return [slope / greatest if greatest else -np.ones(len(slope)) for slope in slopes]


def mean_ratio(costs: CostModel, strides: Strides, limits: StrideLimits) -> float:
    """The cost at whole sizes over the smooth cost, as the mean around some strides.

    At the strides themselves the ratio depends on how near they are to the next size.

    Args:
        costs: of the model.
        strides: of each layer.
        limits: from `stride_limits`.
    """
    around = [
        [np.clip(each * np.float32(factor), low, high) for each, low, high in zip(strides, *limits)]
        for factor in _AROUND
    ]
    return sum(map(costs.whole, around)) / sum(map(costs.smooth, around))


def settled(
    costs: CostModel, strides: Strides, limits: StrideLimits, wanted: float, tolerance: float
) -> list[np.ndarray]:
    """Finds the smallest change of the strides, in their logarithms, that brings the cost at whole sizes near a target.

    Up to three strides move, each to the next two smaller or larger sizes of its map.

    Args:
        costs: of the model.
        strides: of each layer.
        limits: from `stride_limits`.
        wanted: MACs, as `costs.whole` counts them.
        tolerance: by what share of `wanted` the cost may differ.

    Returns:
        Strides of each layer, float32: those given if they are near enough; the best ones found if none are.
    """
    best, distance = list(strides), _distance(costs.whole(strides), wanted, tolerance)
    for change in _by_movement(list(_moves(costs, strides, limits))):
        if distance == 0.0:
            break
        moved = [each.copy() for each in strides]
        for move in change:
            moved[move.place][move.component] = move.value
        if (found := _distance(costs.whole(moved), wanted, tolerance)) < distance:
            best, distance = moved, found
    return best


def _distance(cost: float, wanted: float, tolerance: float) -> float:
    """How far a cost is from what is wanted, as a share; 0 within the tolerance."""
    share = abs(cost / wanted - 1)
    return 0.0 if share <= tolerance else share


class _Move(NamedTuple):
    """One stride of a layer and the value that it might get."""

    place: int
    component: int
    value: np.float32
    squared: float


def _moves(costs: CostModel, strides: Strides, limits: StrideLimits) -> Iterator[list[_Move]]:
    """For each stride that can move, its moves."""
    for place, size in enumerate(costs.inputs(strides)):
        for component, stride in enumerate(strides[place]):
            boundaries = costs.table(place, component, size).boundaries
            low, high = limits.least[place][component], limits.most[place][component]
            values = list(_values(boundaries, stride, low, high))
            if values:
                yield [_Move(place, component, value, math.log(value / stride) ** 2) for value in values]


def _values(boundaries: np.ndarray, stride: float, least: float, most: float) -> Iterator[np.float32]:
    """A stride for each of the next smaller and larger sizes."""
    edges = [-math.inf, *boundaries.tolist(), math.inf]
    present = int(np.searchsorted(boundaries, stride, side="right"))
    for cell in range(max(present - _CELLS, 0), min(present + _CELLS, len(boundaries)) + 1):
        low, high = max(edges[cell], float(least)), min(edges[cell + 1], float(most))
        if cell == present or low >= high:
            continue
        inside = low * _INSIDE if cell > present else high / _INSIDE
        is_narrow = not low * _INSIDE <= inside <= high / _INSIDE
        value = np.float32(math.sqrt(low * high) if is_narrow else inside)
        if int(np.searchsorted(boundaries, value, side="right")) == cell:  # Not if float32 has no number between.
            yield value


def _by_movement(moves: Sequence[list[_Move]]) -> list[tuple[_Move, ...]]:
    """All changes of a few strides, the smallest first."""
    most = _MOST_COMBINED if len(moves) <= _MOST_IN_THREES else _MOST_COMBINED - 1
    changes = [
        change
        for count in range(1, most + 1)
        for chosen in itertools.combinations(moves, count)
        for change in itertools.product(*chosen)
    ]
    return sorted(changes, key=lambda change: sum(move.squared for move in change))
