"""The poolings of `pooling.py` for signals of one axis.

Every layer takes `(batch, time, channels)`, or `(batch, channels, time)` with `data_format='channels_first'`, and
treats it as a feature map of one row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from diffstride_hybrid import spectral
from diffstride_hybrid.common.registration import register
from diffstride_hybrid.layers.diffstride import DiffStride
from diffstride_hybrid.layers.fourier_pooling import FourierPooling
from diffstride_hybrid.layers.input_checks import Size
from diffstride_hybrid.layers.spectral_pooling import SpectralPooling
from diffstride_hybrid.layers.static_crop import Crop


class _OneAxis(FourierPooling):
    """What makes a pooling of maps one of signals: its shapes."""

    _least_size = (1, 2)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        _, length = self._pooled_shape(*self._spatial_shape(input_shape))
        if self.data_format == "channels_last":
            return (input_shape[0], length, input_shape[2])
        return (input_shape[0], input_shape[1], length)

    def matmul_macs(self, input_shape: Sequence[int], output_shape: Sequence[int]) -> int:
        """Multiply-accumulate operations of the 'matmul' engine for one signal, shapes without the batch axis."""
        return math.prod(input_shape) * self.spatial_size(output_shape)[1]

    def _spatial_shape(self, shape: Sequence[int | None]) -> tuple[int | None, int | None]:
        last = self.data_format == "channels_last"
        if len(shape) != 3:
            axes = "(batch, time, channels)" if last else "(batch, channels, time)"
            raise ValueError(f"{type(self).__name__} needs an input of 3 dimensions {axes}, got {tuple(shape)}.")
        return 1, shape[1 if last else 2]


@register
class DiffStride1D(_OneAxis, DiffStride):
    """`DiffStride` for signals: pooling by a soft crop of the spectrum whose stride is learned.

    With `mask='released'` it does what the released layer does along the horizontal axis of a map. The weight `strides`
    has shape `(1,)`.

    Args:
        strides: initial stride, a number of at least 1, fractions allowed.
        smoothness_factor: see `DiffStride`.
        cropping: see `DiffStride`.
        trainable: see `DiffStride`.
        lower_limit_stride: see `DiffStride`.
        upper_limit_stride: see `DiffStride`.
        data_format: 'channels_last' or 'channels_first'. `keras.config.image_data_format()` where None.
        mask: see `DiffStride`. 'symmetric' is the paper's formula; output lengths are odd.
        norm: see `DiffStride`.
        method: see `DiffStride`.
        static_crop: see `DiffStride`.
        **kwargs: for `keras.layers.Layer`.
    """

    def __init__(
        self,
        strides: float = 2.0,
        smoothness_factor: float = 4.0,
        cropping: bool = True,
        trainable: bool = True,
        lower_limit_stride: float | None = None,
        upper_limit_stride: float | None = None,
        data_format: str | None = None,
        mask: spectral.Mask = "released",
        norm: spectral.Norm = "backward",
        method: spectral.Method = "auto",
        static_crop: bool | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            strides=_one_number("strides", strides),
            smoothness_factor=smoothness_factor,
            cropping=cropping,
            trainable=trainable,
            shared_stride=True,
            lower_limit_stride=lower_limit_stride,
            upper_limit_stride=upper_limit_stride,
            data_format=data_format,
            mask=mask,
            norm=norm,
            method=method,
            static_crop=static_crop,
            **kwargs,
        )

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        del config["shared_stride"]
        return {**config, "strides": self.initial_strides[0]}

    def _minimum_strides(self, size: tuple[int | None, int | None]) -> list[float]:
        return super()._minimum_strides((None, size[1]))

    def _pool_to(self, kept: Crop | None, inputs: tf.Tensor) -> tf.Tensor:
        return spectral.diffstride_1d(
            inputs,
            tf.convert_to_tensor(self.strides),
            cropping=self.cropping,
            kept=None if kept is None else kept[1],
            trainable=self.trainable,
            **self._window_options(),
            **self._options(),
        )

    def _asked_crop(self, size: Size, strides: np.ndarray) -> Crop:
        _, window = self._windows_at(size, strides, None)
        return 1, int(tf.size(window.bins))

    def _windows_at(
        self, size: Size, strides: np.ndarray, kept: Crop | None
    ) -> tuple[spectral.Window | None, spectral.Window]:
        window = spectral.diffstride_window_1d(
            size[1],
            tf.constant(strides),
            cropping=self.cropping,
            kept=None if kept is None else kept[1],
            dtype=self._window_dtype(),
            **self._window_options(),
        )
        return None, window


@register
class SpectralPooling1D(_OneAxis, SpectralPooling):
    """`SpectralPooling` for signals: `scipy.signal.resample` to fewer samples, times a constant that `norm` sets.

    Args:
        strides: a number of at least 1, fractions allowed. The output has `max(2, floor(n / stride))` samples.
        output_size: samples of the output, instead of `strides`.
        data_format: 'channels_last' or 'channels_first'. `keras.config.image_data_format()` where None.
        norm: see `SpectralPooling`.
        method: see `SpectralPooling`.
        **kwargs: for `keras.layers.Layer`.
    """

    def __init__(
        self,
        strides: float = 2.0,
        output_size: int | None = None,
        data_format: str | None = None,
        norm: spectral.Norm = "backward",
        method: spectral.Method = "auto",
        **kwargs: Any,
    ):
        super().__init__(
            strides=(1.0, _one_number("strides", strides)),
            output_size=None if output_size is None else (1, _one_number("output_size", output_size)),
            data_format=data_format,
            norm=norm,
            method=method,
            **kwargs,
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "strides": self.strides[1],
            "output_size": None if self.output_size is None else self.output_size[1],
        }

    def _pool(self, inputs: tf.Tensor) -> tf.Tensor:
        length = None if self.output_size is None else self.output_size[1]
        if length is None:
            length = spectral.spectral_output_length(spectral.signal_length(inputs, self.data_format), self.strides[1])
        return spectral.spectral_pooling_1d(inputs, length, **self._options())

    def _windows(self, height: int, width: int) -> tuple[spectral.Window | None, spectral.Window]:
        return None, spectral.resampling_window(width, self._pooled_shape(height, width)[1])


def _one_number(name: str, value: Any) -> Any:
    if isinstance(value, Sequence):
        raise TypeError(f"{name} must be one number for signals, got {value!r}.")
    return value
