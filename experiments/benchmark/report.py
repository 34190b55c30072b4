"""The results of the benchmark as printed lines, Markdown tables, a CSV file and a figure."""

from __future__ import annotations

import itertools
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from diffstride_hybrid.common import markdown
from diffstride_hybrid.common.files import rows_as_text, write_whole
from diffstride_hybrid.runs.figures import COLORS

Row = Mapping[str, Any]

_VARIANTS = {
    "layer": ("released", "symmetric"),
    "sizes": ("released", "symmetric"),
    "step": ("diffstride", "hybrid", "slice", "strided"),
}


def line(row: Row) -> str:
    """Writes a row for people to read while the benchmark runs.

    Args:
        row: as `driver.measure` returns it.

    Returns:
        One line.
    """
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


def tables(rows: Sequence[Row]) -> str:
    """Makes a table for each part: times, and beside a release how many times faster and with what share of its memory.

    Args:
        rows: as `driver.measure` returns them.

    Returns:
        Markdown tables with a column for each dtype.
    """
    texts = []
    for part, variants in _VARIANTS.items():
        here = [row for row in rows if row["part"] == part and row["variant"] in (*variants, "release")]
        if not here:
            continue
        dtypes = list(dict.fromkeys(row["dtype"] for row in here))
        lines = []
        for (place, variant), found in itertools.groupby(here, key=lambda row: (row["place"], row["variant"])):
            cells = {row["dtype"]: row for row in found}
            first = next(iter(cells.values()))
            counted = "" if first["macs"] is None else f"{first['macs'] / 1e6:,.1f} M"
            times = [_cell(cells.get(dtype)) for dtype in dtypes]
            lines.append([place, variant, str(first["batch"]), counted, *times])
        table = markdown.table([part, "implementation", "batch", "MACs an image", *dtypes], lines)
        texts.append("\n".join([table, *_mean_lines(part, here, variants, dtypes)]))
    engines = [row for row in rows if row["part"] == "engines"]
    return "\n\n".join([*texts, *([_engines_table(engines)] if engines else [])])


def _engines_table(rows: Sequence[Row]) -> str:
    """Makes the table of both engines at each size, and of the share of the better engine's time that 'auto' takes."""
    lines = []
    for place, found in itertools.groupby(rows, key=lambda row: row["place"]):
        at_place = {row["variant"]: row for row in found}
        engines = [at_place.get("matmul"), at_place["fft"]]
        better = min(row["least"] for row in engines if row)
        shares = [f"{row['least'] / better:.2f}" for name, row in at_place.items() if name.startswith("auto")]
        times = [f"{row['least']:,.2f} ms" if row else "" for row in engines]
        lines.append([place, str(at_place["fft"]["batch"]), *times, *shares])
    head = ["engines", "batch", "matmul", "fft", "auto / better engine", "auto, size unknown / better engine"]
    return markdown.table(head, lines)


def write(path: pathlib.Path, rows: Sequence[Row]) -> None:
    """Writes all rows to a CSV file, and beside it a PNG figure of the times.

    Args:
        path: of the CSV file. Its folder is made if it does not exist.
        rows: at least one, as `driver.measure` returns them.

    Raises:
        OSError: a file cannot be written.
    """
    write_whole(path, rows_as_text(list(rows[0]), rows))
    figure = draw(rows)
    if figure is not None:
        figure.savefig(path.with_suffix(".png"), dpi=120)


def draw(rows: Sequence[Row]) -> Figure | None:
    """Draws the times of each place in a panel of its own, with the range of the repeats.

    The many places of the part 'engines' are left out.

    Args:
        rows: as `driver.measure` returns them.

    Returns:
        A figure, or None if the rows have no place.
    """
    places = list(
        dict.fromkeys((row["part"], row["place"]) for row in rows if row["part"] not in ("machine", "engines"))
    )
    if not places:
        return None
    columns = min(5, len(places))
    lines = -(-len(places) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.6 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for panel, (part, place) in zip(panels, places):
        here = [row for row in rows if (row["part"], row["place"]) == (part, place)]
        middle = [row["milliseconds"] for row in here]
        spread = [
            [row["milliseconds"] - row["least"] for row in here],
            [row["most"] - row["milliseconds"] for row in here],
        ]
        colors = [COLORS[row["variant"] == "release"] for row in here]
        panel.barh([f"{row['variant']}, {row['dtype']}" for row in here], middle, color=colors)
        panel.errorbar(middle, range(len(here)), xerr=spread, fmt="none", ecolor="black", elinewidth=0.8)
        panel.set_xlim(0, 1.15 * max(middle))
        panel.invert_yaxis()
        panel.set_xlabel("forward and backward (ms)")
        panel.set_title(f"{place}, batch {here[0]['batch']}", fontsize=9)
        panel.tick_params(axis="y", labelsize=7)
    for panel in panels[len(places) :]:
        panel.set_visible(False)
    return figure


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


def _mean_lines(part: str, rows: Sequence[Row], variants: Sequence[str], dtypes: Sequence[str]) -> list[str]:
    """Writes the geometric means over the places of the layer as lines of its table, if there is a release."""
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
