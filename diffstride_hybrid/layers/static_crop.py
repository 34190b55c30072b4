"""The static crop of `DiffStride`: how many bins the layer keeps at each input size, fixed until it is refreshed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from diffstride_hybrid.layers.input_checks import Size
from diffstride_hybrid.spectral.windows import Window, kept_bins

Crop = tuple[int, int]
"""How many bins are kept: rows of the two-sided spectrum, columns of the one-sided spectrum."""

WindowsAt = Callable[[Size, np.ndarray, Crop | None], tuple[Window | None, Window]]
"""Makes the windows of a layer for a map's size, strides and, if it is fixed, a crop."""


class StaticCrop:
    """The crops of one layer, a fixed one for each input size that it has met.

    A crop is set at the first use of a size, to the number of bins that the strides ask for at that moment. It stays
    until `forget` or `refresh`.

    Args:
        windows_at: makes the layer's windows.
        read_strides: returns the layer's strides, float32, outside any graph.
        is_static: whether the layer uses these crops. If not, its output follows the strides at every call.

    Attributes:
        is_static: as above. The layer may set it later, once.
    """

    def __init__(self, windows_at: WindowsAt, read_strides: Callable[[], np.ndarray], is_static: bool):
        self.is_static = is_static
        self._windows_at = windows_at
        self._read_strides = read_strides
        self._crops: dict[Size, Crop] = {}
        self._crops_before: dict[Size, Crop] = {}
        self._hysteresis = 0.0

    @property
    def crops(self) -> dict[Size, Crop]:
        """A copy of the crops, one for each input size met so far."""
        return dict(self._crops)

    @crops.setter
    def crops(self, crops: Mapping[Size, Crop]) -> None:
        self._crops = dict(crops)

    def at(self, size: Size, strides: np.ndarray | None = None) -> Crop:
        """The crop of maps of one size, which is set now if the size is new.

        Args:
            size: height and width.
            strides: the strides that set a new crop. The layer's own if None.

        Returns:
            Kept rows and kept columns.

        Raises:
            ValueError: the size is not known.
        """
        if None in size:
            raise ValueError(
                f"A static crop needs a known height and width, got {size}. A DiffStride before this one must have a "
                "static crop as well."
            )
        if size not in self._crops:
            with tf.init_scope():
                strides = self._read_strides() if strides is None else strides
                crop, fewest, most = (
                    kept_bins(*self._windows_at(size, strides * factor, None))
                    for factor in (1.0, 1.0 + self._hysteresis, 1.0 - self._hysteresis)
                )
            before = self._crops_before.get(size, crop)
            self._crops[size] = tuple(
                kept if low <= kept <= high else asked for kept, asked, low, high in zip(before, crop, fewest, most)
            )
        return self._crops[size]

    def refresh(self, hysteresis: float) -> bool:
        """Sets the crop of every size met so far anew.

        Args:
            hysteresis: how far past a boundary between two sizes a stride must be before the crop changes, as a share
                of the stride.

        Returns:
            Whether a crop changed.
        """
        before = self._crops
        self.forget(hysteresis)
        for size in before:
            self.at(size)
        return self._crops != before

    def forget(self, hysteresis: float) -> None:
        """Lets the crop of each size be set anew when the size is next met.

        Args:
            hysteresis: how far past a boundary between two sizes a stride must be before the crop changes, as a share
                of the stride.
        """
        self._crops_before, self._crops, self._hysteresis = self._crops, {}, hysteresis

    def as_array(self) -> np.ndarray:
        """The crops for a file: int32 `[sizes, 4]`, height, width, kept rows and kept columns."""
        return np.array([(*size, *crop) for size, crop in self._crops.items()], "int32")

    def restore(self, array: np.ndarray) -> None:
        """Makes the crop static and sets the crops that `as_array` returned.

        Args:
            array: int32 `[sizes, 4]`.
        """
        self.is_static = True
        self.crops = {(h, w): (rows, columns) for h, w, rows, columns in array.tolist()}
