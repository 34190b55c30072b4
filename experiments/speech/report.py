"""The table of the speech experiment."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import RESULTS

CSV = RESULTS / "speech.csv"

Row = Mapping[str, Any]


def table(rows: Sequence[Row]) -> str:
    """The methods as Markdown: accuracy with its standard deviation over the seeds, and the means of the rest.

    MACs are those of convolutions and dense layers for one window, after training; after a plus stand those that the
    poolings take as matrix products, in whose place `method='auto'` takes transforms of signals beyond 512 samples.
    """
    lines = ["| pooling | test accuracy | MACs | strides at the end | lengths at the end | training | runs |"]
    lines.append("| --- " * 7 + "|")
    for method in dict.fromkeys(row["method"] for row in rows):
        here = [row for row in rows if row["method"] == method]
        accuracies = [100 * float(row["test_accuracy"]) for row in here]
        accuracy = f"{statistics.mean(accuracies):.2f}"
        if len(here) > 1:
            accuracy += f" ± {statistics.stdev(accuracies):.2f}"
        macs, pooling_macs, seconds = (
            statistics.mean(float(row[column]) for row in here)
            for column in ("macs", "pooling_macs", "training_seconds")
        )
        strides, lengths = (
            [statistics.mean(map(float, of_layer)) for of_layer in zip(*(row[column].split() for row in here))]
            for column in ("strides_at_end", "lengths_at_end")
        )
        cost = f"{macs / 1e6:.1f} M" + (f" + {pooling_macs / 1e6:.1f} M" if pooling_macs else "")
        cells = [f"`{method}`", f"{accuracy} %", cost]
        cells += [", ".join(f"{stride:.2f}" for stride in strides), ", ".join(f"{length:.0f}" for length in lengths)]
        lines.append(f"| {' | '.join([*cells, f'{seconds:.0f} s', str(len(here))])} |")
    return "\n".join(lines)
