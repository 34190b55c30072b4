"""The base class of all layers that pool in the Fourier domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from diffstride_hybrid import spectral
from diffstride_hybrid.backends import current
from diffstride_hybrid.common.arguments import validated_choice
from diffstride_hybrid.layers.input_checks import Size, check_floating, check_size, checked_when_run


class FourierPooling(keras.layers.Layer):
    """The base class: options, checks and shapes that all poolings in the Fourier domain share.

    A subclass says how it pools (`_pool`), with which windows (`_windows`), and to which size (`_pooled_shape`).

    Input shape:
        Floating-point `(batch, height, width, channels)`, or `(batch, channels, height, width)` with
        `data_format='channels_first'`. An axis of one sample passes through.

    Output shape:
        The input's, with a smaller height and width that the subclass states. The dtype is the layer's compute dtype.

    Args:
        data_format: 'channels_last' or 'channels_first'. `keras.config.image_data_format()` if None.
        norm: normalization of the two transforms, as in `numpy.fft`. 'backward' divides by the output's size, so a
            constant map of ones grows by the ratio of the areas; 'forward' keeps the mean of the map; 'ortho'
            multiplies the mean by the square root of the ratio.
        method: 'fft' runs the transforms, on TensorFlow only; 'matmul' multiplies by the equivalent matrices. 'auto'
            takes 'matmul', but 'fft' if it is faster at the size: for long axes, few channels and small batches.
        **kwargs: for `keras.layers.Layer`, such as `name` and `dtype`.

    Attributes:
        largest_map: the greatest height and width of the maps that the layer will meet, None if they are not known. A
            network that knows them sets it before a graph is traced for maps of unknown size, which then needs fewer
            operations. The results do not depend on it.

    Raises:
        ValueError: an argument has a value that is not allowed, or, when the layer is built or called, the input has
            another number of dimensions or is too small.
        TypeError: an argument has the wrong type, or, when the layer is called, the input is not floating-point.

    Example:
        >>> from diffstride_hybrid import SpectralPooling
        >>> issubclass(SpectralPooling, FourierPooling)
        True
    """

    _pooled_axes: tuple[str, ...] = ("height", "width")
    _least_size: Size = (1, 1)

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
        self.largest_map: spectral.Bound = None

    def build(self, input_shape: Sequence[int | None]) -> None:
        self._check_shape(input_shape)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        size = self._pooled_shape(*self._spatial_shape(input_shape))
        return spectral.resized(input_shape, size[-len(self._pooled_axes) :], self.data_format)

    def call(self, inputs: spectral.Tensor) -> spectral.Tensor:
        return self._pool(self._checked(inputs))

    def _checked(self, inputs: spectral.Tensor) -> spectral.Tensor:
        """The inputs, whose dtype and size are checked now, or when a graph runs if they are not known before."""
        check_floating(self, inputs)
        if current.SIZES_ARE_KNOWN and not all(isinstance(n, int) for n in self._spatial_shape(inputs.shape)):
            raise ValueError(f"{self.path} needs inputs of a known size on JAX and PyTorch, got {tuple(inputs.shape)}.")
        self._check_shape(tuple(inputs.shape))
        return checked_when_run(self, inputs, self._smallest_size())

    def compute_output_spec(self, inputs: keras.KerasTensor, *args: Any, **kwargs: Any) -> keras.KerasTensor:
        check_floating(self, inputs)
        return super().compute_output_spec(inputs, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "data_format": self.data_format,
            "norm": self.norm,
            "method": self.method,
        }

    def spatial_size(self, shape: Sequence[int]) -> Size:
        """Height and width of a feature map; 1 and the number of samples of a signal.

        Args:
            shape: of one map or signal, without the batch axis.

        Returns:
            Both lengths, in samples.
        """
        return self._spatial_shape((None, *shape))

    def constant_call(self, inputs: spectral.Tensor) -> spectral.Tensor:
        """The result of calling the layer with its present strides, by products with constant matrices.

        Its graph holds no transform, no variable and no unknown size, so that it can be exported.

        Args:
            inputs: the layer's input. Only the batch may be of unknown size.

        Returns:
            The pooled maps or signals.

        Raises:
            ValueError: the height, the width or the number of samples is unknown, or too small.
        """
        self._check_shape(inputs.shape)
        return self._by_constants(inputs, self._windows, *self._spatial_shape(inputs.shape))

    def _by_constants(
        self,
        inputs: spectral.Tensor,
        windows: Callable[..., tuple[spectral.Window | None, spectral.Window]],
        *lengths: int | None,
    ) -> spectral.Tensor:
        """The products with the matrices of the windows that `windows` makes of known lengths."""
        if None in lengths:
            raise ValueError(f"{self.path} can only be exported for inputs of a known size, got {tuple(inputs.shape)}.")
        with current.eagerly():
            matrices = spectral.pooling_matrices(*windows(*lengths), self.norm)
            constants = [None if matrix is None else keras.ops.convert_to_numpy(matrix) for matrix in matrices]
        return spectral.apply_matrices(inputs, *constants, self.data_format)

    def matmul_macs(self, input_shape: Sequence[int], output_shape: Sequence[int]) -> int:
        """Multiply-accumulate operations of the 'matmul' engine for one image or signal.

        Args:
            input_shape: of one map or signal, without the batch axis.
            output_shape: of the result, without the batch axis.

        Returns:
            The number of operations.
        """
        channels = input_shape[-1 if self.data_format == "channels_last" else 0]
        sizes = (*self.spatial_size(input_shape), *self.spatial_size(output_shape))
        return channels * spectral.matmul_macs(
            *sizes, unequal=self._unequal_frequencies(), data_format=self.data_format
        )

    def _unequal_frequencies(self) -> int | None:
        """The greatest number of row frequencies that weigh differently by sign. None if the operator is real."""
        return None

    def _pooled_shape(self, height: int | None, width: int | None) -> tuple[int | None, int | None]:
        """The output's height and width, None for a length that is not known."""
        raise NotImplementedError

    def _options(self) -> dict[str, str]:
        return {"data_format": self.data_format, "norm": self.norm, "method": self.method}

    def _spatial_shape(self, shape: Sequence[int | None]) -> tuple[int | None, int | None]:
        """Height and width in the shape of a batch. Signals have one row."""
        rank = 2 + len(self._pooled_axes)
        if len(shape) != rank:
            last = self.data_format == "channels_last"
            axes = (*self._pooled_axes, "channels") if last else ("channels", *self._pooled_axes)
            raise ValueError(
                f"{type(self).__name__} needs an input of {rank} dimensions (batch, {', '.join(axes)}), "
                f"got {tuple(shape)}."
            )
        height, width = (1, *(shape[axis] for axis in spectral.spatial_axes(self.data_format, rank)))[-2:]
        return height, width

    def _pool(self, inputs: spectral.Tensor) -> spectral.Tensor:
        """Pools inputs that have been checked."""
        raise NotImplementedError

    def _windows(self, height: int, width: int) -> tuple[spectral.Window | None, spectral.Window]:
        """The windows over rows and columns of a map of this size, eagerly. No window over rows for signals."""
        raise NotImplementedError

    def _window_dtype(self) -> str:
        """The dtype of the windows' weights, from which constant matrices take theirs."""
        return "float64" if self.compute_dtype == "float64" else "float32"

    def _smallest_size(self) -> Size:
        """The smallest map that can be pooled."""
        return self._least_size

    def _check_shape(self, shape: Sequence[int | None]) -> None:
        """Raises ValueError if the known part of a batch's shape shows that it cannot be pooled."""
        check_size(self, shape, self._spatial_shape(shape), self._least_size)
