"""Predicts the MACs of a model for any strides of its `DiffStride` layers, without running it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from diffstride_hybrid.backends import current
from diffstride_hybrid.layers.diffstride import DiffStride
from diffstride_hybrid.layers.input_checks import Size
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.model_tools.length_table import LengthTable
from diffstride_hybrid.model_tools.macs import LayerCost, macs

Strides = Sequence[np.ndarray]
"""The strides of each layer: `[2]`, vertical and horizontal, or `[1]`."""

_NO_MAP: Size = (0, 0)
"""The size of what has no axes in space, such as the input of a dense layer behind a global pooling."""

_NO_LAYER = -1
"""The number of what is no `DiffStride` layer in a record."""

_MOST_TRIMMED = 6
"""The most samples that a convolution without padding is taken to take away, and a padding to add."""


def cropping_layers(model: keras.Model) -> list[DiffStride]:
    """Lists the `DiffStride` layers whose strides set the size of their output.

    Args:
        model: a built model.

    Returns:
        Each layer once, in the order of the model.
    """
    return [layer for layer in diffstride_layers(model) if layer.cropping]


def cost_record(model: keras.Model, input_shape: Any = None) -> np.ndarray:
    """Counts a model's MACs once, as `CostModel` needs them.

    Args:
        model: a built model.
        input_shape: as for `macs`.

    Returns:
        Whole numbers `[calls, 6]`, a row for each call of a `DiffStride` layer that crops and of each layer whose MACs
        count, in the order of the calls: the number of the `DiffStride` layer or -1, the height and the width of the
        input, the height and the width of the output, and the MACs. Sizes are 0 if there is no map.
    """
    numbers = {layer: i for i, layer in enumerate(cropping_layers(model))}
    rows = []
    for cost in macs(model, input_shape).layers:
        number = numbers.get(cost.layer, _NO_LAYER)
        if number != _NO_LAYER:
            sizes = [cost.layer.spatial_size(shape) for shape in (cost.input_shape, cost.output_shape)]
            rows.append([number, *sizes[0], *sizes[1], 0])
        elif cost.macs and not cost.is_pooling:
            rows.append(
                [number, *_size_of_map(cost, cost.input_shape), *_size_of_map(cost, cost.output_shape), cost.macs]
            )
    return np.array(rows, "int64").reshape(-1, 6)


def _size_of_map(cost: LayerCost, shape: tuple[int, ...]) -> Size:
    """Height and width of a map or signal, which has one row."""
    last = getattr(cost.layer, "data_format", keras.config.image_data_format()) == "channels_last"
    size = shape[:-1] if last else shape[1:]
    return (1, *size)[-2:] if 1 <= len(size) <= 2 else _NO_MAP


class _Change(NamedTuple):
    """How a length follows from another one that layers of fixed sizes have changed, as it was counted once.

    A strided layer divides by a whole number and rounds, up if it pads and down if not. A convolution without padding
    takes a few samples away. Everything else is taken to multiply.
    """

    before: int
    after: int

    def __call__(self, length: float) -> float:
        before, after = self
        factor, is_whole = max(round(before / after), 1), isinstance(length, int)
        if factor > 1 and 0 <= factor * after - before < factor:
            return math.ceil(length / factor) if is_whole else length / factor
        if factor > 1 and 0 <= before - factor * after < factor:
            return max(length // factor, 1) if is_whole else length / factor
        if abs(before - after) <= _MOST_TRIMMED and factor == 1 and after < 2 * before:
            return max(length + after - before, 1)
        return math.ceil(length * after / before) if is_whole else length * after / before


class _Part(NamedTuple):
    """Layers whose MACs grow with the same map: the region, and how the map's height and width follow from it."""

    region: int
    height: _Change
    width: _Change

    def of(self, size: tuple[Any, Any]) -> tuple[Any, Any]:
        """The map's size, from that of its region."""
        return self.height(size[0]), self.width(size[1])


class CostModel:
    """The MACs of a model as a function of the strides of its `DiffStride` layers.

    The layers divide the model into regions: one before the first layer, and one behind each. The MACs of a layer are
    taken to be in proportion to the area of its output, and its sizes to follow from those of its region's map, which
    is the latest one that has the size of the layer's input. At the strides of the record the prediction is exact.

    Args:
        layers: from `cropping_layers`.
        record: from `cost_record`.

    Attributes:
        record: as given.
        layers: those of the layers that run.
        constant: MACs that do not depend on strides.

    Example:
        >>> from diffstride_hybrid.model_tools.cost_model import CostModel, cost_record, cropping_layers
        >>> model = keras.Sequential([keras.Input((32, 32, 1)), DiffStride(2.0), keras.layers.Conv2D(4, 1)])
        >>> costs = CostModel(cropping_layers(model), cost_record(model))
        >>> costs.whole([np.array([2.0, 2.0])]), costs.whole([np.array([4.0, 2.0])])  # 24 x 24 x 4, 16 x 24 x 4
        (2304, 1536)
    """

    def __init__(self, layers: Sequence[DiffStride], record: np.ndarray):
        numbers = sorted({int(row[0]) for row in record} - {_NO_LAYER})
        self.record = record
        self.layers = [layers[number] for number in numbers]
        self.constant = 0
        self._tables: dict[tuple[int, int, Size], LengthTable] = {}
        self._inputs: list[tuple[int, int, _Part]] = []
        """Of each layer as it runs: its place in `layers`, the place of its region, and how its input follows."""
        positions: Counter[_Part] = Counter()
        sizes: list[Size] = []
        first = next((row for row in record.tolist() if tuple(row[1:3]) != _NO_MAP), None)
        self._first: Size = _NO_MAP if first is None else tuple(first[1:3])
        regions: list[Size] = [self._first]
        places: dict[int, int] = {}
        for number, *lengths, count in record.tolist():
            before, after = tuple(lengths[:2]), tuple(lengths[2:])
            region = next((i for i in reversed(range(len(regions))) if regions[i] == before), len(regions) - 1)
            if number != _NO_LAYER:
                if number not in places:
                    part = _Part(region, *map(_Change, regions[region], before))
                    self._inputs.append((numbers.index(number), region, part))
                    places[number] = len(regions)
                    regions.append(after)
            elif before == _NO_MAP:
                self.constant += count
            else:
                after = before if after == _NO_MAP else after
                part = _Part(region, *map(_Change, regions[region], after))
                positions[part] += count
                sizes.append(after)
        self._parts = {part: count / (part.height.after * part.width.after) for part, count in positions.items()}

    def strides(self) -> list[np.ndarray]:
        """Reads the present strides of the layers, float32."""
        return [current.value_of(layer.strides) for layer in self.layers]

    def whole(self, strides: Strides) -> int:
        """The MACs at the sizes of maps that the layers give.

        Args:
            strides: of each layer.
        """
        sizes = [self._first]
        for place, region, change in self._inputs:
            sizes.append(self._pooled(place, change.of(sizes[region]), strides[place]))
        return round(self._cost(sizes))

    def smooth(self, strides: Strides) -> float:
        """The MACs as they would be if a map could have any fraction of a sample: continuous, and falls with strides.

        Along an axis of `n` samples a layer of stride `s` and ramp `R` is taken to give `min(n, max(n / s, 2) + 2 R)`
        samples, the length of its window, and one more for mask='released', which rounds up to an even number.

        Args:
            strides: of each layer.
        """
        sizes: list[tuple[float, float]] = [(float(self._first[0]), float(self._first[1]))]
        for place, region, change in self._inputs:
            layer, (height, width) = self.layers[place], change.of(sizes[region])
            vertical, horizontal = float(strides[place][0]), float(strides[place][-1])
            sizes.append((_smooth_length(layer, height, vertical), _smooth_length(layer, width, horizontal)))
        return self._cost(sizes)

    def inputs(self, strides: Strides) -> list[Size]:
        """The height and width of the map that each layer pools.

        Args:
            strides: of each layer.
        """
        sizes, found = [self._first], {}
        for place, region, change in self._inputs:
            found[place] = change.of(sizes[region])
            sizes.append(self._pooled(place, found[place], strides[place]))
        return [found[place] for place in range(len(self.layers))]

    def table(self, place: int, component: int, size: Size) -> LengthTable:
        """The sizes that a layer gives for a map, by one of its strides.

        Args:
            place: of the layer in `layers`.
            component: 0 for the layer's first stride, 1 for the second.
            size: height and width of the map.
        """
        axes = [0, 1]
        if self.layers[place].strides.shape[0] == 2:
            # Each stride sees its own axis alone. The square stands for all maps that have its length there.
            axes, size = [component], (size[component], size[component])
        key = place, component, size
        if key not in self._tables:
            self._tables[key] = LengthTable(self.layers[place], size, axes)
        return self._tables[key]

    def _pooled(self, place: int, size: Size, strides: np.ndarray) -> Size:
        lengths = [self.table(place, i, size).lengths(float(stride)) for i, stride in enumerate(strides)]
        return lengths[0][0], lengths[-1][-1]

    def _cost(self, sizes: Sequence[tuple[float, float]]) -> float:
        return self.constant + sum(
            count * math.prod(part.of(sizes[part.region])) for part, count in self._parts.items()
        )


def _smooth_length(layer: DiffStride, length: float, stride: float) -> float:
    # The released mask keeps an even number of rows, rounded up; the symmetric one an odd number, to either side.
    rounding = 1 if layer.mask == "released" else 0
    return min(length, max(length / stride, 2.0) + 2 * layer.smoothness_factor + rounding)
