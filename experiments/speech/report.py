"""The table of the speech experiment."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from diffstride_hybrid.common import markdown
from experiments import RESULTS
from experiments.spread import spread

CSV = RESULTS / "speech.csv"

HEAD = ("pooling", "test accuracy", "MACs", "strides at the end", "lengths at the end", "training", "runs")

Row = Mapping[str, Any]


def table(rows: Sequence[Row]) -> str:
    """Compares the poolings: test accuracy with its standard deviation over the seeds, and the means of the rest.

    The MACs are those of convolutions and dense layers for one window, after training. A second figure after a plus
    sign is the MACs that the poolings take as matrix products. `method='auto'` uses transforms instead for long
    signals, the earlier the fewer channels they have.

    Args:
        rows: of the CSV file, as `network.run` returns them.

    Returns:
        A Markdown table with a row for each pooling.
    """
    lines = []
    for method in dict.fromkeys(row["method"] for row in rows):
        here = [row for row in rows if row["method"] == method]
        macs, pooling_macs, seconds = (
            statistics.fmean(float(row[column]) for row in here)
            for column in ("macs", "pooling_macs", "training_seconds")
        )
        strides, lengths = (
            [statistics.fmean(map(float, of_layer)) for of_layer in zip(*(row[column].split() for row in here))]
            for column in ("strides_at_end", "lengths_at_end")
        )
        lines.append(
            [
                f"`{method}`",
                f"{spread([100 * float(row['test_accuracy']) for row in here])} %",
                f"{macs / 1e6:.1f} M" + (f" + {pooling_macs / 1e6:.1f} M" if pooling_macs else ""),
                ", ".join(f"{stride:.2f}" for stride in strides),
                ", ".join(f"{length:.0f}" for length in lengths),
                f"{seconds:.0f} s",
                str(len(here)),
            ]
        )
    return markdown.table(HEAD, lines)
