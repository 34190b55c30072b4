"""Keras layers that pool a feature map: `DiffStride`, the two spectral poolings, and average pooling.

Every layer takes `(batch, height, width, channels)`, or `(batch, channels, height, width)` with
`data_format='channels_first'`, of a floating-point dtype, and returns a smaller map in the layer's compute dtype. The
mathematics is in `spectral.py`.
"""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from diffstride_hybrid import spectral

Strides = float | Sequence[float]
Size = tuple[int, int]
Crop = tuple[int, int]

_register = keras.saving.register_keras_serializable(package="diffstride_hybrid")


@_register
class StrideConstraint(keras.constraints.Constraint):
    """Keeps strides between two limits.

    Args:
        lower_limit: least stride, for both axes or one for each. 1 where None.
        upper_limit: greatest stride, for both axes or one for each. Unlimited where None.
    """

    def __init__(self, lower_limit: Strides | None = None, upper_limit: Strides | None = None):
        self.lower_limit = lower_limit
        self.upper_limit = upper_limit

    def __call__(self, strides: tf.Tensor) -> tf.Tensor:
        strides = tf.convert_to_tensor(strides)
        strides = tf.maximum(strides, tf.cast(1.0 if self.lower_limit is None else self.lower_limit, strides.dtype))
        if self.upper_limit is None:
            return strides
        return tf.minimum(strides, tf.cast(self.upper_limit, strides.dtype))

    def get_config(self) -> dict[str, Any]:
        return {"lower_limit": self.lower_limit, "upper_limit": self.upper_limit}


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
        self.data_format = _one_of("data_format", data_format, spectral.DATA_FORMATS)
        self.norm = _one_of("norm", norm, spectral.NORMS)
        self.method = _one_of("method", method, spectral.METHODS)

    def build(self, input_shape: Sequence[int | None]) -> None:
        self._check_shape(input_shape)

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        height, width = self._pooled_shape(*self._spatial_shape(input_shape))
        if self.data_format == "channels_last":
            return (input_shape[0], height, width, input_shape[3])
        return (input_shape[0], input_shape[1], height, width)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        _check_floating(self, inputs)
        self._check_shape(tuple(inputs.shape))
        return self._pool(_checked_when_run(self, inputs, self._smallest_size()))

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        _check_floating(self, inputs)
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
        _check_size(self, shape, self._spatial_shape(shape), self._least_size)


@_register
class DiffStride(FourierPooling):
    """Pooling whose strides are learned, through a soft crop of the spectrum.

    The spectrum of the feature map is multiplied by a window that is 1 below a threshold set by the stride and falls
    to 0 over `smoothness_factor` bins; what is 0 is cropped away. The output's size therefore follows the strides as
    they are trained (Riad et al., "Learning strides in convolutional neural networks", ICLR 2022, arXiv 2202.01653).

    The weight `strides` has shape `(2,)`, vertical then horizontal, or `(1,)` with `shared_stride`, and is float32
    under every dtype policy. After each optimiser step a constraint keeps it within the limits and at or above
    `n / (n - smoothness_factor)` for an axis of `n` samples, the stride at which the window spans the whole axis.

    Args:
        strides: initial strides, one number for both axes or (vertical, horizontal), at least 1, fractions allowed.
        smoothness_factor: `R`, the length of the window's ramp in bins. 0 gives a hard crop, without a gradient to the
            strides.
        cropping: whether bins of weight 0 are removed. If not, the output has the input's size.
        trainable: whether the strides are learned.
        shared_stride: whether one stride serves both axes.
        lower_limit_stride: least stride, at least 1. 1 where None.
        upper_limit_stride: greatest stride. Unlimited where None.
        data_format: see `FourierPooling`.
        mask: 'released' computes what the code released with the paper does; 'symmetric' weighs positive and negative
            frequencies alike on both axes, gives odd output sizes, and costs less.
        norm: see `FourierPooling`.
        method: see `FourierPooling`.
        static_crop: whether the output's size is fixed, at what the strides asked for when the layer was built, so that
            shapes are known to Keras, to XLA and to exporters. It needs a known input size. `refresh_crop()` and the
            callback `CropRefresh` fix it anew. If None, the size follows the strides until the layer is compiled by
            XLA, or runs on a TPU, and is fixed from then on.
        **kwargs: for `keras.layers.Layer`.
    """

    def __init__(
        self,
        strides: Strides = (2.0, 2.0),
        smoothness_factor: float = 4.0,
        cropping: bool = True,
        trainable: bool = True,
        shared_stride: bool = False,
        lower_limit_stride: float | None = None,
        upper_limit_stride: float | None = None,
        data_format: str | None = None,
        mask: spectral.Mask = "released",
        norm: spectral.Norm = "backward",
        method: spectral.Method = "auto",
        static_crop: bool | None = None,
        **kwargs: Any,
    ):
        super().__init__(trainable=trainable, data_format=data_format, norm=norm, method=method, **kwargs)
        self.initial_strides = validated_strides(strides)
        self.smoothness_factor = _number("smoothness_factor", smoothness_factor, at_least=0.0)
        self.cropping = _flag("cropping", cropping)
        self.shared_stride = _flag("shared_stride", shared_stride)
        self.lower_limit_stride = _limit("lower_limit_stride", lower_limit_stride)
        self.upper_limit_stride = _limit("upper_limit_stride", upper_limit_stride)
        self.mask = _one_of("mask", mask, spectral.MASKS)
        self.static_crop = None if static_crop is None else _flag("static_crop", static_crop)
        if self.shared_stride and self.initial_strides[0] != self.initial_strides[1]:
            raise ValueError(f"shared_stride=True needs one stride for both axes, got strides={self.initial_strides}.")
        if (self.lower_limit_stride or 1.0) > (self.upper_limit_stride or math.inf):
            raise ValueError(
                f"lower_limit_stride must not exceed upper_limit_stride, got {lower_limit_stride} and "
                f"{upper_limit_stride}."
            )
        self.supports_jit = self.static_crop is not False or not self.cropping
        self.crop_is_static = bool(self.static_crop)
        self._crops: dict[Size, Crop] = {}
        self._crops_before: dict[Size, Crop] = {}
        self._hysteresis = 0.0

    def build(self, input_shape: Sequence[int | None]) -> None:
        super().build(input_shape)
        size = self._spatial_shape(input_shape)
        if spectral.needs_static_shapes():
            self.fix_crop()
        minima = self._minimum_strides(size)
        constraint = StrideConstraint(
            [max(minimum, self.lower_limit_stride or 1.0) for minimum in minima], self.upper_limit_stride
        )
        with tf.init_scope():
            initial = constraint(tf.constant(self.initial_strides[: len(minima)])).numpy()
        self.strides = self.add_weight(
            name="strides",
            shape=(len(minima),),
            initializer=lambda shape, dtype: tf.constant(initial, dtype),
            constraint=constraint,
            dtype="float32",
            autocast=False,
        )
        if self.crop_is_static:
            self._crop_at(size, initial)

    def _minimum_strides(self, size: tuple[int | None, int | None]) -> list[float]:
        minima = [1.0 if n is None else spectral.minimum_stride(n, self.smoothness_factor) for n in size]
        return [max(minima)] if self.shared_stride else minima

    def _pool(self, inputs: tf.Tensor) -> tf.Tensor:
        if spectral.needs_static_shapes() and not self.crop_is_static:
            self.fix_crop()
            if self.crop_is_static and self.trainable:
                warnings.warn(
                    f"XLA compiles {self.path}: its output keeps the size that its strides ask for now. The callback "
                    "diffstride_hybrid.callbacks.CropRefresh lets it follow them, and so does jit_compile=False.",
                    stacklevel=2,
                )
        return self._pool_to(self._crop_at(self._spatial_shape(inputs.shape)) if self.crop_is_static else None, inputs)

    def _pool_to(self, kept: Crop | None, inputs: tf.Tensor) -> tf.Tensor:
        return spectral.diffstride(
            inputs,
            tf.convert_to_tensor(self.strides),
            cropping=self.cropping,
            kept=kept,
            trainable=self.trainable,
            **self._window_options(),
            **self._options(),
        )

    @property
    def crops(self) -> dict[Size, Crop]:
        """The kept bins (rows, columns) for each input (height, width) met so far. Empty where the crop is dynamic."""
        return dict(self._crops)

    @crops.setter
    def crops(self, crops: Mapping[Size, Crop]) -> None:
        self._crops = dict(crops)

    def fix_crop(self) -> None:
        """Makes the crop static from now on. XLA and TPUs do so by themselves.

        Raises:
            ValueError: the layer has `static_crop=False`.
        """
        if not self.cropping:
            return
        if self.static_crop is False:
            raise ValueError(
                f"{self.path} has static_crop=False: XLA and TPUs need a static crop, so leave it at None."
            )
        self.crop_is_static = True

    def refresh_crop(self, hysteresis: float = 0.0) -> bool:
        """Fixes a static crop to what the strides ask for now, at every input size met so far.

        A `tf.function` traced before a change must be traced again. Layers after this one keep working where they
        accept any size. `callbacks.refresh_crops` does this for a whole model.

        Args:
            hysteresis: see `forget_crop`.

        Returns:
            Whether the crop changed.
        """
        before = self._crops
        self.forget_crop(hysteresis)
        for size in before:
            self._crop_at(size)
        return self._crops != before

    def forget_crop(self, hysteresis: float = 0.0) -> None:
        """Lets a static crop be fixed anew at each input size when that size is next met.

        Args:
            hysteresis: how many bins are kept stays as it was where strides smaller or greater by this share of
                themselves ask for it, so that a stride that wavers at the edge between two sizes changes nothing.
        """
        self._crops_before, self._crops, self._hysteresis = self._crops, {}, hysteresis

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "strides": self.initial_strides,
            "smoothness_factor": self.smoothness_factor,
            "cropping": self.cropping,
            "shared_stride": self.shared_stride,
            "lower_limit_stride": self.lower_limit_stride,
            "upper_limit_stride": self.upper_limit_stride,
            "mask": self.mask,
            "static_crop": self.static_crop,
        }

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        if self.crop_is_static:
            store["crops"] = np.array([(*size, *crop) for size, crop in self._crops.items()], "int32")

    def load_own_variables(self, store: Any) -> None:
        self.strides.assign(store["0"])
        if self.static_crop is not False and "crops" in store:
            self.crop_is_static = True
            self.crops = {(h, w): (rows, columns) for h, w, rows, columns in np.array(store["crops"]).tolist()}
        else:
            self.refresh_crop()

    def _unequal_frequencies(self) -> int | None:
        return spectral.unequal_frequencies(self.smoothness_factor) if self.mask == "released" else None

    def _pooled_shape(self, height: int | None, width: int | None) -> tuple[int | None, int | None]:
        if not self.cropping and None not in (height, width):
            return height, width if self.mask == "symmetric" else width - width % 2
        if not self.crop_is_static or not self.built or None in (height, width):
            return None, None
        rows, columns = self._crop_at((height, width))
        return rows, 2 * (columns - 1) if self.mask == "released" else min(2 * columns - 1, width)

    def _window_options(self) -> dict[str, Any]:
        return {
            "smoothness_factor": self.smoothness_factor,
            "lower_limit_stride": self.lower_limit_stride,
            "upper_limit_stride": self.upper_limit_stride,
            "mask": self.mask,
        }

    def _window_dtype(self) -> tf.DType:
        return tf.float64 if self.compute_dtype == "float64" else tf.float32

    def _crop_at(self, size: Size, strides: np.ndarray | None = None) -> Crop:
        """The crop of a map of this size: what the strides asked for when it was first met or last refreshed."""
        if None in size:
            raise ValueError(
                f"A static crop needs a known height and width, got {size}. A DiffStride before this one must have a "
                "static crop as well."
            )
        if size not in self._crops:
            with tf.init_scope():
                strides = self.strides.numpy() if strides is None else strides
                crop, fewest, most = (
                    self._asked_crop(size, strides * factor)
                    for factor in (1.0, 1.0 + self._hysteresis, 1.0 - self._hysteresis)
                )
            before = self._crops_before.get(size, crop)
            self._crops[size] = tuple(
                kept if low <= kept <= high else asked for kept, asked, low, high in zip(before, crop, fewest, most)
            )
        return self._crops[size]

    def _asked_crop(self, size: Size, strides: np.ndarray) -> Crop:
        return spectral.kept_bins(*self._windows_at(size, strides, None))

    def _windows(self, height: int, width: int) -> tuple[spectral.Window | None, spectral.Window]:
        kept = self._crop_at((height, width)) if self.crop_is_static else None
        return self._windows_at((height, width), self.strides.numpy(), kept)

    def _windows_at(
        self, size: Size, strides: np.ndarray, kept: Crop | None
    ) -> tuple[spectral.Window | None, spectral.Window]:
        return spectral.diffstride_windows(
            *size,
            tf.constant(strides),
            cropping=self.cropping,
            kept=kept,
            dtype=self._window_dtype(),
            **self._window_options(),
        )


@_register
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


@_register
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
        self.output_size = None if output_size is None else _size("output_size", output_size)

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


@_register
class SpatialPooling(keras.layers.AveragePooling2D):
    """Average pooling with the defaults of the code released with DiffStride.

    With the default `pool_size=(1, 1)` it takes every `strides`-th sample, as a strided convolution does of the
    unstrided one. There strides need not be whole: output `i` is sample `floor(i * stride)` of `ceil(size / stride)`,
    so that any output size can be had, by a stride of `size / output size`.

    Args:
        pool_size: (height, width) of the averaged neighbourhood.
        strides: one number for both axes or (vertical, horizontal).
        padding: 'same' or 'valid'.
        data_format: 'channels_last' or 'channels_first'.
        **kwargs: for `keras.layers.AveragePooling2D`.

    Raises:
        ValueError: strides are not whole, and `pool_size` is not (1, 1).
    """

    def __init__(
        self,
        pool_size: int | Sequence[int] = (1, 1),
        strides: Strides = (2, 2),
        padding: str = "same",
        data_format: str | None = None,
        **kwargs: Any,
    ):
        strides, pool_size = validated_strides(strides), _size("pool_size", pool_size)
        padding = _one_of("padding", padding, ("same", "valid"))
        whole = tuple(int(stride) for stride in strides)
        super().__init__(pool_size=pool_size, strides=whole, padding=padding, data_format=data_format, **kwargs)
        self._has_whole_strides = strides == whole
        if not self._has_whole_strides:
            if pool_size != (1, 1):
                raise ValueError(f"SpatialPooling needs whole strides where pool_size is {pool_size}, got {strides}.")
            self.strides = strides

    def build(self, input_shape: Sequence[int | None]) -> None:
        super().build(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        _check_floating(self, inputs)
        least = self.pool_size if self.padding == "valid" else (1, 1)
        _check_size(self, tuple(inputs.shape), self.spatial_size(inputs.shape[1:]), least)
        inputs = _checked_when_run(self, inputs, least)
        if self._has_whole_strides:
            return super().call(inputs)
        for axis, stride in zip(self._spatial_axes(), self.strides):
            size = tf.shape(inputs)[axis] if inputs.shape[axis] is None else inputs.shape[axis]
            inputs = tf.gather(inputs, _sampled_positions(size, stride), axis=axis)
        return inputs

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        if self._has_whole_strides:
            return super().compute_output_shape(input_shape)
        shape = list(input_shape)
        for axis, stride in zip(self._spatial_axes(), self.strides):
            shape[axis] = None if shape[axis] is None else len(_sampled_positions(shape[axis], stride))
        return tuple(shape)

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        _check_floating(self, inputs)
        return keras.KerasTensor(self.compute_output_shape(inputs.shape), dtype=self.compute_dtype)

    def spatial_size(self, shape: Sequence[int]) -> Size:
        """Height and width of a feature map, its shape without the batch axis."""
        vertical, horizontal = self._spatial_axes()
        return shape[vertical - 1], shape[horizontal - 1]

    def _spatial_axes(self) -> tuple[int, int]:
        return (1, 2) if self.data_format == "channels_last" else (2, 3)


def _sampled_positions(size: int | tf.Tensor, stride: float) -> np.ndarray | tf.Tensor:
    """The samples that a stride takes of an axis, as an array where the size is known."""
    rounding = 1e-6  # A stride of size / output size is rounded, either way.
    if isinstance(size, int):
        count = max(1, math.ceil(size / stride - rounding))
        return np.floor(np.arange(count) * stride + rounding).astype(np.int32)
    count = tf.maximum(tf.math.ceil(tf.cast(size, tf.float64) / stride - rounding), 1.0)
    return tf.cast(tf.floor(tf.range(count) * stride + rounding), tf.int32)


# --- Checks of arguments ---------------------------------------------------------------------------------------------


def _check_floating(layer: keras.layers.Layer, inputs: Any) -> None:
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    if "float" not in dtype:
        raise TypeError(
            f"{type(layer).__name__} needs floating-point input, got {dtype}: cast it first, for instance with "
            "keras.layers.Rescaling(1 / 255)."
        )


def _check_size(
    layer: keras.layers.Layer, shape: Sequence[int | None], size: Sequence[int | None], least: Size
) -> None:
    if any(length is not None and length < n for length, n in zip(size, least)):
        raise ValueError(f"{_needs_at_least(layer, least)} {tuple(shape)} ({layer.data_format}).")


def _checked_when_run(layer: keras.layers.Layer, inputs: tf.Tensor, least: Size) -> tf.Tensor:
    """The inputs, which a graph refuses when it runs if a size that it did not know before is below `least`."""
    if None not in layer.spatial_size(inputs.shape[1:]):
        return inputs
    shape = tf.shape(inputs)
    size = layer.spatial_size(tf.unstack(shape)[1:])
    large_enough = tf.reduce_all([length >= n for length, n in zip(size, least)])
    with tf.control_dependencies([tf.debugging.Assert(large_enough, [_needs_at_least(layer, least), shape])]):
        return tf.identity(inputs)


def _needs_at_least(layer: keras.layers.Layer, least: Size) -> str:
    return f"{type(layer).__name__} needs at least {'x'.join(map(str, least))} samples to pool, got"


def _one_of(name: str, value: Any, allowed: Sequence[str]) -> Any:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}.")
    return value


def _number(name: str, value: Any, at_least: float) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if not at_least <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least {at_least:g}, got {value!r}.")
    return float(_at_most(name, value))


def _at_most(name: str, value: Any, most: int = np.iinfo(np.int32).max) -> Any:
    """A number that TensorFlow's kernels take, as a size or in float32."""
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value!r}.")
    return value


def _limit(name: str, value: Any) -> float | None:
    return None if value is None else _number(name, value, at_least=1.0)


def validated_strides(value: Any) -> tuple[float, float]:
    """Strides as (vertical, horizontal); raises TypeError or ValueError where they are not numbers of at least 1."""
    pair = (value, value) if isinstance(value, numbers.Real) else value
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise TypeError(f"strides must be a number or a pair (vertical, horizontal), got {value!r}.")
    for stride in pair:
        _number("strides", stride, at_least=1.0)
    return float(pair[0]), float(pair[1])


def _size(name: str, value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, numbers.Integral) else value
    if (
        not isinstance(pair, Sequence)
        or len(pair) != 2
        or not all(isinstance(n, numbers.Integral) and not isinstance(n, bool) for n in pair)
    ):
        raise TypeError(f"{name} must be a whole number or a pair (height, width), got {value!r}.")
    if min(pair) < 1:
        raise ValueError(f"{name} must be at least 1 along both axes, got {value!r}.")
    _at_most(name, max(pair))
    return int(pair[0]), int(pair[1])
