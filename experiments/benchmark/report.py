"""The results of the benchmark as printed lines, Markdown tables, a CSV file and a figure."""

from __future__ import annotations

import itertools
import math
import pathlib
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from diffstride_hybrid.common import markdown
from diffstride_hybrid.common.files import read_rows, rows_as_text, write_whole
from diffstride_hybrid.runs.figures import COLORS
from experiments.benchmark.cases import CHANNELS_FIRST

Row = Mapping[str, Any]

LEVEL = 1.05
"""Up to which ratio of their times two data formats count as level."""

_WHOLE = ("batch", "height", "channels", "macs")
_FRACTIONS = ("stride", "milliseconds", "least", "most", "megabytes", "times_faster", "memory_ratio")

_STANDING = ("benchmark", "benchmark_step", "benchmark_sizes", "engines")
"""Tables of the pages of results, named as the CSV files that have all of their rows."""

_VARIANTS = {
    "layer": ("released", "symmetric"),
    "small": ("released", "symmetric"),
    "sizes": ("released", "symmetric"),
    "step": ("diffstride", "recomputing", "hybrid", "slice", "strided"),
}


def line(row: Row) -> str:
    """Writes a row for people to read while the benchmark runs.

    Args:
        row: as `driver.measure` returns it.

    Returns:
        One line.
    """
    # On a card a pass takes some hundredths of a millisecond, and the names say more.
    digits, place_width, variant_width = (3, 29, 37) if "device" in row else (2, 20, 20)
    middle, least, most = (f"{row[name]:.{digits}f}" for name in ("milliseconds", "least", "most"))
    names = f"{row['part']:<8}{row['place']:<{place_width}}{row['variant']:<{variant_width}}{row['dtype']:<10}"
    text = f"{names}{middle:>9} ms ({least} to {most})"
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
        Markdown tables with a column for each dtype, headed by the name of the card if there is one. Where both data
        formats were timed, a table tells which is faster.
    """
    texts = []
    on_card = _on_card(rows)
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
        table = markdown.table([part + on_card, "implementation", "batch", "MACs an image", *dtypes], lines)
        texts.append("\n".join([table, *_mean_lines(part, here, variants, dtypes)]))
    engines = [row for row in rows if row["part"] == "engines"]
    texts += [text for text in (_formats_table(rows), _engines_table(engines) if engines else "") if text]
    return "\n\n".join(texts)


def standing_tables(results: pathlib.Path) -> dict[str, str]:
    """Makes the tables of speed and of the engines from the CSV files beside their pages.

    Args:
        results: the folder of the CSV files.

    Returns:
        Markdown tables by name. Of the small batches there are only the means.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is missing or is not one of the benchmark.
    """
    small = [row for row in read(results / "benchmark_small.csv") if row["part"] == "small"]
    dtypes = list(dict.fromkeys(row["dtype"] for row in small))
    head = markdown.table(["layer", "implementation", "batch", "MACs an image", *dtypes], [])
    means = "\n".join([head, *_mean_lines("small", small, _VARIANTS["small"], dtypes)])
    return {"benchmark_small": means, **{name: tables(read(results / f"{name}.csv")) for name in _STANDING}}


def _on_card(rows: Sequence[Row]) -> str:
    return f", {rows[0]['device']}" if rows and rows[0].get("device") else ""


def _formats_table(rows: Sequence[Row]) -> str:
    """Makes the table of both data formats, empty if no place was timed in both."""
    found = {(row["place"], row["variant"], row["dtype"]): row for row in rows}
    lines = []
    for (place, variant, dtype), last in found.items():
        first = found.get((place, variant + CHANNELS_FIRST, dtype))
        if first is None:
            continue
        times = [row["milliseconds"] for row in (last, first)]
        faster = "channels_last" if times[0] < times[1] else "channels_first"
        ratio = max(times) / min(times)
        verdict = f"{faster}, {ratio:.2f}x" if ratio > LEVEL else "level"
        lines.append([place, str(last["batch"]), variant, dtype, *map(_time, times), verdict])
    head = [
        f"data format{_on_card(rows)}",
        "batch",
        "implementation",
        "dtype",
        "channels_last",
        "channels_first",
        "faster",
    ]
    return markdown.table(head, lines) if lines else ""


def _engines_table(rows: Sequence[Row]) -> str:
    """Makes the table of both engines at each size, and of the share of the better engine's time that 'auto' takes."""
    lines = []
    for place, found in itertools.groupby(rows, key=lambda row: row["place"]):
        at_place = {row["variant"]: row for row in found}
        if "fft" not in at_place:
            continue  # It failed there.
        engines = [at_place.get("matmul"), at_place["fft"]]
        better = min(row["least"] for row in engines if row)
        shares = [
            f"{at_place[name]['least'] / better:.2f}" if name in at_place else ""
            for name in ("auto", "auto, size unknown")
        ]
        digits = 3 if _on_card(rows) else 2
        times = [f"{row['least']:,.{digits}f} ms" if row else "" for row in engines]
        lines.append([place, str(at_place["fft"]["batch"]), *times, *shares])
    head = [
        f"engines{_on_card(rows)}",
        "batch",
        "matmul",
        "fft",
        "auto / better engine",
        "auto, size unknown / better engine",
    ]
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


def read(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the rows that `write` has written.

    Args:
        path: of the CSV file.

    Returns:
        The rows, with numbers where there were numbers and None for empty cells.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a file of the benchmark.
    """
    rows: list[dict[str, Any]] = []
    for row in read_rows(path):
        if not {*_WHOLE, *_FRACTIONS} <= row.keys():
            raise ValueError(f"{path} is no CSV file of python -m experiments.benchmark: it has no column 'least'.")
        whole = {name: int(row[name]) if row[name] else None for name in _WHOLE}
        rows.append({**row, **whole, **{name: float(row[name]) if row[name] else None for name in _FRACTIONS}})
    if not rows:
        raise ValueError(f"{path} does not exist or has no rows: python -m experiments.benchmark writes such a file.")
    return rows


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
    bars = max(Counter((row["part"], row["place"]) for row in rows if (row["part"], row["place"]) in places).values())
    height = max(3.6, 0.24 * bars)
    figure = Figure(figsize=(3.9 * columns, height * lines), layout="constrained")
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
        panel.set_title(f"{place}, batch {here[0]['batch']}", fontsize=9)
        panel.tick_params(axis="y", labelsize=7)
    for panel in panels[len(places) :]:
        panel.set_visible(False)
    figure.supxlabel("forward and backward (ms)", fontsize=10)
    return figure


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    is_short = "device" in row or row["milliseconds"] < 10
    parts = [_time(row["milliseconds"]) if is_short else f"{row['milliseconds']:,.0f} ms"]
    if row["times_faster"] is not None and row["variant"] != "release":
        parts.append(f"{row['times_faster']:.2f}x")
    if row["memory_ratio"] is not None and row["variant"] != "release":
        parts.append(f"{row['memory_ratio']:.2f} of the memory")
    elif row["megabytes"] is not None:
        parts.append(f"{row['megabytes']:,.0f} MB")
    return ", ".join(parts)


def _time(milliseconds: float) -> str:
    """Three digits, of which a time on a GPU has none before the point."""
    digits = max(0, 2 - math.floor(math.log10(max(milliseconds, 1e-3))))
    return f"{milliseconds:,.{min(digits, 3)}f} ms"


def _mean_lines(part: str, rows: Sequence[Row], variants: Sequence[str], dtypes: Sequence[str]) -> list[str]:
    """Writes the geometric means over the places of the layer, for each batch, if there is a release."""
    lines = []
    for batch in sorted({row["batch"] for row in rows}) if part in ("layer", "small") else ():
        for variant in variants:
            of_variant = [row for row in rows if (row["batch"], row["variant"]) == (batch, variant)]
            means = [_mean([row for row in of_variant if row["dtype"] == dtype]) for dtype in dtypes]
            if any(means):
                lines.append(f"| geometric mean | {variant} | {batch} |  | {' | '.join(means)} |")
    return lines


def _mean(rows: Sequence[Row]) -> str:
    compared = [row for row in rows if row["times_faster"]]
    if not compared:
        return ""
    text = f"{statistics.geometric_mean(row['times_faster'] for row in compared):.2f}x"
    if all(row["memory_ratio"] for row in compared):
        text += f", {statistics.geometric_mean(row['memory_ratio'] for row in compared):.2f} of the memory"
    return text
