"""The figures of one run, drawn from its CSV files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffstride_hybrid.run_folder import RunFolder

# Okabe and Ito's palette, which people with any common colour blindness can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def write_figures(folder: RunFolder) -> None:
    """Draws `figures/curves.png` and `figures/strides.png` from a run's `metrics.csv` and `strides.csv`."""
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
        for prefix, label, colour in (("", "training", COLOURS[0]), ("val_", "validation", COLOURS[1])):
            if f"{prefix}{name}" in metrics:
                scale = 100 if unit else 1
                values = [scale * value for value in metrics[f"{prefix}{name}"]]
                axis.plot(metrics["epoch"], values, color=colour, label=label, marker=".")
        axis.set_xlabel("epoch")
        axis.set_ylabel(f"{name}{unit}")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


def _strides(columns: Mapping[str, Sequence[float]]) -> Any:
    from matplotlib.figure import Figure

    names = [name.removesuffix("/vertical_stride") for name in columns if name.endswith("/vertical_stride")]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    stride_axis, size_axis = figure.subplots(1, 2)
    for i, name in enumerate(names):
        colour = COLOURS[i % len(COLOURS)]
        stride_axis.plot(columns["epoch"], columns[f"{name}/vertical_stride"], color=colour, label=f"{name}, vertical")
        stride_axis.plot(
            columns["epoch"], columns[f"{name}/horizontal_stride"], color=colour, ls="--", label=f"{name}, horizontal"
        )
        size_axis.plot(columns["epoch"], columns[f"{name}/height"], color=colour)
        size_axis.plot(columns["epoch"], columns[f"{name}/width"], color=colour, ls="--")
    for axis, label in ((stride_axis, "stride"), (size_axis, "output height, width (samples)")):
        axis.set_xlabel("epoch")
        axis.set_ylabel(label)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    figure.set_size_inches(9, 3.6 + 0.2 * len(names))
    return figure


def _columns(rows: Sequence[Mapping[str, str]]) -> dict[str, list[float]]:
    return {name: [float(row[name]) for row in rows] for name in rows[0]} if rows else {}
