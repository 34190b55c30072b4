"""`DiffStride`: pooling by a soft crop of the spectrum whose strides are learned."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from diffstride_hybrid import spectral
from diffstride_hybrid.backends import current
from diffstride_hybrid.common.arguments import (
    Strides,
    validated_choice,
    validated_flag,
    validated_limits,
    validated_number,
    validated_strides,
)
from diffstride_hybrid.common.registration import register
from diffstride_hybrid.layers.fourier_pooling import FourierPooling
from diffstride_hybrid.layers.input_checks import Size
from diffstride_hybrid.layers.static_crop import Crop, StaticCrop
from diffstride_hybrid.layers.stride_constraint import StrideConstraint

_LARGEST_STRIDE = 2.0**31 - 1
"""The greatest stride that an argument may have."""


@register
class DiffStride(FourierPooling):
    """Pooling whose strides are learned, by a soft crop of the spectrum.

    The spectrum of each channel is multiplied by a window that is 1 at low frequencies and falls to 0 over
    `smoothness_factor` bins. Bins of weight 0 are cropped away, and the rest is transformed back at its own, smaller
    size. A larger stride makes the window narrower and the output smaller. The gradient reaches the strides through the
    window's ramp (Riad et al., "Learning strides in convolutional neural networks", ICLR 2022, arXiv 2202.01653).

    Along an axis of `n` samples with stride `s` and `R = smoothness_factor`, a bin at position `p` has the weight
    `clip((R + t - p) / R, 0, 1)` with the threshold `t = max(n / s, 2) / 2`. `spectral.diffstride_windows` states the
    positions and the thresholds for both masks.

    The weight `strides` has shape `(2,)`, vertical then horizontal, or `(1,)` with `shared_stride`, and is float32
    under every dtype policy. After each optimizer step a constraint keeps it within the limits and at or above
    `n / (n - R)` (1 if `n <= R`). Up to a stride of about `n / (n - 2 R)` the window spans the whole axis.

    Input shape:
        Floating-point `(batch, height, width, channels)`, or `(batch, channels, height, width)` with
        `data_format='channels_first'`. One row, or one column, passes through, and the other axis is pooled.

    Output shape:
        `(batch, rows, columns, channels)`, or `(batch, channels, rows, columns)`, in the layer's compute dtype. Rows
        and columns follow the strides; Keras knows them only if the crop is static.

    Args:
        strides: initial strides, one number for both axes or (vertical, horizontal), at least 1, fractions allowed.
        smoothness_factor: `R`, the length of the window's ramp in bins, at least 0. 0 is a hard crop without gradient.
        cropping: whether bins of weight 0 are removed. If not, the output has the input's size, except that
            mask='released' rounds an odd width of 3 or more down to an even one.
        trainable: whether the strides are learned.
        shared_stride: whether one stride serves both axes.
        lower_limit_stride: least stride, at least 1, or a pair (vertical, horizontal). 1 if None.
        upper_limit_stride: greatest stride, at least 1, or a pair. Unlimited if None. An axis of the limit 1 passes
            through unpooled, and its stride stays 1 (but 'released' cuts a column off an odd width, and 'symmetric' at
            smoothness_factor=0 the highest frequency off an even axis).
        data_format: 'channels_last' or 'channels_first'. `keras.config.image_data_format()` if None.
        mask: 'released' computes the window of the code released with the paper; 'symmetric' weighs positive and
            negative frequencies alike on both axes, gives odd output sizes, and costs less.
        norm: normalization of the two transforms, as in `numpy.fft`. 'backward', as released, multiplies the mean by
            the ratio of the areas; 'forward' keeps the mean; 'ortho' multiplies it by the square root of the ratio.
        method: 'fft' runs the transforms, on TensorFlow only; 'matmul' multiplies by the equivalent matrices. 'auto'
            takes the faster one: 'fft' for long axes, few channels and small batches.
        static_crop: whether the output's size is fixed, at the size that the strides ask for when the layer is built,
            so that Keras, XLA and exporters know it. True needs a known input size. `refresh_crop()` and the callback
            `CropRefresh` fix the size anew. If None, the size follows the strides until XLA compiles the layer or it
            runs on a TPU, and is fixed from then on. If False, XLA, TPUs and JAX refuse the layer.
        **kwargs: for `keras.layers.Layer`, such as `name` and `dtype`.

    Raises:
        ValueError: an argument is out of range, the limits contradict each other, `shared_stride` goes with two
            different strides, or, when the layer is built or called, the input has another number of dimensions, is
            too small, or is of unknown size under a static crop.
        TypeError: an argument has the wrong type, or, when the layer is called, the input is not floating-point.

    Example:
        >>> layer = DiffStride(strides=(2.0, 4.0))
        >>> layer(np.ones([1, 32, 32, 3])).shape
        TensorShape([1, 24, 16, 3])
        >>> layer.strides.numpy().tolist()
        [2.0, 4.0]
    """

    def __init__(
        self,
        strides: Strides = (2.0, 2.0),
        smoothness_factor: float = 4.0,
        cropping: bool = True,
        trainable: bool = True,
        shared_stride: bool = False,
        lower_limit_stride: spectral.Limits = None,
        upper_limit_stride: spectral.Limits = None,
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
        self.lower_limit_stride = validated_limits("lower_limit_stride", lower_limit_stride)
        self.upper_limit_stride = validated_limits("upper_limit_stride", upper_limit_stride)
        self.mask = validated_choice("mask", mask, spectral.MASKS)
        self.static_crop = None if static_crop is None else validated_flag("static_crop", static_crop)
        if self.shared_stride and self.initial_strides[0] != self.initial_strides[1]:
            raise ValueError(f"shared_stride=True needs one stride for both axes, got strides={self.initial_strides}.")
        lower, upper = map(spectral.limits_of_axes, (self.lower_limit_stride, self.upper_limit_stride))
        if self.shared_stride and (lower[0] != lower[1] or upper[0] != upper[1]):
            raise ValueError(f"shared_stride=True needs one limit for both axes, got {lower} and {upper}.")
        if any((least or 1.0) > (most or math.inf) for least, most in zip(lower, upper)):
            raise ValueError(
                f"lower_limit_stride must not exceed upper_limit_stride, got {lower_limit_stride} and "
                f"{upper_limit_stride}."
            )
        self.supports_jit = self.static_crop is not False or not self.cropping
        self._warned_of_size = False
        self._crop = StaticCrop(
            self._windows_at, self._read_strides, is_static=bool(self.static_crop) and self.cropping
        )

    def build(self, input_shape: Sequence[int | None]) -> None:
        super().build(input_shape)
        size = self._spatial_shape(input_shape)
        if current.needs_static_shapes():
            self.fix_crop()
        minima = self._minimum_strides(size)
        constraint = self._constraint(minima)
        with current.eagerly():
            initial = ops.convert_to_numpy(constraint(np.array(self.initial_strides[: len(minima)], "float32")))
        self.strides = self.add_weight(
            name="strides",
            shape=(len(minima),),
            initializer=lambda shape, dtype: ops.convert_to_tensor(initial, dtype),
            constraint=constraint,
            dtype="float32",
            autocast=False,
        )
        current.watch(self.strides, initial, self._warn_of_outdated_graphs)
        if self.crop_is_static and (self.static_crop or None not in size):
            self._crop.at(size, initial)

    def _constraint(self, minima: Sequence[float]) -> StrideConstraint:
        lower, upper = map(spectral.limits_of_axes, (self.lower_limit_stride, self.upper_limit_stride))
        least = [max(minimum, limit or 1.0) for minimum, limit in zip(minima, lower)]
        if not isinstance(self.upper_limit_stride, tuple):
            return StrideConstraint(least, self.upper_limit_stride)
        return StrideConstraint(least, [limit or _LARGEST_STRIDE for limit in upper[: len(minima)]])

    def _minimum_strides(self, size: tuple[int | None, int | None]) -> list[float]:
        """The least value of each stride that the weight holds."""
        minima = [1.0 if n is None else spectral.minimum_stride(n, self.smoothness_factor) for n in size]
        return [max(minima)] if self.shared_stride else minima

    def call(self, inputs: spectral.Tensor, training: bool | None = None) -> spectral.Tensor:
        return self._pool(self._checked(inputs), bool(training))

    def _check_crop_when_run(self, size: Size, kept: Crop) -> None:
        """Makes a graph compare its crop with the strides whenever it runs: it may run on after they have changed."""
        advice = self._advice(f" that keeps {kept[0]} x {kept[1]} bins")
        # A crop from a file is not always what the strides ask for. XLA makes the comparison later.
        asked = self._crop.asked(size) if current.is_tracing() else kept
        current.check_beside_graph(lambda: self._asks_for(size, asked), advice)

    def _warn_of_outdated_graphs(self, strides: np.ndarray) -> None:
        """Warns if the strides of a frozen layer change, whose graphs do not compare their crops: see `_pool`."""
        if not self.trainable and self._crop.is_outdated_by(strides):
            warnings.warn(self._advice(""), stacklevel=2)

    def _advice(self, which: str) -> str:
        return (
            f"The strides of {self.path} have changed since a graph was traced{which}. "
            "diffstride_hybrid.refresh_crops(model) lets Keras trace it anew, and so does CropRefresh in fit."
        )

    def _asks_for(self, size: Size, kept: Crop) -> spectral.Tensor:
        """Whether the strides ask for this crop, as a scalar in the current graph."""
        rows, columns = self._asked_bins(size, self.strides_of_map(self.strides))
        return ops.logical_and(rows == kept[0], columns == kept[1])

    def sizes_at(self, size: Size, strides: np.ndarray) -> np.ndarray:
        """The sizes of the output of a layer that crops, for strides that need not be its own.

        Args:
            size: height and width of the input.
            strides: float32 `[m, 2]`, or `[m, 1]` if the layer has one stride.

        Returns:
            Whole numbers `[m, 2]`, height and width for each row of `strides`.
        """
        with current.eagerly():
            kept = self._asked_bins(size, self.strides_of_map(strides.T))
            rows, columns = map(ops.convert_to_numpy, kept)
        return np.stack(np.broadcast_arrays(rows, self._samples(columns, size[1])), axis=1)

    def _asked_bins(self, size: Size, strides: spectral.Tensor) -> tuple[spectral.Tensor, spectral.Tensor]:
        """The kept rows and columns that strides ask for, as tensors."""
        return spectral.asked_bins(*size, strides, dtype=self._window_dtype(), **self._window_options())

    def _samples(self, columns: Any, width: int) -> Any:
        """The width of the output if some columns of the one-sided spectrum are kept."""
        return np.maximum(2 * (columns - 1), 1) if self.mask == "released" else np.minimum(2 * columns - 1, width)

    def strides_of_map(self, strides: Any) -> spectral.Tensor:
        """The strides along both axes of a map; a signal is a map of one row, whose vertical stride is 1.

        Args:
            strides: as the weight `strides` holds them.

        Returns:
            The vertical and the horizontal stride, or the one that both axes share.
        """
        return ops.convert_to_tensor(strides)

    def _pool(self, inputs: spectral.Tensor, training: bool = False) -> spectral.Tensor:
        if current.needs_static_shapes() or (self.crop_is_static and not current.SIZES_ARE_KNOWN):
            self._keep_size(training)
        size = self._spatial_shape(inputs.shape)
        is_known = self.crop_is_static or (self.cropping and current.SIZES_ARE_KNOWN)
        kept = self._crop.at(size, training=training) if is_known else None
        # On JAX the comparison calls back to Python, which an exported function cannot. A frozen layer can be exported.
        can_change = self.trainable or not current.SIZES_ARE_KNOWN
        if kept is not None and not training and can_change and self._crop.held != StaticCrop.ALL:
            self._check_crop_when_run(size, kept)
        return self._pool_to(kept, inputs)

    def _keep_size(self, training: bool) -> None:
        """Makes the crop static, and warns if the strides are trained and nothing lets the crop follow them."""
        is_new = not self.crop_is_static
        if is_new:
            self.fix_crop()
        # TensorFlow's crops become static here. JAX's are so from the start, but matter only when a step is compiled.
        is_late = current.SIZES_ARE_KNOWN or not current.needs_static_shapes()
        is_stuck = is_late and training and current.is_tracing() and self.static_crop is None and not self._crop.held
        if self.crop_is_static and self.trainable and (is_new or is_stuck) and not self._warned_of_size:
            self._warned_of_size = True
            warnings.warn(
                f"XLA {'compiles' if current.needs_static_shapes() else 'once fixed'} {self.path}: its output keeps "
                "the size that its strides ask for now. The callback diffstride_hybrid.CropRefresh lets it follow them"
                + ("." if current.SIZES_ARE_KNOWN else ", and so does a new model without XLA."),
                stacklevel=2,
            )

    def _pool_to(self, kept: Crop | None, inputs: spectral.Tensor) -> spectral.Tensor:
        """Pools to a fixed number of bins, or to the number that the strides ask for if None."""
        return spectral.diffstride(
            inputs,
            ops.convert_to_tensor(self.strides),
            cropping=self.cropping,
            kept=kept,
            trainable=self.trainable,
            at_most=self.largest_map,
            **self._window_options(),
            **self._options(),
        )

    @property
    def crop_is_static(self) -> bool:
        """Whether the output's size is fixed, by `static_crop=True`, by `fix_crop` or because XLA needs it."""
        return self._crop.is_static

    @property
    def crop(self) -> StaticCrop:
        """The static crop itself, for what keeps whole models in step, such as `model_tools.crop_refresh`."""
        return self._crop

    @property
    def crops(self) -> dict[Size, Crop]:
        """The kept bins (rows, columns) for each input (height, width) met so far. Empty if the crop is dynamic.

        They belong to the present strides, except while they are held. On JAX and PyTorch they are there for any crop.
        """
        return self._crop.crops

    @crops.setter
    def crops(self, crops: Mapping[Size, Crop]) -> None:
        self._crop.crops = crops

    def fix_crop(self) -> None:
        """Makes the crop static from now on, as XLA and TPUs need it; there the layer calls this by itself.

        A layer with `cropping=False` has nothing to fix.

        Raises:
            ValueError: the layer has `static_crop=False`.
        """
        if not self.cropping:
            return
        if self.static_crop is False:
            raise ValueError(
                f"{self.path} has static_crop=False: XLA, TPUs and JAX need a static crop, so leave it at None."
            )
        self._crop.is_static = True

    def refresh_crop(self, hysteresis: float = 0.0) -> bool:
        """Fixes a static crop to the size that the strides ask for now, at every input size met so far.

        A layer that is called eagerly, or traced, follows its strides by itself. A `tf.function` that was traced before
        a change must be traced again. Later layers go on working if they accept any size.
        `diffstride_hybrid.refresh_crops` does this for a whole model.

        Args:
            hysteresis: how far past the boundary between two sizes a stride must be before the crop changes size, as a
                share of the stride. 0 changes it at once; 0.02 keeps a stride that wavers at a boundary from causing a
                change each time.

        Returns:
            Whether the crop changed, or differs from that in a graph traced before.
        """
        return self._crop.refresh(hysteresis)

    def forget_crop(self, hysteresis: float = 0.0) -> None:
        """Lets a static crop be fixed anew at each input size when the size is next met.

        Args:
            hysteresis: how far past the boundary between two sizes a stride must be before the crop changes size, as a
                share of the stride. 0 changes it at once.
        """
        self._crop.forget(hysteresis)

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
        # JAX makes each crop static, which tells nothing about the next backend.
        if self.built and self.crop_is_static and (self.static_crop or current.NAME != "jax"):
            store["crops"] = self._crop.as_array()

    def load_own_variables(self, store: Any) -> None:
        super().load_own_variables({name: store[name] for name in set(store.keys()) - {"crops"}})
        if self.built and self.static_crop is not False and self.cropping and "crops" in store:
            self._crop.restore(np.array(store["crops"]), self._read_strides())
        elif self.built:
            self._crop.set_anew(hysteresis=0.0)  # A graph that was traced before is outdated still.

    def _unequal_frequencies(self) -> int | None:
        return spectral.unequal_frequencies(self.smoothness_factor) if self.mask == "released" else None

    def _pooled_shape(self, height: int | None, width: int | None) -> tuple[int | None, int | None]:
        if not self.cropping and None not in (height, width):
            return height, width if self.mask == "symmetric" else max(width - width % 2, 1)
        is_fixed = self.static_crop if current.SIZES_ARE_KNOWN else self.crop_is_static
        if not is_fixed or not self.built or None in (height, width):
            return None, None
        rows, columns = self._crop.at((height, width))
        return rows, int(self._samples(columns, width))

    def _window_options(self) -> dict[str, Any]:
        return {
            "smoothness_factor": self.smoothness_factor,
            "lower_limit_stride": self.lower_limit_stride,
            "upper_limit_stride": self.upper_limit_stride,
            "mask": self.mask,
        }

    def _read_strides(self) -> np.ndarray | None:
        return current.value_of(self.strides)

    def _windows(self, height: int, width: int) -> tuple[spectral.Window | None, spectral.Window]:
        kept = self._crop.at((height, width)) if self.crop_is_static else None
        return self._windows_at((height, width), self._read_strides(), kept)

    def _windows_at(
        self, size: Size, strides: np.ndarray | spectral.Tensor, kept: Crop | None
    ) -> tuple[spectral.Window | None, spectral.Window]:
        """The windows over a map of this size for strides that may differ from the weight, eagerly if they are."""
        return spectral.diffstride_windows(
            *size,
            ops.convert_to_tensor(strides),
            cropping=self.cropping,
            kept=kept,
            dtype=self._window_dtype(),
            **self._window_options(),
        )
