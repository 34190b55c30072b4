"""The table of the transfer experiment."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import RESULTS
from experiments.transfer.experiment import ORIGINAL

CSV = RESULTS / "transfer.csv"


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean ± standard deviation over the seeds, as Markdown."""
    lines = [
        "| pooling | after the swap | after training on | less max pooling, same seeds | MACs an image |",
        "| --- | --- | --- | --- | --- |",
    ]

    def accuracies(name: str, stage: str) -> list[float]:
        return [100 * float(row["test_accuracy"]) for row in rows if (row["model"], row["stage"]) == (name, stage)]

    for name in dict.fromkeys(row["model"] for row in rows):
        after, baseline = accuracies(name, "after"), accuracies(ORIGINAL, "after")
        cost = statistics.fmean(float(row["macs"]) for row in rows if (row["model"], row["stage"]) == (name, "after"))
        start = accuracies(name, "before" if name == ORIGINAL else "swapped")
        differences = [one - other for one, other in zip(after, baseline)]
        compared = "" if name == ORIGINAL else _spread(differences, "+")
        lines.append(f"| {name} | {_spread(start)} % | {_spread(after)} % | {compared} | {cost / 1e6:.1f} M |")
    return "\n".join(lines)


def _spread(values: Sequence[float], sign: str = "") -> str:
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.2f}{deviation}"
