"""`SpectralResizing`: enlarges or shrinks maps by padding or cropping their spectrum. Its twin for signals, too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from keras import ops

from diffstride_hybrid import spectral
from diffstride_hybrid.common.arguments import validated_number, validated_size
from diffstride_hybrid.common.registration import register
from diffstride_hybrid.layers.fourier_pooling import FourierPooling
from diffstride_hybrid.layers.pooling_1d import OneAxis

_ROUNDING = 1e-6
"""Tolerates rounding in a scale of `n / length`, which shall give `n` samples."""

_SMALLEST_SCALE = 1e-6


@register
class SpectralResizing(FourierPooling):
    """Resizing of maps by cropping their spectrum, or padding it with zeros, to any size.

    Along each axis the result equals `scipy.signal.resample` times a constant that depends on `norm` (1 for 'forward').
    To fewer samples it is `SpectralPooling` of a given size. To more samples it is the interpolation of a periodic map
    that adds no frequency; one that is shrunk again comes back as it was.

    A network that enlarges maps again, as one for segmentation does, calls the layer with another map, whose height and
    width the result takes: `layer(x, like=skip)`. That works behind a `DiffStride`, whose sizes change while it learns.

    Input shape:
        Floating-point `(batch, height, width, channels)`, or `(batch, channels, height, width)` with
        `data_format='channels_first'`; and `like`, of the same format, with any number of channels.

    Output shape:
        `(batch, rows, columns, channels)`, or `(batch, channels, rows, columns)`, in the layer's compute dtype, with
        the height and width of `like`, or `output_size`, or `max(1, floor(scale · n))` samples along an axis of `n`.

    Args:
        output_size: height and width of the output, one number for both or a pair, at least 1.
        scale: by what height and width are multiplied, one number for both or a pair, above 0. Either this, or
            `output_size`, or neither: then every call needs `like`.
        data_format: 'channels_last' or 'channels_first'. `keras.config.image_data_format()` if None.
        norm: normalization of the two transforms, as in `numpy.fft`. 'forward' keeps the mean; 'backward' multiplies it
            by the ratio of the areas; 'ortho' by the square root of the ratio.
        method: 'fft' runs the transforms, on TensorFlow only; 'matmul' multiplies by the equivalent matrices. 'auto'
            takes the faster one: 'fft' for long axes, few channels and small batches.
        **kwargs: for `keras.layers.Layer`, such as `name` and `dtype`.

    Raises:
        ValueError: an argument is out of range, both sizes are given, or, when the layer is called, there is no size or
            one too many, or the input or `like` has another number of dimensions.
        TypeError: an argument has the wrong type, or, when the layer is called, the input is not floating-point.

    Example:
        >>> SpectralResizing(scale=2.0)(np.ones([1, 15, 10, 3])).shape
        TensorShape([1, 30, 20, 3])
        >>> SpectralResizing()(np.ones([1, 15, 10, 3]), like=np.ones([1, 31, 21, 8])).shape
        TensorShape([1, 31, 21, 3])
    """

    def __init__(
        self,
        output_size: int | Sequence[int] | None = None,
        scale: float | Sequence[float] | None = None,
        data_format: str | None = None,
        norm: spectral.Norm = "forward",
        method: spectral.Method = "auto",
        **kwargs: Any,
    ):
        super().__init__(data_format=data_format, norm=norm, method=method, **kwargs)
        if output_size is not None and scale is not None:
            raise ValueError("Give output_size or scale, not both.")
        self.output_size = None if output_size is None else validated_size("output_size", output_size)
        self.scale = None if scale is None else _validated_scale(scale)

    def build(self, inputs_shape: Sequence[int | None], like_shape: Sequence[int | None] | None = None) -> None:
        super().build(inputs_shape)

    def call(self, inputs: spectral.Tensor, like: spectral.Tensor | None = None) -> spectral.Tensor:
        inputs = self._checked(inputs)
        self._check_like(None if like is None else like.shape)
        target = None if like is None else self._lengths(like)
        return self._resize(inputs, self._output_lengths(self._lengths(inputs), target))

    def compute_output_shape(
        self, inputs_shape: Sequence[int | None], like_shape: Sequence[int | None] | None = None
    ) -> tuple[int | None, ...]:
        self._check_like(like_shape)
        target = None if like_shape is None else self._spatial_shape(like_shape)
        size = self._output_lengths(self._spatial_shape(inputs_shape), target)
        return spectral.resized(inputs_shape, size[-len(self._pooled_axes) :], self.data_format)

    def constant_call(self, inputs: spectral.Tensor, like: spectral.Tensor | None = None) -> spectral.Tensor:
        """The result of calling the layer, by products with constant matrices: it can be exported.

        Args:
            inputs: the layer's input. Only the batch may be of unknown size.
            like: the map whose size the result takes, if the layer has none of its own.

        Returns:
            The resized maps or signals.

        Raises:
            ValueError: a height, a width or a number of samples is unknown, or there is no size or one too many.
        """
        self._check_like(None if like is None else like.shape)
        size = self._spatial_shape(inputs.shape)
        target = self._output_lengths(size, None if like is None else self._spatial_shape(like.shape))
        return self._by_constants(inputs, self._resampling_windows, *size, *target)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "output_size": self.output_size, "scale": self.scale}

    def _resize(self, inputs: spectral.Tensor, size: tuple[spectral.Length, spectral.Length]) -> spectral.Tensor:
        return spectral.spectral_resizing(inputs, size, **self._options())

    def _lengths(self, inputs: spectral.Tensor) -> tuple[spectral.Length, spectral.Length]:
        return spectral.spatial_lengths(inputs, self.data_format)

    def _resampling_windows(
        self, height: int, width: int, rows: int, columns: int
    ) -> tuple[spectral.Window | None, spectral.Window]:
        dtype = self._window_dtype()
        return spectral.resampling_window(height, rows, dtype), spectral.resampling_window(width, columns, dtype)

    def _output_lengths(self, lengths: Sequence[Any], like: Sequence[Any] | None) -> tuple[Any, ...]:
        """Height and width of the output, from those of the input and of `like`; None for what is not known."""
        if like is not None:
            return tuple(like)
        return self.output_size or tuple(map(_scaled, lengths, self.scale))

    def _check_like(self, shape: Sequence[int | None] | None) -> None:
        is_given, rank = shape is not None, 2 + len(self._pooled_axes)
        has_size = self.output_size is not None or self.scale is not None
        if is_given and has_size:
            raise ValueError(f"{self.path} has an output_size or scale of its own, so it takes no `like`.")
        if not is_given and not has_size:
            raise ValueError(f"{self.path} has neither output_size nor scale, so call it with like=another_map.")
        if is_given and len(shape) != rank:
            raise ValueError(
                f"{self.path} needs a `like` of {rank} dimensions, as its input has, got {tuple(shape)}: call it with "
                "like=another_map."
            )


@register
class SpectralResizing1D(OneAxis, SpectralResizing):
    """Resizing of signals by cropping their spectrum, or padding it with zeros, to any length.

    The result equals `scipy.signal.resample` times a constant that depends on `norm` (1 for 'forward').
    `SpectralResizing` does the same along both axes of a map.

    Input shape:
        Floating-point `(batch, time, channels)`, or `(batch, channels, time)` with `data_format='channels_first'`; and
        `like`, of the same format, with any number of channels.

    Output shape:
        `(batch, samples, channels)`, or `(batch, channels, samples)`, in the layer's compute dtype, with the samples of
        `like`, or `output_size`, or `max(1, floor(scale · n))` of `n`.

    Args:
        output_size: samples of the output, at least 1.
        scale: by what the number of samples is multiplied, above 0. Either this, or `output_size`, or neither: then
            every call needs `like`.
        data_format: 'channels_last' or 'channels_first'. `keras.config.image_data_format()` if None.
        norm: normalization of the two transforms, as in `numpy.fft`. 'forward' keeps the mean; 'backward' multiplies it
            by the ratio of the lengths; 'ortho' by the square root of the ratio.
        method: 'fft' runs the transforms, on TensorFlow only; 'matmul' multiplies by the equivalent matrix. 'auto'
            takes the faster one: 'fft' for long axes, few channels and small batches.
        **kwargs: for `keras.layers.Layer`, such as `name` and `dtype`.

    Raises:
        ValueError: an argument is out of range, both sizes are given, or, when the layer is called, there is no size or
            one too many, or the input has another number of dimensions.
        TypeError: an argument has the wrong type, or, when the layer is called, the input is not floating-point.

    Example:
        >>> SpectralResizing1D(output_size=160)(np.ones([1, 100, 3])).shape
        TensorShape([1, 160, 3])
    """

    _least_size = (1, 1)

    def __init__(
        self,
        output_size: int | None = None,
        scale: float | None = None,
        data_format: str | None = None,
        norm: spectral.Norm = "forward",
        method: spectral.Method = "auto",
        **kwargs: Any,
    ):
        super().__init__(
            output_size=None if output_size is None else (1, output_size),
            scale=None if scale is None else (1.0, scale),
            data_format=data_format,
            norm=norm,
            method=method,
            **kwargs,
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "output_size": None if self.output_size is None else self.output_size[1],
            "scale": None if self.scale is None else self.scale[1],
        }

    def _resize(self, inputs: spectral.Tensor, size: tuple[spectral.Length, spectral.Length]) -> spectral.Tensor:
        return spectral.spectral_resizing_1d(inputs, size[1], **self._options())

    def _lengths(self, inputs: spectral.Tensor) -> tuple[spectral.Length, spectral.Length]:
        return 1, spectral.signal_length(inputs, self.data_format)

    def _resampling_windows(
        self, height: int, width: int, rows: int, columns: int
    ) -> tuple[spectral.Window | None, spectral.Window]:
        return None, spectral.resampling_window(width, columns, self._window_dtype())


def _validated_scale(scale: Any) -> tuple[float, float]:
    pair = tuple(scale) if isinstance(scale, Sequence) and not isinstance(scale, str) else (scale, scale)
    if len(pair) != 2:
        raise ValueError(f"scale must be one number or a pair, got {scale!r}.")
    vertical, horizontal = (validated_number("scale", number, at_least=_SMALLEST_SCALE) for number in pair)
    return vertical, horizontal


def _scaled(length: spectral.Length | None, scale: float) -> spectral.Length | None:
    """`max(1, floor(length · scale))`."""
    if length is None:
        return None
    if isinstance(length, int):
        return max(1, math.floor(length * scale + _ROUNDING))
    return ops.maximum(1, ops.cast(ops.floor(ops.cast(length, "float64") * scale + _ROUNDING), "int32"))
