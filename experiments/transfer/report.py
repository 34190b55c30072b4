"""The table of the transfer experiment."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from diffstride_hybrid.common import markdown
from experiments import RESULTS
from experiments.spread import spread
from experiments.transfer.experiment import ORIGINAL

CSV = RESULTS / "transfer.csv"

HEAD = ("pooling", "after the swap", "after training on", "less max pooling, same seeds", "MACs an image")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Compares the networks: test accuracy in percent, mean ± standard deviation over the seeds.

    Args:
        rows: of the CSV file, with the columns that `experiment.COLUMNS` names. Every model has a row of every stage.

    Returns:
        A Markdown table with a row for each model.
    """

    def accuracies(name: str, stage: str) -> list[float]:
        return [100 * float(row["test_accuracy"]) for row in rows if (row["model"], row["stage"]) == (name, stage)]

    lines = []
    for name in dict.fromkeys(row["model"] for row in rows):
        after, baseline = accuracies(name, "after"), accuracies(ORIGINAL, "after")
        cost = statistics.fmean(float(row["macs"]) for row in rows if (row["model"], row["stage"]) == (name, "after"))
        start = accuracies(name, "before" if name == ORIGINAL else "swapped")
        differences = [one - other for one, other in zip(after, baseline)]
        compared = "" if name == ORIGINAL else spread(differences, signed=True)
        percentages = [f"{spread(values)} %" for values in (start, after)]
        lines.append([name, *percentages, compared, f"{cost / 1e6:.1f} M"])
    return markdown.table(HEAD, lines)
