"""The base class of all layers that pool in the Fourier domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid import spectral
from diffstride_hybrid.common.arguments import validated_choice
from diffstride_hybrid.layers.input_checks import Size, check_floating, check_size, checked_when_run


class FourierPooling(keras.layers.Layer):
    """What the layers of this module that work in the Fourier domain share: their checks, shapes and options.

    Args:
        data_format: 'channels_last' or 'channels_first'. `keras.config.image_data_format()` where None.
        norm: how the two transforms are normalised, as in `numpy.fft`. 'backward' divides by the output's size, so a
            constant map of ones grows by the ratio of the areas; 'forward' keeps the mean; 'ortho' lies between.
        method: 'fft' runs the transforms, 'matmul' multiplies by the equivalent matrices. 'auto' takes 'matmul', and
            'fft' where an axis is longer than 512 samples, which is where the transforms become faster on a CPU.
        **kwargs: for `keras.layers.Layer`.

    Raises:
        ValueError: an argument is not among what is allowed, or, when built, the input has not four dimensions or is
            smaller than 2x2.
        TypeError: the input is not of a floating-point dtype.
    """

    _least_size: Size = (2, 2)

    def __init__(
        self,
        *,
        data_format: str | None = None,
        norm: spectral.Norm = "backward",
        method: spectral.Method = "auto",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if data_format is None:
            data_format = keras.config.image_data_format()
        self.data_format = validated_choice("data_format", data_format, spectral.DATA_FORMATS)
        self.norm = validated_choice("norm", norm, spectral.NORMS)
        self.method = validated_choice("method", method, spectral.METHODS)

    def build(self, input_shape: Sequence[int | None]) -> None:
        self._check_shape(input_shape)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        height, width = self._pooled_shape(*self._spatial_shape(input_shape))
        if self.data_format == "channels_last":
            return (input_shape[0], height, width, input_shape[3])
        return (input_shape[0], input_shape[1], height, width)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        check_floating(self, inputs)
        self._check_shape(tuple(inputs.shape))
        return self._pool(checked_when_run(self, inputs, self._smallest_size()))

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        check_floating(self, inputs)
        return super().compute_output_spec(inputs)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "data_format": self.data_format,
            "norm": self.norm,
            "method": self.method,
        }

    def spatial_size(self, shape: Sequence[int]) -> Size:
        """Height and width of a feature map, its shape without the batch axis."""
        return self._spatial_shape((None, *shape))

    def constant_call(self, inputs: tf.Tensor) -> tf.Tensor:
        """What calling the layer gives as it stands, by products with constants: no transform, variable, unknown size.

        Args:
            inputs: of known size, but for the batch.

        Returns:
            The pooled map.

        Raises:
            ValueError: a size is unknown.
        """
        size = self._spatial_shape(inputs.shape)
        if None in size:
            raise ValueError(f"{self.path} can only be exported for inputs of a known size, got {tuple(inputs.shape)}.")
        with tf.init_scope():
            matrices = spectral.pooling_matrices(*self._windows(*size), self.norm)
            constants = [None if matrix is None else matrix.numpy() for matrix in matrices]
        return spectral.apply_matrices(inputs, *constants, self.data_format)

    def matmul_macs(self, input_shape: Sequence[int], output_shape: Sequence[int]) -> int:
        """Multiply-accumulate operations of the 'matmul' engine for one image, shapes without the batch axis."""
        channels = input_shape[-1 if self.data_format == "channels_last" else 0]
        sizes = (*self.spatial_size(input_shape), *self.spatial_size(output_shape))
        return channels * spectral.matmul_macs(
            *sizes, unequal=self._unequal_frequencies(), data_format=self.data_format
        )

    def _unequal_frequencies(self) -> int | None:
        """How many row frequencies at most weigh differently by sign; None where the operator is real."""
        return None

    def _pooled_shape(self, height: int | None, width: int | None) -> tuple[int | None, int | None]:
        """The output's height and width, None where they are not known."""
        raise NotImplementedError

    def _options(self) -> dict[str, str]:
        return {"data_format": self.data_format, "norm": self.norm, "method": self.method}

    def _spatial_shape(self, shape: Sequence[int | None]) -> tuple[int | None, int | None]:
        if len(shape) != 4:
            axes = "(batch, height, width, channels)"
            if self.data_format == "channels_first":
                axes = "(batch, channels, height, width)"
            raise ValueError(f"{type(self).__name__} needs an input of 4 dimensions {axes}, got {tuple(shape)}.")
        first = 1 if self.data_format == "channels_last" else 2
        return shape[first], shape[first + 1]

    def _pool(self, inputs: tf.Tensor) -> tf.Tensor:
        raise NotImplementedError

    def _windows(self, height: int, width: int) -> tuple[spectral.Window | None, spectral.Window]:
        """What pools rows and columns of a map of this size as the layer stands. No rows where there is one axis."""
        raise NotImplementedError

    def _smallest_size(self) -> Size:
        """The smallest map that can be pooled."""
        return self._least_size

    def _check_shape(self, shape: Sequence[int | None]) -> None:
        """Raises if a feature map of this shape, so far as it is known, cannot be pooled."""
        check_size(self, shape, self._spatial_shape(shape), self._least_size)
