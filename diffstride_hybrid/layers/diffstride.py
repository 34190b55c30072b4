"""`DiffStride`: pooling by a soft crop of the spectrum whose strides are learned."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from diffstride_hybrid import spectral
from diffstride_hybrid.common.arguments import (
    Strides,
    validated_choice,
    validated_flag,
    validated_limit,
    validated_number,
    validated_strides,
)
from diffstride_hybrid.common.registration import register
from diffstride_hybrid.layers.fourier_pooling import FourierPooling
from diffstride_hybrid.layers.input_checks import Size
from diffstride_hybrid.layers.static_crop import Crop


@register
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


@register
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
        self.smoothness_factor = validated_number("smoothness_factor", smoothness_factor, at_least=0.0)
        self.cropping = validated_flag("cropping", cropping)
        self.shared_stride = validated_flag("shared_stride", shared_stride)
        self.lower_limit_stride = validated_limit("lower_limit_stride", lower_limit_stride)
        self.upper_limit_stride = validated_limit("upper_limit_stride", upper_limit_stride)
        self.mask = validated_choice("mask", mask, spectral.MASKS)
        self.static_crop = None if static_crop is None else validated_flag("static_crop", static_crop)
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
