"""`SpatialPooling`: average pooling, or plain sampling, with the defaults of the release."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from diffstride_hybrid import spectral
from diffstride_hybrid.backends import current
from diffstride_hybrid.common.arguments import Strides, validated_choice, validated_size, validated_strides
from diffstride_hybrid.common.registration import register
from diffstride_hybrid.layers.input_checks import Size, check_floating, check_size, checked_when_run


@register
class SpatialPooling(keras.layers.AveragePooling2D):
    """Average pooling with the defaults of the code released with DiffStride (Riad et al., arXiv 2202.01653).

    With the default `pool_size=(1, 1)` it takes every `strides`-th sample: a strided convolution is an unstrided one
    followed by this layer. Then the strides need not be whole numbers: output `i` is sample `floor(i * stride)`, of
    `ceil(size / stride)` outputs. So a stride of `size / output size` gives any output size.

    Input shape:
        Floating-point `(batch, height, width, channels)`, or `(batch, channels, height, width)` with
        `data_format='channels_first'`.

    Output shape:
        `(batch, rows, columns, channels)`, or `(batch, channels, rows, columns)`, in the layer's compute dtype: along
        an axis of `n` samples `ceil(n / stride)`, or `ceil((n - pool + 1) / stride)` with `padding='valid'`.

    Args:
        pool_size: (height, width) of the averaged neighborhood in samples, or one number for both.
        strides: one number for both axes or (vertical, horizontal), at least 1.
        padding: 'same' averages over the part of the neighborhood that lies in the map; 'valid' leaves out
            neighborhoods that reach beyond it.
        data_format: 'channels_last' or 'channels_first'. `keras.config.image_data_format()` if None.
        **kwargs: for `keras.layers.AveragePooling2D`, such as `name` and `dtype`.

    Raises:
        ValueError: an argument is out of range, the strides are not whole although `pool_size` is not (1, 1), or, when
            the layer is called, the input is too small for `padding='valid'`.
        TypeError: an argument has the wrong type, or, when the layer is called, the input is not floating-point.

    Example:
        >>> SpatialPooling(strides=1.5)(np.arange(6.0).reshape(1, 1, 6, 1)).numpy().ravel().tolist()
        [0.0, 1.0, 3.0, 4.0]
    """

    def __init__(
        self,
        pool_size: int | Sequence[int] = (1, 1),
        strides: Strides = (2, 2),
        padding: str = "same",
        data_format: str | None = None,
        **kwargs: Any,
    ):
        strides, pool_size = validated_strides(strides), validated_size("pool_size", pool_size)
        padding = validated_choice("padding", padding, ("same", "valid"))
        whole = tuple(int(stride) for stride in strides)
        super().__init__(pool_size=pool_size, strides=whole, padding=padding, data_format=data_format, **kwargs)
        self._has_whole_strides = strides == whole
        if not self._has_whole_strides:
            if pool_size != (1, 1):
                raise ValueError(f"SpatialPooling needs whole strides if pool_size is {pool_size}, got {strides}.")
            self.strides = strides

    def build(self, input_shape: Sequence[int | None]) -> None:
        # Keras marks a layer without its own `build` as built when it is made. Such a layer never gets a `path`, by
        # which `macs` tells poolings of the same name apart.
        super().build(input_shape)

    def call(self, inputs: spectral.Tensor) -> spectral.Tensor:
        check_floating(self, inputs)
        least = self.pool_size if self.padding == "valid" else (1, 1)
        check_size(self, tuple(inputs.shape), self.spatial_size(inputs.shape[1:]), least)
        inputs = checked_when_run(self, inputs, least)
        if self._has_whole_strides:
            counts_padding = current.NAME == "torch" and self.padding == "same"
            return self._averaged_over_map(inputs) if counts_padding else super().call(inputs)
        for axis, stride in zip(spectral.spatial_axes(self.data_format), self.strides):
            inputs = ops.take(inputs, _sampled_positions(ops.shape(inputs)[axis], stride), axis=axis)
        return inputs

    def _averaged_over_map(self, inputs: spectral.Tensor) -> spectral.Tensor:
        """The averages with padding='same', where Keras on PyTorch counts positions beyond the map as well."""
        axes = spectral.spatial_axes(self.data_format)
        paddings, counts = [(0, 0)] * 4, np.ones([1] * 4, "float32")
        for axis, pool, stride in zip(axes, self.pool_size, self.strides):
            length = inputs.shape[axis]
            starts = np.arange(-(-length // stride)) * stride
            before = max(starts[-1] + pool - length, 0) // 2
            paddings[axis] = (int(before), int(max(starts[-1] + pool - length, 0) - before))
            inside = np.minimum(starts - before + pool, length) - np.maximum(starts - before, 0)
            counts = counts * inside.reshape([-1 if each == axis else 1 for each in range(4)])
        sums = ops.average_pool(ops.pad(inputs, paddings), self.pool_size, self.strides, "valid", self.data_format)
        return sums * ops.convert_to_tensor(math.prod(self.pool_size) / counts, inputs.dtype)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        if self._has_whole_strides:
            return super().compute_output_shape(input_shape)
        shape = list(input_shape)
        for axis, stride in zip(spectral.spatial_axes(self.data_format), self.strides):
            shape[axis] = None if shape[axis] is None else len(_sampled_positions(shape[axis], stride))
        return tuple(shape)

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        check_floating(self, inputs)
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=self.compute_dtype)

    def spatial_size(self, shape: Sequence[int]) -> Size:
        """Height and width of a feature map.

        Args:
            shape: of one map, without the batch axis.

        Returns:
            Both lengths, in samples.
        """
        vertical, horizontal = spectral.spatial_axes(self.data_format)
        return shape[vertical - 1], shape[horizontal - 1]


def _sampled_positions(size: int | spectral.Tensor, stride: float) -> np.ndarray | spectral.Tensor:
    """The samples that a stride takes of an axis, as an array if the size is known, else as a tensor."""
    rounding = 1e-6  # Tolerates rounding in a stride of size / output size, up or down.
    if isinstance(size, int):
        count = max(1, math.ceil(size / stride - rounding))
        return np.floor(np.arange(count) * stride + rounding).astype(np.int32)
    count = ops.maximum(ops.ceil(ops.cast(size, "float64") / stride - rounding), 1.0)
    return ops.cast(ops.floor(ops.arange(count) * stride + rounding), "int32")
