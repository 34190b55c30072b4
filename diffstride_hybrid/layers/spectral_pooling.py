"""Poolings by a fixed crop of the spectrum: `SpectralPooling` and the release's `FixedSpectralPooling`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from diffstride_hybrid import spectral
from diffstride_hybrid.common.arguments import Strides, validated_size, validated_strides
from diffstride_hybrid.common.registration import register
from diffstride_hybrid.layers.fourier_pooling import FourierPooling
from diffstride_hybrid.layers.input_checks import Size


@register
class FixedSpectralPooling(FourierPooling):
    """Pooling by a fixed crop of the spectrum, as in the code released with DiffStride.

    The lowest bins of `rfft2d` are kept, each with weight 1, and `irfft2d` transforms them back. The bin that becomes
    the output's Nyquist row is not paired with its counterpart; `SpectralPooling` folds both into it. The source is
    `FixedSpectralPooling` of the code released with Riad et al., ICLR 2022, arXiv 2202.01653.

    Input shape:
        Floating-point `(batch, height, width, channels)`, or `(batch, channels, height, width)` with
        `data_format='channels_first'`. An axis of one sample passes through.

    Output shape:
        `(batch, rows, columns, channels)`, or `(batch, channels, rows, columns)`, in the layer's compute dtype: along
        an axis of `n` samples `max(2, floor(n / stride))`, rows rounded down to an even number; 1 if `n` is 1.

    Args:
        strides: one number for both axes or (vertical, horizontal), at least 1, fractions allowed.
        data_format: 'channels_last' or 'channels_first'. `keras.config.image_data_format()` if None.
        norm: normalization of the two transforms, as in `numpy.fft`. 'backward', as released, multiplies the mean by
            the ratio of the areas; 'forward' keeps the mean; 'ortho' multiplies it by the square root of the ratio.
        method: 'fft' runs the transforms, on TensorFlow only; 'matmul' multiplies by the equivalent matrices. 'auto'
            takes the faster one: 'fft' for long axes, few channels and small batches.
        **kwargs: for `keras.layers.Layer`, such as `name` and `dtype`.

    Raises:
        ValueError: an argument is out of range, or, when the layer is built or called, the input has another number of
            dimensions or is too small.
        TypeError: an argument has the wrong type, or, when the layer is called, the input is not floating-point.

    Example:
        >>> FixedSpectralPooling(strides=(2.0, 3.0))(np.ones([1, 30, 30, 3])).shape
        TensorShape([1, 14, 10, 3])
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

    def _pool(self, inputs: spectral.Tensor) -> spectral.Tensor:
        return spectral.fixed_spectral_pooling(inputs, self.strides, at_most=self.largest_map, **self._options())

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "strides": self.strides}

    def _windows(self, height: int, width: int) -> tuple[spectral.Window | None, spectral.Window]:
        return spectral.fixed_windows(height, width, self.strides, self._window_dtype())

    def _unequal_frequencies(self) -> int | None:
        return 1

    def _pooled_shape(self, height: int | None, width: int | None) -> tuple[int | None, int | None]:
        return _known_lengths(spectral.fixed_output_lengths, height, width, self.strides)


@register
class SpectralPooling(FourierPooling):
    """Pooling by a fixed crop of the two-dimensional spectrum, with a real result.

    Along each axis the result equals `scipy.signal.resample` times a constant that depends on `norm` (1 for 'forward').
    The method is that of Rippel, Snoek and Adams, "Spectral representations for convolutional neural networks", NeurIPS
    2015, arXiv 1506.03767.

    The crop keeps the mean of the map. So this layer straight before global average pooling only multiplies by a
    constant, `H W / (h w)` for `norm='backward'` and exactly 1 for 'forward'. It changes more only if something
    nonlinear lies between.

    Input shape:
        Floating-point `(batch, height, width, channels)`, or `(batch, channels, height, width)` with
        `data_format='channels_first'`. Height and width are at least `output_size`. An axis of one sample passes
        through.

    Output shape:
        `(batch, rows, columns, channels)`, or `(batch, channels, rows, columns)`, in the layer's compute dtype:
        `output_size`, or `max(2, floor(n / stride))` samples along an axis of `n`; 1 if `n` is 1.

    Args:
        strides: one number for both axes or (vertical, horizontal), at least 1, fractions allowed. Not used if
            `output_size` is given.
        output_size: height and width of the output, one number for both or a pair, at least 1.
        data_format: 'channels_last' or 'channels_first'. `keras.config.image_data_format()` if None.
        norm: normalization of the two transforms, as in `numpy.fft`. 'backward' multiplies the mean by the ratio of the
            areas; 'forward' keeps the mean; 'ortho' multiplies it by the square root of the ratio.
        method: 'fft' runs the transforms, on TensorFlow only; 'matmul' multiplies by the equivalent matrices. 'auto'
            takes the faster one: 'fft' for long axes, few channels and small batches.
        **kwargs: for `keras.layers.Layer`, such as `name` and `dtype`.

    Raises:
        ValueError: an argument is out of range, or, when the layer is built or called, the input has another number of
            dimensions or is too small.
        TypeError: an argument has the wrong type, or, when the layer is called, the input is not floating-point.

    Example:
        >>> SpectralPooling(strides=1.5)(np.ones([1, 30, 31, 3])).shape
        TensorShape([1, 20, 20, 3])
        >>> SpectralPooling(output_size=(7, 8))(np.ones([1, 30, 31, 3])).shape
        TensorShape([1, 7, 8, 3])
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

    def _pool(self, inputs: spectral.Tensor) -> spectral.Tensor:
        size = self.output_size
        if size is None:
            size = spectral.spectral_output_lengths(*spectral.spatial_lengths(inputs, self.data_format), self.strides)
        return spectral.spectral_pooling(inputs, size, at_most=self.largest_map, **self._options())

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "strides": self.strides, "output_size": self.output_size}

    def _windows(self, height: int, width: int) -> tuple[spectral.Window | None, spectral.Window]:
        rows, columns = self._pooled_shape(height, width)
        dtype = self._window_dtype()
        return spectral.resampling_window(height, rows, dtype), spectral.resampling_window(width, columns, dtype)

    def _pooled_shape(self, height: int | None, width: int | None) -> tuple[int | None, int | None]:
        if self.output_size is not None:
            return self.output_size
        return _known_lengths(spectral.spectral_output_lengths, height, width, self.strides)


def _known_lengths(
    output_lengths: Callable[[int, int, tuple[float, float]], tuple[int, int]],
    height: int | None,
    width: int | None,
    strides: tuple[float, float],
) -> tuple[int | None, int | None]:
    """The output's height and width, None for a length that is not known before pooling."""
    rows, columns = output_lengths(height or 2, width or 2, strides)
    return rows if height else None, columns if width else None
