"""What each layer that downsamples keeps of its input maps, what it aliases, and how it follows shifts.

Energy is the sum of squares of what differs from the mean of each map. All figures are about the maps that the layers
get from real images, at inference.
"""

from __future__ import annotations

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

SHIFTS = 3
"""How many random shifts the equivariance is measured with."""

Maps = np.ndarray
"""float64 `[number, height, width, channels]`."""


class PoolingAudit(NamedTuple):
    """The figures of one call of a layer that downsamples.

    Attributes:
        layer: its path within the model; from the second call on with the number of the call.
        kind: the name of its class.
        size_before: (height, width) of its input maps.
        size_after: (height, width) of its output maps.
        energy_kept: the share of the input's energy that the best linear filter recovers from the output, see
            `energy_kept`. None for convolutions, whose channels are not those of the input.
        aliased: the share of the output's energy that is owed to frequencies above its Nyquist frequency, see
            `aliased`.
        shift_error: the share by which shifting and pooling differ by their order, see `shift_error`.
    """

    layer: str
    kind: str
    size_before: tuple[int, int]
    size_after: tuple[int, int]
    energy_kept: float | None
    aliased: float
    shift_error: float


def downsampling_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Lists the layers of a model that downsample maps: poolings, and convolutions with strides.

    Args:
        model: a built model.

    Returns:
        The poolings of this package, those of Keras with strides, and convolutions with strides, in the order of the
        model. Global poolings are not among them.
    """
    return [layer for layer in leaf_layers(model) if _downsamples(layer)]


def _downsamples(layer: keras.layers.Layer) -> bool:
    if isinstance(layer, (FourierPooling, SpatialPooling)):
        # A signal has one axis. Its pooling has no map.
        return not isinstance(layer, SpectralResizing) and len(getattr(layer, "_pooled_axes", "hw")) == 2
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
    layers = downsampling_layers(model)
    found: list[PoolingAudit] = []
    calls: dict[str, int] = {}
    inside: list[keras.layers.Layer] = []

    def measured(layer: keras.layers.Layer, maps: Any, outputs: Any) -> None:
        if inside or len(maps.shape) != 4:  # A measurement calls the layer too.
            return
        inside.append(layer)
        path = short_path(model, layer.path or layer.name)  # An unbuilt layer has no path.
        calls[path] = calls.get(path, 0) + 1
        name = path if calls[path] == 1 else f"{path}, call {calls[path]}"
        found.append(_audited(layer, name, _as_maps(layer, maps), _as_maps(layer, outputs), seed))
        inside.clear()

    with watched_calls(layers, measured):
        model(inputs, training=False)
    return found


def _audited(layer: keras.layers.Layer, name: str, maps: Maps, outputs: Maps, seed: int) -> PoolingAudit:
    def pooled(values: Maps) -> Maps:
        return _as_maps(layer, layer(_as_input(layer, values), training=False))

    size = outputs.shape[1:3]
    keeps_channels = not isinstance(layer, CONVOLUTIONS)
    distances = np.random.default_rng(seed).uniform(-0.5, 0.5, (SHIFTS, 2))
    of_keras = isinstance(layer, (*POOLINGS, *CONVOLUTIONS))
    steps = layer.strides if of_keras else [n / m for n, m in zip(maps.shape[1:3], size)]
    return PoolingAudit(
        layer=name,
        kind=type(layer).__name__,
        size_before=maps.shape[1:3],
        size_after=size,
        energy_kept=energy_kept(maps, outputs) if keeps_channels else None,
        aliased=share_of_energy(outputs - pooled(low_passed(maps, size)), outputs),
        shift_error=shift_error(pooled, maps, outputs, distances, steps),
    )


def energy_kept(maps: Maps, outputs: Maps) -> float:
    """The share of the maps' energy that the best linear filter recovers from the pooled maps.

    `sum_k g(k) S_xx(k) / sum_k S_xx(k)` with the squared coherence `g = |S_xy|^2 / (S_xx S_yy)`, which is the share of
    the power at `k` that a Wiener filter recovers. The first sum runs over the frequencies up to the output's Nyquist
    frequency; the power spectra are means over images and channels. A filter that can be undone loses nothing, and a
    gain plays no part. An ideal low pass keeps the share of the energy in its band. Sampling without a filter keeps
    less, as aliases cover what lies in the band.

    Args:
        maps: `[number, height, width, channels]`.
        outputs: the pooled maps, `[number, smaller height, smaller width, channels]`.

    Returns:
        A share from 0 to 1; 1 if the maps are constant.

    Example:
        >>> maps = np.random.default_rng(0).normal(size=(4, 8, 8, 2))
        >>> round(energy_kept(maps, 3 * maps), 6)
        1.0
    """
    before, after = (np.fft.fft2(values, axes=(1, 2)) for values in (_less_mean(maps), _less_mean(outputs)))
    (rows, own_rows), (columns, own_columns) = (
        _frequencies_in_band(n, m) for n, m in zip(maps.shape[1:3], outputs.shape[1:3])
    )
    in_band = before[:, rows[:, None], columns]
    pooled = after[:, own_rows[:, None], own_columns]
    power_before, power_after = ((np.abs(values) ** 2).mean((0, 3)) for values in (in_band, pooled))
    cross = np.abs((in_band * pooled.conj()).mean((0, 3))) ** 2
    total = (np.abs(before) ** 2).mean((0, 3)).sum()
    # What lies this far below the strongest frequency is rounding.
    present = power_after > 1e-12 * power_after.max(initial=0)
    recovered = np.where(present, cross / np.where(present, power_after, 1), 0)
    return float(min(1.0, np.minimum(recovered, power_before).sum() / total)) if total > 0 else 1.0


def low_passed(maps: Maps, size: Sequence[int]) -> Maps:
    """Removes what lies above the Nyquist frequencies of a smaller size: an ideal, periodic low pass.

    Args:
        maps: `[number, height, width, channels]`.
        size: (height, width). The frequency of half a length is kept.

    Returns:
        Maps of the shape of `maps`.
    """
    rows, columns = (np.abs(np.fft.fftfreq(n, 1 / n)) <= m / 2 for n, m in zip(maps.shape[1:3], size))
    spectrum = np.fft.fft2(maps, axes=(1, 2)) * rows[:, None, None] * columns[:, None]
    return np.fft.ifft2(spectrum, axes=(1, 2)).real


def shift_error(
    pooled: Callable[[Maps], Maps], maps: Maps, outputs: Maps, distances: np.ndarray, steps: Sequence[float]
) -> float:
    """How much the order of shifting and pooling matters: `|pool(shift(x)) - shift(pool(x))|^2 / |pool(x)|^2`.

    The shifts are circular, by fractions of an output sample. StyleGAN3 gives the same as a signal-to-noise ratio
    (Karras et al., arXiv 2106.12423, section 2).

    Args:
        pooled: pools maps.
        maps: `[number, height, width, channels]`.
        outputs: `pooled(maps)`.
        distances: (down, right) in output samples, `[shifts, 2]`.
        steps: the distance of output samples in input samples, along height and width.

    Returns:
        The mean over the shifts; 0 for a pooling that commutes with every shift.
    """
    errors = [
        share_of_energy(pooled(shifted_maps(maps, shift * steps)) - shifted_maps(outputs, shift), outputs)
        for shift in distances[:, None]
    ]
    return float(np.mean(errors))


def share_of_energy(part: Maps, whole: Maps) -> float:
    """The energy of a part divided by that of the whole. Energy is that of what differs from the mean of a map.

    Args:
        part: `[number, height, width, channels]`.
        whole: of the same shape.

    Returns:
        The share; 0 if the whole has no energy.
    """
    energy = np.sum(_less_mean(whole) ** 2)
    # A constant map in float32 has an energy by rounding alone.
    return float(np.sum(_less_mean(part) ** 2) / energy) if energy > 1e-12 * np.sum(whole**2) else 0.0


def _frequencies_in_band(length: int, smaller: int) -> tuple[np.ndarray, np.ndarray]:
    """The indices of frequencies up to half a smaller length, in a spectrum of the length and in one of the smaller."""
    frequencies = np.fft.fftfreq(length, 1 / length).astype(int)
    inside = np.abs(frequencies) <= smaller / 2
    return np.flatnonzero(inside), frequencies[inside] % smaller


def _less_mean(maps: Maps) -> Maps:
    return maps - maps.mean((1, 2), keepdims=True)


def _as_maps(layer: keras.layers.Layer, values: Any) -> Maps:
    maps = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(values, "float32")), np.float64)
    return np.moveaxis(maps, 1, -1) if layer.data_format == "channels_first" else maps


def _as_input(layer: keras.layers.Layer, maps: Maps) -> Any:
    maps = np.moveaxis(maps, -1, 1) if layer.data_format == "channels_first" else maps
    return keras.ops.cast(keras.ops.convert_to_tensor(maps.astype(np.float32)), layer.compute_dtype)
