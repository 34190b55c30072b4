"""Means with standard deviations, as the tables show them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


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
