"""Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Writes a Markdown table.

    Args:
        head: the titles of the columns.
        rows: the cells of each row, as many as there are columns. A '|' in a cell is escaped, and a line break becomes
            a space, as both would end the cell.

    Returns:
        The table, without a line break at its end.

    Example:
        >>> print(table(["method", "runs"], [["strided", "3"]]))
        | method | runs |
        | --- | --- |
        | strided | 3 |
    """
    return "\n".join(f"| {' | '.join(map(_cell, cells))} |" for cells in (head, ["---"] * len(head), *rows))


def _cell(text: str) -> str:
    return " ".join(text.splitlines()).replace("|", "\\|")
