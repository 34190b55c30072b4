"""The tables of the segmentation experiment."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from diffstride_hybrid.common import markdown
from experiments import RESULTS
from experiments.segmentation.scores import SHIFTS
from experiments.spread import spread

CSV = RESULTS / "segmentation.csv"

HEAD = (
    *("network", "mean IoU", "pixels right", *(f"same class, shift {shift}" for shift in SHIFTS)),
    *("MACs", "strides at the end", "maps at the end", "parameters", "runs"),
)

COMPARED = (("spectral", "max"), ("diffstride", "max"), ("max_wide", "max"), ("diffstride", "max_wide"))
"""The pairs of networks in the second table: the runs of the first are compared with those of the other."""

PAIRS_HEAD = (
    *("networks", "difference of mean IoU", *(f"ratio of changed pixels, shift {shift}" for shift in SHIFTS)),
    "pairs",
)

Row = Mapping[str, Any]


def table(rows: Sequence[Row]) -> str:
    """Compares the networks: scores with their standard deviations over the seeds, and the means of the rest.

    The MACs are those of the convolutions for one image, after training. A second figure after a plus sign is the MACs
    of the products of spectral poolings and resizings. Below stands a table of pairs of runs with the same seed: the
    difference of their mean IoU in points, and the ratio of the pixels that change their class under a shift.

    Args:
        rows: of the CSV file, as `network.run` returns them.

    Returns:
        Two Markdown tables: a row for each network, and a row for each pair of `COMPARED` that has runs.
    """
    runs = {
        method: [row for row in rows if row["method"] == method]
        for method in dict.fromkeys(row["method"] for row in rows)
    }
    pairs = [_pairs_line(one, other, rows) for one, other in COMPARED]
    tables = [markdown.table(HEAD, [_line(method, here) for method, here in runs.items()])]
    return "\n\n".join([*tables, markdown.table(PAIRS_HEAD, [line for line in pairs if line])])


def _line(method: str, rows: Sequence[Row]) -> list[str]:
    macs, pooling_macs, parameters = (
        statistics.fmean(float(row[column]) for row in rows) for column in ("macs", "pooling_macs", "parameters")
    )
    scores = ("mean_iou", "pixel_accuracy", *(f"consistency_{shift}" for shift in SHIFTS))
    return [
        f"`{method}`",
        *(f"{spread([100 * float(row[score]) for row in rows])} %" for score in scores),
        f"{macs / 1e6:.0f} M" + (f" + {pooling_macs / 1e6:.0f} M" if pooling_macs else ""),
        _means([row["strides_at_end"] for row in rows], 2),
        _means([row["sizes_at_end"] for row in rows], 0),
        f"{parameters:,.0f}",
        str(len(rows)),
    ]


def _means(texts: Sequence[str], digits: int) -> str:
    """The means over the runs of pairs that the CSV file writes as '2.000x2.000 2.000x2.000'."""
    pairs = [[map(float, pair.split("x")) for pair in text.split()] for text in texts]
    return ", ".join(
        "x".join(f"{statistics.fmean(numbers):.{digits}f}" for numbers in zip(*of_layer)) for of_layer in zip(*pairs)
    )


def _pairs_line(one: str, other: str, rows: Sequence[Row]) -> list[str]:
    """Compares two networks, run by run of the same seed. Empty if there is no pair."""
    runs, others = ({str(row["seed"]): row for row in rows if row["method"] == method} for method in (one, other))
    pairs = [(run, others[seed]) for seed, run in runs.items() if seed in others]
    if not pairs:
        return []
    return [
        f"`{one}` and `{other}`",
        spread([100 * (float(run["mean_iou"]) - float(base["mean_iou"])) for run, base in pairs], signed=True),
        *(spread([_changed(run, shift) / _changed(base, shift) for run, base in pairs]) for shift in SHIFTS),
        str(len(pairs)),
    ]


def _changed(row: Row, shift: int) -> float:
    return 1 - float(row[f"consistency_{shift}"])
