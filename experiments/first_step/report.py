"""The table of the first step."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from diffstride_hybrid.common import markdown
from experiments import RESULTS

CSV = RESULTS / "first_step.csv"

PARTS = ("import", "data", "model", "begin", "first step")
"""What a training does until its first step is finished, in this order. 'begin' makes the folder and the first rows."""

Row = Mapping[str, Any]


def total(parts: Mapping[str, float]) -> dict[str, float]:
    """The time until the first step was finished.

    Args:
        parts: seconds of each of `PARTS`.

    Returns:
        `{"total": seconds}`.
    """
    return {"total": round(sum(parts[part] for part in PARTS), 3)}


def line(row: Row) -> str:
    """Writes a row for people to read while the command runs.

    Args:
        row: of the CSV file.

    Returns:
        One line.
    """
    parts = "  ".join(f"{part} {row[part]:.2f}" for part in PARTS)
    return f"{row['network']:<20}{row['version']:<14}{row['total']:.2f} s  {parts}"


def table(rows: Sequence[Row]) -> str:
    """The medians of the repeats, and beside another version what share of its time this one takes.

    Args:
        rows: of the CSV file.

    Returns:
        A Markdown table with a line for each network and version.
    """
    lines = []
    for network in dict.fromkeys(row["network"] for row in rows):
        versions = list(dict.fromkeys(row["version"] for row in rows if row["network"] == network))
        medians = {version: _medians(rows, network, version) for version in versions}
        for version in versions:
            middle = medians[version]
            cells = [f"{middle[name]:.2f} s" for name in (*PARTS, "tracing", "total")]
            if version != "before" and "before" in medians:
                cells[-1] += f", {middle['total'] / medians['before']['total']:.2f} of before"
            lines.append([network, version, *cells, f"{int(middle['operations']):,}"])
    return markdown.table(("network", "version", *PARTS, "of it tracing", "total", "operations"), lines)


def _medians(rows: Sequence[Row], network: str, version: str) -> dict[str, float]:
    chosen = [row for row in rows if (row["network"], row["version"]) == (network, version)]
    names = (*PARTS, "tracing", "total", "operations")
    return {name: statistics.median(float(row[name]) for row in chosen) for name in names}
