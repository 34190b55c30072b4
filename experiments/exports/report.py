"""The table of exported formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments import RESULTS

CSV = RESULTS / "exports.csv"

COLUMNS = (
    "run",
    "images",
    "format",
    "precision",
    "runtime",
    "largest_difference",
    "accuracy",
    "size_bytes",
    "milliseconds",
)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The comparison as Markdown."""
    lines = [
        "| format | precision | runtime | largest difference | accuracy | size | time for an image |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        difference = f"{float(row['largest_difference']):.1e}" if row["largest_difference"] else ""
        size, milliseconds = float(row["size_bytes"]) / 1e6, float(row["milliseconds"])
        lines.append(
            f"| `{row['format']}` | {row['precision']} | {row['runtime']} | {difference} | "
            f"{float(row['accuracy']):.1%} | {size:.2f} MB | {milliseconds:.2f} ms |"
        )
    return "\n".join(lines)
