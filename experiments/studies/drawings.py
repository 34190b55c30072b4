"""Draws the figures of a study, from the rows of its CSV files, a trained network and images."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator

from diffstride_hybrid import DiffStride, FixedSpectralPooling, SpatialPooling, SpectralPooling, spectral
from diffstride_hybrid.model_tools.inspection import diffstride_layers, short_path, watched_calls
from diffstride_hybrid.runs.figures import COLORS
from experiments.studies.records import Row
from experiments.studies.study import MEASURES, Study, column_title

MARKERS = "osD^vPX*"

WINDOW_LEVELS = (0.02, 0.5, 0.98)
"""Weights of a window at which a line is drawn."""


def curves(study: Study, epochs: Sequence[Row], methods: Sequence[str]) -> Figure:
    """Draws accuracy (%) and loss (nats) against epoch, as the mean and the range over the seeds.

    Args:
        study: the study whose strides or variants the figure has.
        epochs: rows of the runs' epochs on one data set, as `records.record` returns them.
        methods: names of the methods to draw, seven at most.

    Returns:
        A figure with a column for each choice of strides or variant.
    """
    axis, columns = study.columns()
    figure = Figure(figsize=(max(6.0, 3.2 * len(columns) + 0.6), 5.6), layout="constrained")
    grid = figure.subplots(2, len(columns), sharex=True, sharey="row", squeeze=False)
    for (row, (name, label, scale)), (column, value) in itertools.product(
        enumerate((("accuracy", "accuracy (%)", 100), ("loss", "loss (nats)", 1))), enumerate(columns)
    ):
        axes = grid[row][column]
        for method, color in zip(methods, COLORS):
            of_method = [line for line in epochs if line["method"] == method and line[axis] == value]
            for prefix, part, style in (("", "training", "--"), ("val_", "validation", "-")):
                _band(axes, of_method, prefix + name, scale, color, style, f"{method}, {part}")
        _finish(axes, "epoch" if row else "", label if column == 0 else "")
        if name == "loss":
            axes.set_yscale("log")
            label_plainly(axes.yaxis)
        if row == 0:
            axes.set_title(column_title(axis, value), fontsize=10)
    _legend_below(figure, grid[0][0], columns=len(methods))
    return figure


def learned_strides(study: Study, epochs: Sequence[Row], method: str) -> Figure:
    """Draws the strides of each layer against epoch, as the mean and the range over the seeds.

    Args:
        study: the study whose strides or variants the figure has.
        epochs: rows of the runs' epochs on one data set, as `records.record` returns them.
        method: name of a method with learned strides.

    Returns:
        A figure with a column for each choice of strides or variant.
    """
    axis, columns = study.columns()
    of_method = [line for line in epochs if line["method"] == method]
    layers = [name.removesuffix("/vertical_stride") for name in of_method[0] if name.endswith("/vertical_stride")]
    figure = Figure(figsize=(max(6.5, 3.2 * len(columns) + 0.6), 4.4), layout="constrained")
    grid = figure.subplots(1, len(columns), sharey=True, squeeze=False)
    for axes, value in zip(grid[0], columns):
        lines = [line for line in of_method if line[axis] == value]
        for layer, color in zip(layers, COLORS):
            label = layer.replace("/layer_1/pooling", "").replace("pooling", "first convolution").replace("_", " ")
            for way, style in (("vertical", "-"), ("horizontal", "--")):
                _band(axes, lines, f"{layer}/{way}_stride", 1, color, style, f"{label}, {way}")
        _finish(axes, "epoch", "stride" if axes is grid[0][0] else "")
        axes.set_title(column_title(axis, value), fontsize=10)
    _legend_below(figure, grid[0][0], columns=4)
    return figure


def accuracy_against_macs(study: Study, rows: Sequence[Row]) -> Figure:
    """Draws accuracy (%) against the MACs of an image (millions), as means over the seeds with standard deviations.

    Args:
        study: the study whose methods, strides and variants the figure has.
        rows: rows of the runs on one data set, as `records.record` returns them.

    Returns:
        A figure in which the color shows the method, and the marker the strides or the variant. Methods of one curve
        have one color, and a line joins them.
    """
    axis, columns = study.columns()
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    curves = dict(zip(dict.fromkeys(method.curve or method.name for method in study.methods), itertools.cycle(COLORS)))
    marked = list(zip(columns, itertools.cycle(MARKERS)))
    points: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for method, (value, marker) in itertools.product(study.methods, marked):
        cell = [row for row in rows if row["method"] == method.name and row[axis] == value]
        if not cell:
            continue
        curve = method.curve or method.name
        accuracies = [100 * float(row[MEASURES[study.measure]]) for row in cell]
        point = statistics.fmean(float(row["macs"]) / 1e6 for row in cell), statistics.fmean(accuracies)
        points.setdefault((curve, value), []).append(point)
        axes.errorbar(
            *point,
            yerr=statistics.stdev(accuracies) if len(cell) > 1 else None,
            color=curves[curve],
            marker=marker,
            markersize=8,
            capsize=3,
            linestyle="none",
        )
    for (curve, _), of_curve in points.items():
        axes.plot(*zip(*of_curve), color=curves[curve], linewidth=1)
    for curve, color in curves.items():
        axes.plot([], [], color=color, marker="s", linestyle="none", label=curve)
    for value, marker in marked:
        axes.plot([], [], color="0.4", marker=marker, linestyle="none", label=column_title(axis, value))
    least, *_, most = sorted(float(row["macs"]) for row in [*rows, *rows])
    if most > 4 * least:
        axes.set_xscale("log")
        label_plainly(axes.xaxis)
    _finish(
        axes, "million MACs of convolutions an image, after training", f"{study.measure} accuracy (%)", whole_x=False
    )
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    return figure


def windows(model: keras.Model, images: np.ndarray, strides_at_start: Mapping[str, Sequence[float]]) -> Figure:
    """Draws each `DiffStride` layer's window over the spectrum of the map that it pools, before and after training.

    Args:
        model: a trained network.
        images: float32 `[batch, height, width, channels]`, normalized as the network takes them.
        strides_at_start: (vertical, horizontal) strides of each layer before training, by its path within the model.

    Returns:
        A figure with a column for each layer.
    """
    maps = _pooled_maps(model, images)
    figure = Figure(figsize=(2.6 * len(maps) + 0.8, 5.8), layout="constrained")
    grid = figure.subplots(2, len(maps), squeeze=False)
    for column, (path, (layer, feature_map)) in enumerate(maps.items()):
        stages = (("before training", strides_at_start[path]), ("after training", layer.strides.numpy()))
        for row, (when, strides) in enumerate(stages):
            axes = grid[row][column]
            image = _draw_spectrum(axes, feature_map)
            _draw_window(axes, layer, strides, feature_map.shape[1:3])
            axes.set_title(f"{_layer_title(path)}\n{when}: {strides[0]:.2f}, {strides[-1]:.2f}", fontsize=9)
            axes.set_xlabel("horizontal frequency (cycles)" if row else "")
            axes.set_ylabel("" if column else "vertical frequency (cycles)")
    figure.colorbar(image, ax=grid, label="mean magnitude (dB of the greatest)", shrink=0.7)
    figure.suptitle(
        "Over the maps of the trained network, the window's weight: 0.02 on the solid line, 0.5 on the dashed, 0.98 on "
        "the dotted",
        fontsize=9,
    )
    return figure


def poolings(images: np.ndarray) -> Figure:
    """Draws images before and after each pooling at stride 2.

    Args:
        images: float32 `[batch, height, width, channels]` with one channel or three, from 0 to 1.

    Returns:
        A figure with a row for each image.
    """
    keeps_mean = {"norm": "forward"}
    layers: dict[str, Callable[[np.ndarray], Any]] = {
        "image": lambda maps: maps,
        "strided\nsampling": SpatialPooling(strides=2),
        "max pooling": keras.layers.MaxPooling2D(2),
        "average\npooling": keras.layers.AveragePooling2D(2),
        "FixedSpectral-\nPooling": FixedSpectralPooling(strides=2, **keeps_mean),
        "Spectral-\nPooling": SpectralPooling(strides=2, **keeps_mean),
        "DiffStride,\nreleased": DiffStride(strides=2.0, **keeps_mean),
        "DiffStride,\nsymmetric": DiffStride(strides=2.0, mask="symmetric", **keeps_mean),
    }
    figure = Figure(figsize=(1.35 * len(layers), 1.35 * len(images) + 0.7), layout="constrained")
    grid = figure.subplots(len(images), len(layers), squeeze=False)
    for column, (name, layer) in enumerate(layers.items()):
        pooled = np.asarray(layer(images))
        for axes, image in zip(grid[:, column], pooled):
            axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        grid[0][column].set_title(f"{name}\n{pooled.shape[1]}x{pooled.shape[2]}", fontsize=8)
    return figure


def _draw_spectrum(axes: Axes, feature_map: np.ndarray) -> AxesImage:
    """Draws the mean magnitude of the one-sided spectrum of `[batch, height, width, channels]`, in decibels."""
    height, width = feature_map.shape[1:3]
    spectrum = np.abs(np.fft.rfft2(feature_map, axes=(1, 2))).mean((0, 3))
    return axes.imshow(
        20 * np.log10(np.fft.fftshift(spectrum, 0) / spectrum.max() + 1e-6),
        cmap="cividis",
        vmin=-50,
        vmax=0,
        aspect="auto",
        origin="lower",
        extent=(-0.5, width // 2 + 0.5, -(height // 2) - 0.5, height - height // 2 - 0.5),
    )


def _draw_window(axes: Axes, layer: DiffStride, strides: Sequence[float], size: tuple[int, int]) -> None:
    """Draws lines of equal weight of the window that a layer would have with some strides on a map of some size."""
    height, width = size
    rows, columns = spectral.diffstride_windows(
        height,
        width,
        np.asarray(strides, "float32"),
        smoothness_factor=layer.smoothness_factor,
        cropping=False,
        lower_limit_stride=layer.lower_limit_stride,
        upper_limit_stride=layer.upper_limit_stride,
        mask=layer.mask,
    )
    axes.contour(
        np.arange(width // 2 + 1),
        np.arange(height) - height // 2,
        np.fft.fftshift(rows.weights.numpy())[:, None] * columns.weights.numpy(),
        levels=WINDOW_LEVELS,
        colors="white",
        linestyles=("-", "--", ":"),
    )


def _pooled_maps(model: keras.Model, images: np.ndarray) -> dict[str, tuple[DiffStride, np.ndarray]]:
    """Finds each `DiffStride` layer and the map that it pools on the main path, by its path within the model."""
    found: dict[str, tuple[DiffStride, np.ndarray]] = {}

    def keep(layer: DiffStride, inputs: Any, outputs: Any) -> None:
        del outputs
        found.setdefault(short_path(model, layer.path), (layer, np.asarray(inputs)))

    with watched_calls(diffstride_layers(model), keep):
        model(images, training=False)
    return found


def _layer_title(path: str) -> str:
    return "first convolution" if path == "pooling" else path.split("/")[0].replace("_", " ")


def _band(axes: Axes, lines: Sequence[Row], name: str, scale: float, color: str, style: str, label: str) -> None:
    """Draws the mean over the seeds as a line and their range as a band."""
    values: dict[int, list[float]] = {}
    for line in lines:
        if line.get(name):
            values.setdefault(int(line["epoch"]), []).append(scale * float(line[name]))
    if not values:
        return
    epochs = sorted(values)
    axes.plot(epochs, [statistics.fmean(values[epoch]) for epoch in epochs], color=color, linestyle=style, label=label)
    axes.fill_between(
        epochs,
        [min(values[epoch]) for epoch in epochs],
        [max(values[epoch]) for epoch in epochs],
        color=color,
        alpha=0.15,
        linewidth=0,
    )


def _finish(axes: Axes, x: str, y: str, whole_x: bool = True) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if whole_x:
        axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)


def label_plainly(axis: Axis) -> None:
    """Labels a logarithmic axis with 1, 2, 5, 10 and so on."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:,.10g}")
    axis.set_minor_formatter("")


def _legend_below(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)
