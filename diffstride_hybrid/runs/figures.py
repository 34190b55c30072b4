"""The figures of one run, drawn from its CSV files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffstride_hybrid.runs.folder import RunFolder

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The palette of Okabe and Ito. People with any common kind of color blindness can tell its colors apart."""


def write_figures(folder: RunFolder) -> None:
    """Draws the figures of a run into its folder.

    `metrics.csv` becomes `figures/curves.png`. `strides.csv` becomes `figures/strides.png` if the run learned strides.

    Args:
        folder: of a run. A CSV file that is missing gives no figure.

    Raises:
        OSError: a figure cannot be written.
    """
    metrics = _columns(folder.read_rows("metrics.csv"))
    if metrics:
        folder.write_figure("figures/curves.png", _curves(metrics))
    strides = _columns(folder.read_rows("strides.csv"))
    if any(name.endswith("_stride") for name in strides):
        folder.write_figure("figures/strides.png", _strides(strides))


def _curves(metrics: Mapping[str, Sequence[float]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name, unit in zip(axes, ("loss", "accuracy"), ("", " (%)")):
        for prefix, label, color in (("", "training", COLORS[0]), ("val_", "validation", COLORS[1])):
            if f"{prefix}{name}" in metrics:
                scale = 100 if unit else 1
                values = [scale * value for value in metrics[f"{prefix}{name}"]]
                axis.plot(metrics["epoch"], values, color=color, label=label, marker=".")
        _finish_axis(axis, f"{name}{unit}")
        axis.legend()
    return figure


def _strides(columns: Mapping[str, Sequence[float]]) -> Any:
    from matplotlib.figure import Figure

    names = [name.removesuffix("/vertical_stride") for name in columns if name.endswith("/vertical_stride")]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    stride_axis, size_axis = figure.subplots(1, 2)
    for i, name in enumerate(names):
        color = COLORS[i % len(COLORS)]
        stride_axis.plot(columns["epoch"], columns[f"{name}/vertical_stride"], color=color, label=f"{name}, vertical")
        stride_axis.plot(
            columns["epoch"], columns[f"{name}/horizontal_stride"], color=color, ls="--", label=f"{name}, horizontal"
        )
        size_axis.plot(columns["epoch"], columns[f"{name}/height"], color=color)
        size_axis.plot(columns["epoch"], columns[f"{name}/width"], color=color, ls="--")
    for axis, label in ((stride_axis, "stride"), (size_axis, "output height, width (samples)")):
        _finish_axis(axis, label)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.set_size_inches(9, 3.6 + 0.2 * len(names))
    return figure


def _finish_axis(axis: Any, label: str) -> None:
    axis.set_xlabel("epoch")
    axis.set_ylabel(label)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)


def _columns(rows: Sequence[Mapping[str, str]]) -> dict[str, list[float]]:
    return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}
