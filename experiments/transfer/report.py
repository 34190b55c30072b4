"""The table of the transfer experiment."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from diffstride_hybrid.common import markdown
from experiments import RESULTS
from experiments.spread import spread
from experiments.transfer.experiment import MEASURES, ORIGINAL

CSV = RESULTS / "transfer.csv"

HEAD = (
    *("pooling", "swapped alone", "maximum kept", "statistics anew", "both", "after training on"),
    *("less max pooling, same seeds", "MACs an image", "runs"),
)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Compares the networks: test accuracy in percent, mean ± standard deviation over the seeds.

    Args:
        rows: of the CSV file, with the columns that `experiment.COLUMNS` names.

    Returns:
        A Markdown table with a row for each model. That of the network that was not swapped has its accuracy before.
        A second figure of MACs after a plus sign is that of the poolings.

    Raises:
        ValueError: a model has no row of some stage with some seed.
    """
    seeds = sorted({str(row["seed"]) for row in rows})

    def of(name: str, stage: str, measure: str | None = None) -> list[Mapping[str, Any]]:
        """The rows of a model at a stage, one for each seed, in the order of `seeds`."""
        here = [row for row in rows if (row["model"], row["stage"]) == (name, stage)]
        here = sorted((row for row in here if measure in (None, row["measure"])), key=lambda row: str(row["seed"]))
        if [str(row["seed"]) for row in here] != seeds:
            raise ValueError(f"{name} does not have one row of the stage {stage} for each of the seeds {seeds}.")
        return here

    def accuracies(*place: str) -> list[float]:
        return [100 * float(row["test_accuracy"]) for row in of(*place)]

    lines = []
    for name in dict.fromkeys(row["model"] for row in rows):
        after, baseline = accuracies(name, "after"), accuracies(ORIGINAL, "after")
        cost, of_poolings = (
            statistics.fmean(float(row[column]) for row in of(name, "after")) / 1e6
            for column in ("macs", "pooling_macs")
        )
        if name == ORIGINAL:
            start, compared = [f"{spread(accuracies(name, 'before'))} % before", "", "", ""], ""
        else:
            start = [f"{spread(accuracies(name, 'swapped', measure))} %" for measure in MEASURES]
            compared = spread([one - other for one, other in zip(after, baseline)], signed=True)
        price = f"{cost:.1f} M" + f" + {of_poolings:.1f} M" * (of_poolings > 0)
        lines.append([name, *start, f"{spread(after)} %", compared, price, str(len(seeds))])
    return markdown.table(HEAD, lines)
