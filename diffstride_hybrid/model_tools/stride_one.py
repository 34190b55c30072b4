"""How the layers of a graph run at stride 1: with which zeros around each map, with which padding and which kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from diffstride_hybrid import spectral
from diffstride_hybrid.model_tools.alignment import (
    Zeros,
    centered_zeros,
    zeros_at_stride_one,
    zeros_behind_resizing,
)
from diffstride_hybrid.model_tools.graph import Call, Graph
from diffstride_hybrid.model_tools.inspection import first_argument
from diffstride_hybrid.model_tools.pairing import Pair
from diffstride_hybrid.model_tools.selection import POOLINGS, Chooser, is_padding


class StrideOne:
    """Tells how the layers of a graph that are replaced, or that enlarge a map, run at stride 1.

    What a layer with strides gave at position i is at position i * stride of what its copy gives. A convolution that
    runs on the smaller map, as with `keep_macs`, has its window around each position instead. A length that is not
    known is taken for a multiple of the stride.

    Args:
        graph: the graph of a model.
        chooser: tells which layers are replaced.
        pairs: the calls in the graph that take their size from another map.
        keep_macs: whether convolutions run on the smaller map.
    """

    def __init__(self, graph: Graph, chooser: Chooser, pairs: Sequence[Pair], keep_macs: bool):
        self._keep_macs = keep_macs
        trims = {id(trim) for pair in pairs for trim in pair.trims}
        self._paddings = {
            id(call.outputs[0]): call for call in graph.calls if is_padding(call.operation) and id(call) not in trims
        }
        self._zeros: dict[int, tuple[Zeros, Zeros]] = {}
        self._beside: set[int] = set()
        by_call = {id(pair.call): pair for pair in pairs}
        for call in graph.calls:
            if id(call) in by_call and isinstance(call.operation, keras.layers.Conv2DTranspose):
                self._note(call, self._behind_resizing(by_call[id(call)]))
            elif chooser.replaces(call.operation):
                self._note(call, self._around(call))

    def unpadded(self, call: Call) -> keras.KerasTensor:
        """The map of a call that is replaced, before it was padded: that padding is left out.

        Args:
            call: a call of a layer that downsamples.
        """
        tensor = first_argument(call.args, call.kwargs)
        padding = self._padding_before(call)
        return tensor if padding is None else first_argument(padding.args, padding.kwargs)

    def zeros(self, call: Call) -> tuple[Zeros, Zeros]:
        """The zeros around the height and the width of the map that the copy of a layer takes at stride 1.

        Args:
            call: a call of a layer that is replaced, or of a transposed convolution that is paired.
        """
        return self._zeros[id(call)]

    def padding(self, layer: keras.layers.Layer) -> str:
        """The padding of a layer's copy: 'same' if that puts the zeros where each call in the graph needs them.

        Args:
            layer: a layer whose copy runs at stride 1.
        """
        return "valid" if id(layer) in self._beside else "same"

    def _note(self, call: Call, zeros: tuple[Zeros, Zeros]) -> None:
        self._zeros[id(call)] = zeros
        if not is_centered(zeros):
            self._beside.add(id(call.operation))

    def _around(self, call: Call) -> tuple[Zeros, Zeros]:
        """The zeros for a layer with strides."""
        layer = call.operation
        windows = _windows(layer)
        if self._keep_macs and not isinstance(layer, POOLINGS):
            return tuple(map(centered_zeros, windows))
        padding = self._padding_before(call)
        padded = (0, 0) if padding is None else _added_before(padding.operation, layer.data_format)
        lengths = spatial_size(layer.data_format, first_argument(call.args, call.kwargs).shape)
        return tuple(
            zeros_at_stride_one(window, stride, length or stride, layer.padding, before)
            for window, stride, length, before in zip(windows, layer.strides, lengths, padded)
        )

    def _behind_resizing(self, pair: Pair) -> tuple[Zeros, Zeros]:
        """The zeros for a transposed convolution."""
        layer = pair.call.operation
        if self._keep_macs:
            return tuple((size // 2, (size - 1) // 2) for size in layer.kernel_size)
        taken, given = (
            spatial_size(layer.data_format, tensor.shape) for tensor in (pair.call.inputs[0], pair.call.outputs[0])
        )
        added = [_added_before(trim.operation, layer.data_format) for trim in pair.trims]
        return tuple(
            zeros_behind_resizing(
                layer.kernel_size[axis],
                stride,
                (taken[axis] or 1, given[axis] or stride),
                layer.padding,
                trimmed=-sum(each[axis] for each in added),
            )
            for axis, stride in enumerate(layer.strides)
        )

    def _padding_before(self, call: Call) -> Call | None:
        """The call straight before one that pads nothing but its height and width."""
        tensor = first_argument(call.args, call.kwargs)
        padding = self._paddings.get(id(tensor))
        if padding is None:
            return None
        before = first_argument(padding.args, padding.kwargs)
        channels = 3 if call.operation.data_format == "channels_last" else 1
        return padding if before.shape[channels] == tensor.shape[channels] else None


def is_centered(zeros: Sequence[Zeros]) -> bool:
    """Whether zeros are those of padding='same' at stride 1.

    Args:
        zeros: before and behind each axis.
    """
    return all(each == centered_zeros(sum(each) + 1) for each in zeros)


def transposed_at_stride_one(config: dict[str, Any], padding: str) -> keras.layers.Conv2D:
    """The convolution that follows the resizing in place of a transposed convolution.

    Args:
        config: of the transposed convolution, with the name of the new layer.
        padding: of the new layer.
    """
    kept = {name: value for name, value in config.items() if name != "output_padding"}
    return keras.layers.Conv2D.from_config(kept | {"strides": (1, 1), "padding": padding})


def kernel_at_stride_one(layer: keras.layers.Conv2DTranspose) -> np.ndarray:
    """The kernel that gives what a transposed convolution does, without the images of the spectrum that it leaves.

    A transposed convolution puts zeros between the samples and convolves with its kernel, the other way round than a
    convolution of a network does. Resizing differs from putting zeros in by the images, which it does not have, and by
    a gain that is the product of the strides.

    Args:
        layer: the transposed convolution.
    """
    kernel = layer.get_weights()[0]
    return kernel[::-1, ::-1].transpose(0, 1, 3, 2) / np.prod(layer.strides)


def spatial_size(data_format: str, shape: Sequence[int]) -> tuple[int, int]:
    """(height, width) of a map.

    Args:
        data_format: of the map.
        shape: of the map, with the batch.
    """
    return tuple(shape[axis] for axis in spectral.spatial_axes(data_format))


def _windows(layer: keras.layers.Layer) -> list[int]:
    if isinstance(layer, POOLINGS):
        return list(layer.pool_size)
    return [1 + (size - 1) * step for size, step in zip(layer.kernel_size, layer.dilation_rate)]


def _added_before(operation: Any, data_format: str) -> tuple[int, int]:
    """How many rows and columns a padding adds before a map; below 0 for a cropping that cuts them off."""
    if isinstance(operation, keras.layers.ZeroPadding2D | keras.layers.Cropping2D):
        sign = -1 if isinstance(operation, keras.layers.Cropping2D) else 1
        return tuple(sign * before for before, _ in getattr(operation, "padding", None) or operation.cropping)
    if is_padding(operation):
        widths = list(operation.pad_width)
        widths = widths * 4 if len(widths) == 1 else widths
        return tuple(widths[axis][0] for axis in spectral.spatial_axes(data_format))
    return 0, 0  # A resizing interpolates from the first sample to the last.
