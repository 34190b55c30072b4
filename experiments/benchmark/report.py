"""What `experiments.benchmark` makes of its rows: lines, a Markdown table, a CSV file and a figure."""

from __future__ import annotations

import csv
import itertools
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]

_VARIANTS = {
    "layer": ("released", "symmetric"),
    "sizes": ("released", "symmetric"),
    "step": ("diffstride", "hybrid", "slice", "strided"),
}


def line(row: Row) -> str:
    """A row for people to read while the benchmark goes on."""
    text = (
        f"{row['part']:<8}{row['place']:<20}{row['variant']:<20}{row['dtype']:<10}{row['milliseconds']:>9.2f} ms "
        f"({row['least']:.2f} to {row['most']:.2f})"
    )
    if row["part"] == "machine":
        return f"{text}  {2 * row['macs'] / row['milliseconds'] / 1e6:.0f} GFLOP/s"
    if row["megabytes"] is not None:
        text += f"  {row['megabytes']:.0f} MB"
    if row["times_faster"] is not None:
        text += f"  {row['times_faster']:.2f}x the release"
    if row["memory_ratio"] is not None:
        text += f" with {row['memory_ratio']:.2f} of its memory"
    return text


def markdown(rows: Sequence[Row]) -> str:
    """A table of each part: times, and against the release how many times faster and with what share of its memory."""
    tables = []
    for part, variants in _VARIANTS.items():
        here = [row for row in rows if row["part"] == part and row["variant"] in (*variants, "release")]
        if not here:
            continue
        dtypes = list(dict.fromkeys(row["dtype"] for row in here))
        table = [f"| {part} | implementation | batch | MACs an image | {' | '.join(dtypes)} |"]
        table.append("| --- " * (4 + len(dtypes)) + "|")
        for (place, variant), found in itertools.groupby(here, key=lambda row: (row["place"], row["variant"])):
            cells = {row["dtype"]: row for row in found}
            first = next(iter(cells.values()))
            counted = "" if first["macs"] is None else f"{first['macs'] / 1e6:,.1f} M"
            times = " | ".join(_cell(cells.get(dtype)) for dtype in dtypes)
            table.append(f"| {place} | {variant} | {first['batch']} | {counted} | {times} |")
        table += _mean_rows(part, here, variants, dtypes)
        tables.append("\n".join(table))
    return "\n\n".join(tables)


def write_csv(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Writes all rows."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_figure(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Draws the times of every place, one panel each, with the range of the repeats."""
    from matplotlib.figure import Figure

    places = list(dict.fromkeys((row["part"], row["place"]) for row in rows if row["part"] != "machine"))
    if not places:
        return
    columns = min(5, len(places))
    lines = -(-len(places) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.6 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for panel, (part, place) in zip(panels, places):
        here = [row for row in rows if (row["part"], row["place"]) == (part, place)]
        middle = [row["milliseconds"] for row in here]
        spread = [
            [row["milliseconds"] - row["least"] for row in here],
            [row["most"] - row["milliseconds"] for row in here],
        ]
        colours = ["#D55E00" if row["variant"] == "release" else "#0072B2" for row in here]
        panel.barh([f"{row['variant']}, {row['dtype']}" for row in here], middle, color=colours)
        panel.errorbar(middle, range(len(here)), xerr=spread, fmt="none", ecolor="black", elinewidth=0.8)
        panel.set_xlim(0, 1.15 * max(middle))
        panel.invert_yaxis()
        panel.set_xlabel("forward and backward (ms)")
        panel.set_title(f"{place}, batch {here[0]['batch']}", fontsize=9)
        panel.tick_params(axis="y", labelsize=7)
    for panel in list(panels):
        panel.set_visible(False)
    figure.savefig(path, dpi=120)


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    parts = [f"{row['milliseconds']:,.0f} ms"]
    if row["times_faster"] is not None and row["variant"] != "release":
        parts.append(f"{row['times_faster']:.2f}x")
    if row["memory_ratio"] is not None and row["variant"] != "release":
        parts.append(f"{row['memory_ratio']:.2f} of the memory")
    elif row["megabytes"] is not None:
        parts.append(f"{row['megabytes']:,.0f} MB")
    return ", ".join(parts)


def _mean_rows(part: str, rows: Sequence[Row], variants: Sequence[str], dtypes: Sequence[str]) -> list[str]:
    """Geometric means over the places of the layer, where there is a release to compare with."""
    means = []
    for variant in variants if part == "layer" else ():
        cells = []
        for dtype in dtypes:
            here = [row for row in rows if (row["variant"], row["dtype"]) == (variant, dtype) and row["times_faster"]]
            cell = f"{statistics.geometric_mean(row['times_faster'] for row in here):.2f}x" if here else ""
            if here and all(row["memory_ratio"] for row in here):
                cell += f", {statistics.geometric_mean(row['memory_ratio'] for row in here):.2f} of the memory"
            cells.append(cell)
        if any(cells):
            means.append(f"| geometric mean | {variant} | | | {' | '.join(cells)} |")
    return means
