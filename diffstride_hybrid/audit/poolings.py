"""The energy that each layer that downsamples keeps and aliases, and how it follows shifts.

Energy is the sum of squares of the differences to the mean of each map. The maps are those that the layers get from
real images, at inference. They are continued circularly, so that the figures belong to the layer and not to its edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from diffstride_hybrid.audit.shifts import shifted_maps
from diffstride_hybrid.layers.fourier_pooling import FourierPooling
from diffstride_hybrid.layers.spatial_pooling import SpatialPooling
from diffstride_hybrid.layers.spectral_resizing import SpectralResizing
from diffstride_hybrid.model_tools.inspection import leaf_layers, short_path, watched_calls
from diffstride_hybrid.model_tools.selection import CONVOLUTIONS, POOLINGS

IMAGES = 64
"""How many images the layers are measured with."""

SHIFTS = 3
"""How many random shifts the equivariance is measured with."""

_LEAST_SAMPLES = 30
"""The fewest maps, counted over images and channels, from which a coherence is told."""

_MOST_NUMBERS = 1 << 24
"""The most numbers in the maps of a layer that are measured. Of larger maps fewer images are taken."""

Maps = np.ndarray
"""float64 `[number, height, width, channels]`."""

Pool = Callable[[Maps], Maps]


class PoolingAudit(NamedTuple):
    """The figures of one call of a layer that downsamples. A figure is None if it cannot be measured.

    Attributes:
        layer: its path within the model; from the second call on with the number of the call.
        kind: the name of its class.
        size_before: (height, width) of its input maps.
        size_after: (height, width) of its output maps.
        energy_kept: the share of the input's energy that the best linear filter recovers from the output, see
            `energy_kept`. None for convolutions, whose channels are not those of the input.
        aliased: the share of the output's energy that frequencies above its Nyquist frequency bring, see `aliased`.
        shift_error: how much the order of shifting and pooling matters, see `shift_error`. It may exceed 1.
    """

    layer: str
    kind: str
    size_before: tuple[int, int]
    size_after: tuple[int, int]
    energy_kept: float | None
    aliased: float | None
    shift_error: float | None


def downsampling_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Lists the layers of a model that downsample maps: poolings, and convolutions with strides.

    Args:
        model: a built model.

    Returns:
        The poolings of this package, those of Keras with strides, and convolutions with strides, in the order of the
        model. Global poolings and poolings of signals are not among them.
    """
    return [layer for layer in leaf_layers(model) if _downsamples(layer)]


def _downsamples(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, FourierPooling):
        return not isinstance(layer, SpectralResizing) and len(layer._pooled_axes) == 2
    if isinstance(layer, SpatialPooling):
        return True
    return isinstance(layer, (*POOLINGS, *CONVOLUTIONS)) and max(layer.strides) > 1


def audit_poolings(model: keras.Model, inputs: Any, seed: int) -> list[PoolingAudit]:
    """Measures every call of a layer that downsamples, during one inference.

    Args:
        model: a built model.
        inputs: a batch, as the model takes it.
        seed: of the shifts.

    Returns:
        The figures in the order of the calls.
    """
    found: list[PoolingAudit] = []
    calls: dict[str, int] = {}
    inside: list[keras.layers.Layer] = []

    def measured(layer: keras.layers.Layer, maps: Any, outputs: Any) -> None:
        if inside or len(maps.shape) != 4:  # A measurement calls the layer too.
            return
        path = short_path(model, layer.path or layer.name)  # An unbuilt layer has no path.
        inside.append(layer)
        calls[path] = calls.get(path, 0) + 1
        name = path if calls[path] == 1 else f"{path}, call {calls[path]}"
        sizes = [_as_maps(layer, values[:1]).shape[1:3] for values in (maps, outputs)]
        found.append(PoolingAudit(name, type(layer).__name__, *sizes, *_figures(layer, maps, seed)))
        inside.clear()

    layers = downsampling_layers(model)
    with watched_calls(layers, measured):
        model(inputs, training=False)
    return found


def _figures(layer: keras.layers.Layer, inputs: Any, seed: int) -> tuple[float | None, float | None, float | None]:
    """Energy kept, share aliased and shift error of a layer."""
    count = max(1, _MOST_NUMBERS // math.prod(inputs.shape[1:]))
    maps = _as_maps(layer, inputs[: min(IMAGES, count)])
    # `SpatialPooling` is a pooling of Keras, and may have strides that are no whole numbers.
    of_keras = isinstance(layer, (*POOLINGS, *CONVOLUTIONS)) and all(isinstance(each, int) for each in layer.strides)
    if of_keras:
        # A period must be a whole number of strides.
        maps = maps[:, : maps.shape[1] // layer.strides[0] * layer.strides[0]]
        maps = maps[:, :, : maps.shape[2] // layer.strides[1] * layer.strides[1]]
    if 0 in maps.shape:
        return None, None, None

    def pooled(values: Maps) -> Maps:
        return _pooled_circularly(layer, values) if of_keras else _called(layer, values)

    outputs = pooled(maps)
    keeps_channels = not isinstance(layer, CONVOLUTIONS)
    distances = np.random.default_rng(seed).uniform(-0.5, 0.5, (SHIFTS, 2))
    return (
        energy_kept(maps, outputs) if keeps_channels else None,
        aliased(pooled, maps, outputs),
        shift_error(pooled, maps, outputs, distances),
    )


def energy_kept(maps: Maps, outputs: Maps) -> float | None:
    """The share of the maps' energy that the best linear filter recovers from the pooled maps.

    `sum_k g(k) S_xx(k) / sum_k S_xx(k)` with the squared coherence `g = |S_xy|^2 / (S_xx S_yy)`, the share of the power
    at `k` that a Wiener filter recovers. The first sum runs over the frequencies up to the output's Nyquist frequency.
    The spectra are means over `N` maps, those of all images and channels; as chance gives a coherence of `1 / N`, it is
    corrected to `(N g - 1) / (N - 1)`. A filter that can be undone loses nothing, and a gain plays no part. An ideal
    low pass keeps the share of the energy in its band. Sampling without a filter keeps less, as aliases cover the band.

    Args:
        maps: `[number, height, width, channels]`.
        outputs: the pooled maps, `[number, smaller height, smaller width, channels]`.

    Returns:
        A share from 0 to 1. None if the maps are constant, or if there are fewer than 30 in all.

    Example:
        >>> maps = np.random.default_rng(0).normal(size=(20, 8, 8, 2))
        >>> round(energy_kept(maps, 3 * maps), 6)
        1.0
    """
    count = maps.shape[0] * maps.shape[3]
    if count < _LEAST_SAMPLES or not _has_energy(maps):
        return None
    before, after = (np.fft.fft2(_less_mean(values), axes=(1, 2)) for values in (maps, outputs))
    (rows, own_rows), (columns, own_columns) = (
        _frequencies_in_band(n, m) for n, m in zip(maps.shape[1:3], outputs.shape[1:3])
    )
    in_band, pooled = before[:, rows[:, None], columns], after[:, own_rows[:, None], own_columns]
    power_before, power_after = ((np.abs(values) ** 2).mean((0, 3)) for values in (in_band, pooled))
    cross = np.abs((in_band * pooled.conj()).mean((0, 3))) ** 2
    product = power_before * power_after
    # What lies this far below the strongest frequency is rounding.
    present = product > 1e-12 * product.max(initial=0)
    coherence = np.where(present, cross / np.where(present, product, 1), 0)
    corrected = np.clip((count * coherence - 1) / (count - 1), 0, 1)
    return float((corrected * power_before).sum() / (np.abs(before) ** 2).mean((0, 3)).sum())


def aliased(pooled: Pool, maps: Maps, outputs: Maps) -> float | None:
    """The share of the pooled maps' energy that frequencies above their Nyquist frequency bring.

    With the maps `x`, and `x_low` from an ideal low pass at the output's Nyquist frequency: `A / (A + B)`, where
    `A = |pool(x) - pool(x_low)|^2`, the mean included, and `B` is the energy of `pool(x_low)`. For a linear pooling `A`
    is the energy that folds in.

    Args:
        pooled: pools maps.
        maps: `[number, height, width, channels]`.
        outputs: `pooled(maps)`.

    Returns:
        A share from 0 to 1. None if the pooled maps have no energy, as maps of one sample.
    """
    of_low = pooled(low_passed(maps, outputs.shape[1:3]))
    folded, remaining = np.sum((outputs - of_low) ** 2), np.sum(_less_mean(of_low) ** 2)
    if outputs.shape[1:3] == (1, 1) or not _has_energy(outputs):
        return None
    return float(folded / (folded + remaining))


def low_passed(maps: Maps, size: Sequence[int]) -> Maps:
    """Removes the frequencies above the Nyquist frequencies of a smaller size: an ideal, periodic low pass.

    Args:
        maps: `[number, height, width, channels]`.
        size: (height, width). The frequency of half a length is kept.

    Returns:
        Maps of the shape of `maps`.
    """
    rows, columns = (np.abs(np.fft.fftfreq(n, 1 / n)) <= m / 2 for n, m in zip(maps.shape[1:3], size))
    spectrum = np.fft.fft2(maps, axes=(1, 2)) * rows[:, None, None] * columns[:, None]
    return np.fft.ifft2(spectrum, axes=(1, 2)).real


def shift_error(pooled: Pool, maps: Maps, outputs: Maps, distances: np.ndarray) -> float | None:
    """How much the order of shifting and pooling matters: `|pool(shift(x)) - shift(pool(x))|^2 / |pool(x)|^2`.

    The shifts are circular, by fractions of an output sample. StyleGAN3 gives the same as a signal-to-noise ratio
    (Karras et al., arXiv 2106.12423, section 2).

    Args:
        pooled: pools maps.
        maps: `[number, height, width, channels]`.
        outputs: `pooled(maps)`.
        distances: (down, right) in output samples, `[shifts, 2]`.

    Returns:
        The mean over the shifts; 0 for a pooling that commutes with every shift. It may exceed 1. None if the pooled
        maps have no energy.
    """
    if not _has_energy(outputs):
        return None
    steps = np.array([n / m for n, m in zip(maps.shape[1:3], outputs.shape[1:3])])
    energy = np.sum(_less_mean(outputs) ** 2)
    errors = [
        np.sum((pooled(shifted_maps(maps, shift * steps)) - shifted_maps(outputs, shift)) ** 2) / energy
        for shift in distances[:, None]
    ]
    return float(np.mean(errors))


def _pooled_circularly(layer: keras.layers.Layer, maps: Maps) -> Maps:
    """The outputs of a layer of Keras for maps that go on circularly: one for each stride.

    Args:
        layer: with the sizes of its window and its strides, padded or not.
        maps: whole numbers of strides long.
    """
    window = layer.pool_size if isinstance(layer, POOLINGS) else layer.kernel_size
    dilation = getattr(layer, "dilation_rate", (1, 1))
    padding, starts = [], []
    for length, spread, stride in zip(window, dilation, layer.strides):
        reach = (length - 1) * spread + 1
        starts.append(math.ceil(reach / stride))
        padding.append((starts[-1] * stride,) * 2)
    padded = np.pad(maps, ((0, 0), *padding, (0, 0)), mode="wrap")
    rows, columns = (n // stride for n, stride in zip(maps.shape[1:3], layer.strides))
    # The first outputs of a layer that pads see its zeros.
    down, right = starts if layer.padding == "same" else (0, 0)
    return _called(layer, padded)[:, down : down + rows, right : right + columns]


def _called(layer: keras.layers.Layer, maps: Maps) -> Maps:
    values = np.moveaxis(maps, -1, 1) if layer.data_format == "channels_first" else maps
    inputs = keras.ops.cast(keras.ops.convert_to_tensor(values.astype(np.float32)), layer.compute_dtype)
    return _as_maps(layer, layer(inputs, training=False))


def _as_maps(layer: keras.layers.Layer, values: Any) -> Maps:
    maps = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(values, "float32")), np.float64)
    return np.moveaxis(maps, 1, -1) if layer.data_format == "channels_first" else maps


def _frequencies_in_band(length: int, smaller: int) -> tuple[np.ndarray, np.ndarray]:
    """The indices of frequencies up to half a smaller length, in a spectrum of the length and in one of the smaller."""
    frequencies = np.fft.fftfreq(length, 1 / length).astype(int)
    inside = np.abs(frequencies) <= smaller / 2
    return np.flatnonzero(inside), frequencies[inside] % smaller


def _less_mean(maps: Maps) -> Maps:
    return maps - maps.mean((1, 2), keepdims=True)


def _has_energy(maps: Maps) -> bool:
    # A constant map in float32 has an energy by rounding alone.
    return bool(np.sum(_less_mean(maps) ** 2) > 1e-12 * np.sum(maps**2))
