"""Markdown tables, and means with standard deviations as the tables show them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Writes a Markdown table.

    Args:
        head: the titles of the columns.
        rows: the cells of each row, as many as there are columns. A cell must not contain '|' or a line break.

    Returns:
        The table, without a line break at its end.

    Example:
        >>> print(table(["method", "runs"], [["strided", "3"]]))
        | method | runs |
        | --- | --- |
        | strided | 3 |
    """
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def spread(values: Sequence[float], signed: bool = False) -> str:
    """Writes the mean and the standard deviation of a sample, with two decimals each.

    Args:
        values: at least one number. One alone has no standard deviation, so only its mean is written.
        signed: whether a positive mean has a plus sign.

    Returns:
        The text, such as '87.28 ± 0.73'.

    Raises:
        statistics.StatisticsError: there are no values.

    Example:
        >>> spread([1.0, 2.0, 3.0]), spread([0.5], signed=True)
        ('2.00 ± 1.00', '+0.50')
    """
    mean = f"{statistics.fmean(values):{'+' if signed else ''}.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean
