"""The table of the poolings on every backend."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from diffstride_hybrid.common import markdown
from experiments import RESULTS

CSV = RESULTS / "frameworks.csv"

NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}

CHANNELS_FIRST = ", channels_first"
"""The end of the name of a pooling in that data format."""

PLAIN = "SpectralPooling"
FORMATS = (PLAIN, "DiffStride, symmetric")
"""The poolings that a GPU runs in both data formats."""

Row = Mapping[str, Any]


def table(rows: Sequence[Row]) -> str:
    """Compares the poolings on each backend: milliseconds for a forward and a backward pass of 32 maps.

    Args:
        rows: of the CSV file, as `timing.main` prints them.

    Returns:
        A Markdown table with a row for each backend and size of map. If a card was timed, the head names it. A pooling
        that failed there has an empty place.
    """
    card = rows[0].get("device")
    digits = 3 if card else 1
    places = dict.fromkeys((row["map"], row["backend"]) for row in rows)
    found = {(row["map"], row["backend"], row["pooling"]): float(row["milliseconds"]) for row in rows}
    # The longest list has their order.
    lists = [[pooling for *place, pooling in found if tuple(place) == where] for where in places]
    poolings = list(dict.fromkeys(itertools.chain(*sorted(lists, key=len, reverse=True))))

    def shown(*key: str) -> str:
        return f"{found[key]:.{digits}f} ms" if key in found else ""

    lines = [
        [place, NAMES[backend], *(shown(place, backend, pooling) for pooling in poolings)]
        for place, backend in sorted(places, key=lambda pair: [*_area(pair[0]), list(NAMES).index(pair[1])])
    ]
    return markdown.table((f"map, {card}" if card else "map", "backend", *poolings), lines)


def comparisons(rows: Sequence[Row]) -> list[str]:
    """Says for each backend at which maps transforms and the other data format take less time, if a card was timed.

    Args:
        rows: of the CSV file.

    Returns:
        Three lines for each backend, of the maps at which both were timed; none if the rows are those of a CPU.
    """
    if not rows[0].get("device"):
        return []
    found = {(row["backend"], row["map"], row["pooling"]): float(row["milliseconds"]) for row in rows}
    questions = [("transforms", PLAIN, f"transforms take less time than `{PLAIN}`")]
    questions += [(f"{name}{CHANNELS_FIRST}", name, f"`{name}` is faster in channels_first") for name in FORMATS]
    lines = []
    for backend in dict.fromkeys(row["backend"] for row in rows):
        maps = list(dict.fromkeys(row["map"] for row in rows if row["backend"] == backend))
        for one, other, what in questions:
            both = [place for place in maps if {(backend, place, one), (backend, place, other)} <= found.keys()]
            faster = [place for place in both if found[backend, place, one] < found[backend, place, other]]
            lines.append(_sentence(f"{NAMES[backend]}: {what}", faster, both))
    return lines


def _sentence(what: str, places: Sequence[str], of: Sequence[str]) -> str:
    return f"{what} at {len(places)} of {len(of)} maps{': ' if places else ''}{', '.join(places)}."


def _area(place: str) -> tuple[int, ...]:
    return tuple(int(number) for number in place.split("x"))
