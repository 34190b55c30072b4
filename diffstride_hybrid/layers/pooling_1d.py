"""The poolings for signals, `DiffStride1D` and `SpectralPooling1D`: a signal is treated as a feature map of one row."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from diffstride_hybrid import spectral
from diffstride_hybrid.common.registration import register
from diffstride_hybrid.layers.diffstride import DiffStride
from diffstride_hybrid.layers.fourier_pooling import FourierPooling
from diffstride_hybrid.layers.input_checks import Size
from diffstride_hybrid.layers.spectral_pooling import SpectralPooling
from diffstride_hybrid.layers.static_crop import Crop


class OneAxis(FourierPooling):
    """Turns a pooling of maps into a pooling of signals: the time axis takes the place of the columns."""

    _pooled_axes = ("time",)
    _least_size = (1, 2)

    def matmul_macs(self, input_shape: Sequence[int], output_shape: Sequence[int]) -> int:
        """Multiply-accumulate operations of the 'matmul' engine for one signal.

        Args:
            input_shape: of one signal, without the batch axis.
            output_shape: of the result, without the batch axis.

        Returns:
            The number of operations.
        """
        return math.prod(input_shape) * self.spatial_size(output_shape)[1]


@register
class DiffStride1D(OneAxis, DiffStride):
    """Pooling of signals whose stride is learned, by a soft crop of the spectrum.

    The spectrum of each channel is multiplied by a window that is 1 at low frequencies and falls to 0 over
    `smoothness_factor` bins. Bins of weight 0 are cropped away, and the rest is transformed back at its own, smaller
    length. The gradient reaches the stride through the window's ramp (Riad et al., "Learning strides in convolutional
    neural networks", ICLR 2022, arXiv 2202.01653). With `mask='released'` the layer computes what the released layer
    computes along the columns of a map.

    For `n` samples, stride `s` and `R = smoothness_factor`, bin `k` has the weight `clip((R + t - k) / R, 0, 1)` with
    the threshold `t = max(n / s, 2) / 2`, plus 1 for 'released'.

    The weight `strides` has shape `(1,)` and is float32 under every dtype policy. After each optimizer step a
    constraint keeps it within the limits and at or above `n / (n - R)` (1 if `n <= R`). Up to a stride of about
    `n / (n - 2 R)` the window spans the whole spectrum.

    Input shape:
        Floating-point `(batch, time, channels)`, or `(batch, channels, time)` with `data_format='channels_first'`. At
        least 2 samples.

    Output shape:
        `(batch, samples, channels)`, or `(batch, channels, samples)`, in the layer's compute dtype. The number of
        samples follows the stride; Keras knows it only if the crop is static.

    Args:
        strides: initial stride, one number of at least 1, fractions allowed.
        smoothness_factor: `R`, the length of the window's ramp in bins, at least 0. 0 gives a hard crop, without a
            gradient to the stride.
        cropping: whether bins of weight 0 are removed. If not, the output has the input's length, except that
            mask='released' rounds an odd length of 3 or more down to an even one.
        trainable: whether the stride is learned.
        lower_limit_stride: least stride, at least 1. 1 if None.
        upper_limit_stride: greatest stride, at least 1. Unlimited if None.
        data_format: 'channels_last' or 'channels_first'. `keras.config.image_data_format()` if None.
        mask: 'released' computes the window of the code released with the paper, 'symmetric' the window of the paper's
            vertical formula, which gives odd output lengths unless the whole spectrum is kept.
        norm: normalization of the two transforms, as in `numpy.fft`. 'backward' multiplies the mean by the ratio of the
            lengths; 'forward' keeps the mean; 'ortho' multiplies it by the square root of the ratio.
        method: 'fft' runs the transforms, on TensorFlow only; 'matmul' multiplies by the equivalent matrix. 'auto'
            takes the faster one: 'fft' for long axes, few channels and small batches.
        static_crop: whether the output's length is fixed, at the length that the stride asks for when the layer is
            built, so that Keras, XLA and exporters know it. True needs a known input length. `refresh_crop()` and the
            callback `CropRefresh` fix the length anew. If None, the length follows the stride until XLA compiles the
            layer or it runs on a TPU, and is fixed from then on. If False, XLA, TPUs and JAX refuse the layer.
        **kwargs: for `keras.layers.Layer`, such as `name` and `dtype`.

    Raises:
        ValueError: an argument is out of range, the limits contradict each other, or, when the layer is built or
            called, the input has another number of dimensions, is too short, or is of unknown length under a static
            crop.
        TypeError: an argument has the wrong type, or, when the layer is called, the input is not floating-point.

    Example:
        >>> layer = DiffStride1D(strides=4.0)
        >>> layer(np.ones([1, 100, 3])).shape
        TensorShape([1, 34, 3])
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

    def _pool_to(self, kept: Crop | None, inputs: spectral.Tensor) -> spectral.Tensor:
        return spectral.diffstride_1d(
            inputs,
            ops.convert_to_tensor(self.strides),
            cropping=self.cropping,
            kept=None if kept is None else kept[1],
            trainable=self.trainable,
            **self._window_options(),
            **self._options(),
        )

    def strides_of_map(self, strides: Any) -> spectral.Tensor:
        strides = ops.convert_to_tensor(strides)
        return ops.concatenate([ops.ones_like(strides), strides])

    def _windows_at(
        self, size: Size, strides: np.ndarray, kept: Crop | None
    ) -> tuple[spectral.Window | None, spectral.Window]:
        window = spectral.diffstride_window_1d(
            size[1],
            ops.convert_to_tensor(strides),
            cropping=self.cropping,
            kept=None if kept is None else kept[1],
            dtype=self._window_dtype(),
            **self._window_options(),
        )
        return None, window


@register
class SpectralPooling1D(OneAxis, SpectralPooling):
    """Pooling of signals by a fixed crop of the spectrum.

    The result equals `scipy.signal.resample` to fewer samples, times a constant that `norm` sets (1 for 'forward'). The
    method is that of Rippel, Snoek and Adams, "Spectral representations for convolutional neural networks", NeurIPS
    2015, arXiv 1506.03767, along one axis.

    Input shape:
        Floating-point `(batch, time, channels)`, or `(batch, channels, time)` with `data_format='channels_first'`. At
        least 2 samples, and at least `output_size`.

    Output shape:
        `(batch, samples, channels)`, or `(batch, channels, samples)`, in the layer's compute dtype, with `output_size`
        samples, or `max(2, floor(n / strides))` of `n`.

    Args:
        strides: one number of at least 1, fractions allowed. Not used if `output_size` is given.
        output_size: samples of the output, at least 1.
        data_format: 'channels_last' or 'channels_first'. `keras.config.image_data_format()` if None.
        norm: normalization of the two transforms, as in `numpy.fft`. 'backward' multiplies the mean by the ratio of the
            lengths; 'forward' keeps the mean; 'ortho' multiplies it by the square root of the ratio.
        method: 'fft' runs the transforms, on TensorFlow only; 'matmul' multiplies by the equivalent matrix. 'auto'
            takes the faster one: 'fft' for long axes, few channels and small batches.
        **kwargs: for `keras.layers.Layer`, such as `name` and `dtype`.

    Raises:
        ValueError: an argument is out of range, or, when the layer is built or called, the input has another number of
            dimensions or is too short.
        TypeError: an argument has the wrong type, or, when the layer is called, the input is not floating-point.

    Example:
        >>> SpectralPooling1D(strides=2.5)(np.ones([1, 100, 3])).shape
        TensorShape([1, 40, 3])
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

    def _pool(self, inputs: spectral.Tensor) -> spectral.Tensor:
        length = None if self.output_size is None else self.output_size[1]
        if length is None:
            length = spectral.spectral_output_length(spectral.signal_length(inputs, self.data_format), self.strides[1])
        return spectral.spectral_resizing_1d(inputs, length, **self._options())

    def _windows(self, height: int, width: int) -> tuple[spectral.Window | None, spectral.Window]:
        return None, spectral.resampling_window(width, self._pooled_shape(height, width)[1], self._window_dtype())


def _one_number(name: str, value: Any) -> Any:
    if isinstance(value, Sequence):
        raise TypeError(f"{name} must be one number for signals, got {value!r}.")
    return value
