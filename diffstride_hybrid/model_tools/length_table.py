"""At which strides the output of a `DiffStride` layer changes its size."""

from __future__ import annotations

import functools

import numpy as np

from diffstride_hybrid.layers.diffstride import DiffStride
from diffstride_hybrid.layers.input_checks import Size

_LONGEST = 512
"""The longest axis of which all sizes are tabulated. On a longer one a sample more or less is no cost to speak of."""


class LengthTable:
    """The sizes that a layer gives for maps of one size, as a step function of one of its strides.

    The layer itself is asked at many strides between 1 and the length of the axis. Between two of them that give
    different sizes, bisection finds the float32 number at which the size changes.

    Args:
        layer: a layer that crops.
        size: height and width of its input.
        axes: the axes along which the stride pools: 0 for the height, 1 for the width, or both.

    Example:
        >>> from diffstride_hybrid.model_tools.length_table import LengthTable
        >>> layer = DiffStride(smoothness_factor=1.0, mask="symmetric")
        >>> layer.build((None, 8, 8, 1))
        >>> table = LengthTable(layer, (8, 8), [0])
        >>> table.lengths(2.0), table.lengths(4.0), [round(float(stride), 4) for stride in table.boundaries]
        ([5], [3], [1.3333, 2.0, 4.0])
    """

    def __init__(self, layer: DiffStride, size: Size, axes: list[int]):
        self._layer, self._size, self._axes = layer, size, axes
        self._known: dict[float, list[int]] = {}

    def lengths(self, stride: float) -> list[int]:
        """The lengths of the output along the axes.

        Args:
            stride: of the layer.
        """
        if max(self._size) <= _LONGEST:
            return self._steps[1][int(np.searchsorted(self.boundaries, np.float32(stride), side="right"))]
        if stride not in self._known:
            self._known[stride] = self._asked(np.array([stride], "float32"))[0].tolist()
        return self._known[stride]

    @property
    def boundaries(self) -> np.ndarray:
        """The strides, float32 and ascending, from which on each size but the first holds; none for a very long axis.

        A size holds from its boundary up to the next one.
        """
        return self._steps[0] if max(self._size) <= _LONGEST else np.zeros([0], "float32")

    @functools.cached_property
    def _steps(self) -> tuple[np.ndarray, list[list[int]]]:
        """The boundaries, and the lengths before, between and behind them."""
        most = max(*self._size, 2)
        grid = np.geomspace(1.0, most, 16 * most, dtype="float32")
        lengths = self._asked(grid)
        (places,) = np.nonzero((lengths[1:] != lengths[:-1]).any(axis=1))
        low, high = grid[places], grid[places + 1]
        while ((low < (middle := (low + high) / np.float32(2))) & (middle < high)).any():
            is_low = (self._asked(middle) == lengths[places]).all(axis=1)
            low, high = np.where(is_low, middle, low), np.where(is_low, high, middle)
        return high, lengths[[0, *(places + 1)]].tolist()

    def _asked(self, strides: np.ndarray) -> np.ndarray:
        """The lengths `[m, axes]` for `m` strides. The strides of both axes are the same, as each pools its own."""
        count = self._layer.strides.shape[0]
        return self._layer.sizes_at(self._size, np.tile(strides[:, np.newaxis], count))[:, self._axes]
