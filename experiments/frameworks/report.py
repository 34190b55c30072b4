"""The table of the poolings on every backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diffstride_hybrid.common import markdown
from experiments import RESULTS

CSV = RESULTS / "frameworks.csv"

NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}

Row = Mapping[str, Any]


def table(rows: Sequence[Row]) -> str:
    """Compares the poolings on each backend: milliseconds for a forward and a backward pass of 32 maps.

    Args:
        rows: of the CSV file, as `timing.main` prints them.

    Returns:
        A Markdown table with a row for each backend and size of map.
    """
    poolings = list(dict.fromkeys(row["pooling"] for row in rows))
    places = dict.fromkeys((row["map"], row["backend"]) for row in rows)
    found = {(row["map"], row["backend"], row["pooling"]): float(row["milliseconds"]) for row in rows}
    lines = [
        [place, NAMES[backend], *(f"{found[place, backend, pooling]:.1f} ms" for pooling in poolings)]
        for place, backend in sorted(places, key=lambda pair: [*_area(pair[0]), list(NAMES).index(pair[1])])
    ]
    return markdown.table(("map", "backend", *poolings), lines)


def _area(place: str) -> tuple[int, ...]:
    return tuple(int(number) for number in place.split("x"))
