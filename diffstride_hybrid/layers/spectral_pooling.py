"""Poolings by a fixed crop of the spectrum: `SpectralPooling` and the release's `FixedSpectralPooling`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from diffstride_hybrid import spectral
from diffstride_hybrid.common.arguments import Strides, validated_size, validated_strides
from diffstride_hybrid.common.registration import register
from diffstride_hybrid.layers.fourier_pooling import FourierPooling
from diffstride_hybrid.layers.input_checks import Size


@register
class FixedSpectralPooling(FourierPooling):
    """Pooling by a fixed crop of the spectrum, as in the code released with DiffStride.

    Rows are reduced to `max(2, H // s)` rounded down to an even number, columns to `max(2, W // s)`. The bin that
    becomes the output's Nyquist row is not paired with its counterpart; `SpectralPooling` is the one that folds it.

    Args:
        strides: one number for both axes or (vertical, horizontal), at least 1, fractions allowed.
        data_format: see `FourierPooling`.
        norm: see `FourierPooling`.
        method: see `FourierPooling`.
        **kwargs: for `keras.layers.Layer`.
    """

    def __init__(
        self,
        strides: Strides = (2.0, 2.0),
        data_format: str | None = None,
        norm: spectral.Norm = "backward",
        method: spectral.Method = "auto",
        **kwargs: Any,
    ):
        super().__init__(data_format=data_format, norm=norm, method=method, **kwargs)
        self.strides = validated_strides(strides)

    def _pool(self, inputs: tf.Tensor) -> tf.Tensor:
        return spectral.fixed_spectral_pooling(inputs, self.strides, **self._options())

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "strides": self.strides}

    def _windows(self, height: int, width: int) -> tuple[spectral.Window | None, spectral.Window]:
        return spectral.fixed_windows(height, width, self.strides)

    def _unequal_frequencies(self) -> int | None:
        return 1

    def _pooled_shape(self, height: int | None, width: int | None) -> tuple[int | None, int | None]:
        known = spectral.fixed_output_lengths(height or 2, width or 2, self.strides)
        return known[0] if height else None, known[1] if width else None


@register
class SpectralPooling(FourierPooling):
    """Pooling by a fixed crop of the two-dimensional spectrum, built on `tf.signal.fft2d`.

    Along each axis the result equals `scipy.signal.resample` times a constant that depends on `norm` (1 for 'forward').
    See Rippel, Snoek and Adams, "Spectral representations for convolutional neural networks", NeurIPS 2015,
    arXiv 1506.03767.

    The mean of the map survives the crop. So this layer straight before global average pooling changes nothing but a
    constant factor, `H W / (h w)` for `norm='backward'` and exactly 1 for 'forward'; it acts where something nonlinear
    lies between.

    Args:
        strides: one number for both axes or (vertical, horizontal), at least 1, fractions allowed. The output has
            `max(2, floor(n / stride))` samples along an axis of `n`.
        output_size: (height, width) of the output, instead of `strides`.
        data_format: see `FourierPooling`.
        norm: see `FourierPooling`.
        method: see `FourierPooling`.
        **kwargs: for `keras.layers.Layer`.
    """

    def __init__(
        self,
        strides: Strides = (2.0, 2.0),
        output_size: int | Sequence[int] | None = None,
        data_format: str | None = None,
        norm: spectral.Norm = "backward",
        method: spectral.Method = "auto",
        **kwargs: Any,
    ):
        super().__init__(data_format=data_format, norm=norm, method=method, **kwargs)
        self.strides = validated_strides(strides)
        self.output_size = None if output_size is None else validated_size("output_size", output_size)

    def _check_shape(self, shape: Sequence[int | None]) -> None:
        super()._check_shape(shape)
        sizes = self._spatial_shape(shape)
        if self.output_size and any(n is not None and n < size for n, size in zip(sizes, self.output_size)):
            raise ValueError(
                f"output_size must not exceed the feature map, got {self.output_size} for a map of {sizes}."
            )

    def _smallest_size(self) -> Size:
        return tuple(map(max, self._least_size, self.output_size or self._least_size))

    def _pool(self, inputs: tf.Tensor) -> tf.Tensor:
        size = self.output_size
        if size is None:
            size = spectral.spectral_output_lengths(*spectral.spatial_lengths(inputs, self.data_format), self.strides)
        return spectral.spectral_pooling(inputs, size, **self._options())

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "strides": self.strides, "output_size": self.output_size}

    def _windows(self, height: int, width: int) -> tuple[spectral.Window | None, spectral.Window]:
        rows, columns = map(spectral.resampling_window, (height, width), self._pooled_shape(height, width))
        return rows, columns

    def _pooled_shape(self, height: int | None, width: int | None) -> tuple[int | None, int | None]:
        if self.output_size is not None:
            return self.output_size
        known = spectral.spectral_output_lengths(height or 2, width or 2, self.strides)
        return known[0] if height else None, known[1] if width else None
