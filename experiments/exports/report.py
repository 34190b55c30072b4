"""The table of exported formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffstride_hybrid.common import markdown
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
"""The columns of the CSV file."""

HEAD = ("format", "precision", "runtime", "largest difference", "accuracy", "size", "time for an image")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Compares each export with its Keras model.

    Args:
        rows: of the CSV file, with the columns `COLUMNS`.

    Returns:
        A Markdown table with a row for each format and precision.
    """
    return markdown.table(HEAD, map(_cells, rows))


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        f"`{row['format']}`",
        row["precision"],
        row["runtime"],
        f"{float(row['largest_difference']):.1e}" if row["largest_difference"] else "",
        f"{float(row['accuracy']):.1%}",
        f"{float(row['size_bytes']) / 1e6:.2f} MB",
        f"{float(row['milliseconds']):.2f} ms",
    ]
