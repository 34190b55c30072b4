"""Fits the constants of `method="auto"` to the times of both engines.

The constants are those of `Crossover` in `diffstride_hybrid/spectral/tensorflow/engines.py`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from diffstride_hybrid.common import markdown
from diffstride_hybrid.spectral.tensorflow import engines
from diffstride_hybrid.spectral.tensorflow.engines import Crossover, resolve_method
from experiments.benchmark.cases import is_map, pooling_of

TOLERANCE = 1.1
"""A choice is right if it takes at most so many times as long as the faster engine."""

_LIMITS = tuple(float(f"{2.0 * 1.12**step:.3g}") for step in range(62))
_CHANNELS = (0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 30.0, 50.0, 80.0, 120.0)
_MATRICES = {
    "LEARNED_MAPS": (0.0, 1.0, 3.0, 8.0, 25.0, 80.0, 250.0, 800.0),
    "LEARNED_SIGNALS": (0.0, 0.005, 0.015, 0.045, 0.15, 0.45, 1.5, 4.5),
}
"""Without strides to learn the matrices are constants, which cost nothing."""

_OUTRIGHT = 10.0
"""By how much an engine counts as slower at a place where it has no time: the matrices do not fit there."""


class Times(NamedTuple):
    """What each engine takes at a place, in milliseconds; infinite if it was not timed."""

    height: int
    width: int
    channels: int
    batch: int
    fft: float
    matmul: float


class Fit(NamedTuple):
    """How well constants choose.

    Attributes:
        crossover: the constants.
        share: of the places at which the choice is the faster engine or within 10 % of it.
        loss: mean logarithm of the time of the choice over that of the faster engine.
    """

    crossover: Crossover
    share: float
    loss: float


def times_by_constant(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Times]]:
    """Collects the times of both engines.

    Args:
        rows: of the benchmark; those of other parts than 'engines' are ignored.

    Returns:
        The times at each place, by the name of the constants that choose there.
    """
    found: dict[str, list[Times]] = {}
    of_engines = [row for row in rows if row["part"] == "engines"]
    for place, group in itertools.groupby(of_engines, key=lambda row: row["place"]):
        at_place = {row["variant"]: row for row in group}
        fft, matmul = (at_place[name]["least"] if name in at_place else math.inf for name in ("fft", "matmul"))
        if math.inf == fft == matmul:
            continue
        row = next(iter(at_place.values()))
        name = f"{pooling_of(place).upper()}_{'MAPS' if is_map(place) else 'SIGNALS'}"
        height = row["height"] if is_map(place) else 1
        found.setdefault(name, []).append(Times(height, row["height"], row["channels"], row["batch"], fft, matmul))
    return found


def judged(crossover: Crossover, times: Sequence[Times]) -> Fit:
    """Tells how well constants choose.

    Args:
        crossover: the constants.
        times: at one place or more.

    Returns:
        The constants with their share of right choices and their loss.
    """
    ratios = []
    for place in times:
        method = resolve_method("auto", crossover, *place[:4])
        ratio = (place.fft if method == "fft" else place.matmul) / min(place.fft, place.matmul)
        ratios.append(min(ratio, _OUTRIGHT))
    right = sum(ratio <= TOLERANCE for ratio in ratios)
    return Fit(crossover, right / len(ratios), sum(map(math.log, ratios)) / len(ratios))


def fitted(name: str, times: Sequence[Times]) -> Fit:
    """Searches a grid for the constants that choose best.

    The share of right choices counts first, then the loss in whole percents: what is less is noise. Among equals the
    present constants win, and else those in the middle: they are the farthest from another choice at the sizes between.

    Args:
        name: of the constants, such as 'LEARNED_MAPS'.
        times: at one place or more.

    Returns:
        The best constants.
    """
    tried = [judged(crossover, times) for crossover in _grid(name)]
    present = judged(getattr(engines, name), times)
    best = max((present, *tried), key=_quality)
    if _quality(present) == _quality(best):
        return present
    equals = [fit for fit in tried if _quality(fit) == _quality(best)]
    middle = [sum(values) / len(equals) for values in zip(*map(_logarithms, equals))]
    return min(equals, key=lambda fit: math.dist(middle, _logarithms(fit)))


def _grid(name: str) -> Iterator[Crossover]:
    return itertools.starmap(Crossover, itertools.product(_LIMITS, _CHANNELS, _MATRICES.get(name, (0.0,))))


def _quality(fit: Fit) -> tuple[float, float]:
    return fit.share, -round(fit.loss, 2)


def _logarithms(fit: Fit) -> list[float]:
    limit, channels, matrices = fit.crossover
    return [math.log(limit), math.log1p(channels), math.log1p(1000.0 * matrices)]


def advice(rows: Sequence[Mapping[str, Any]], device: str) -> str:
    """Compares the present constants with fitted ones, and prints these as they would stand in `engines.py`.

    Args:
        rows: of the benchmark.
        device: what was measured.

    Returns:
        A Markdown table and lines of Python. Empty if no engine was timed.
    """
    lines, cells, notes = [], [], []
    for name, times in times_by_constant(rows).items():
        present, best = judged(getattr(engines, name), times), fitted(name, times)
        shares = [f"{fit.share:.0%}, {math.exp(fit.loss):.3f}" for fit in (present, best)]
        cells.append([name, str(len(times)), shares[0], shares[1]])
        lines.append(f"{name} = Crossover({', '.join(map(str, best.crossover))})")
        for method in ("fft", "matmul"):
            if all(getattr(place, method) <= TOLERANCE * min(place.fft, place.matmul) for place in times):
                notes.append(
                    f"At every place of `{name}`, `{method}` was the faster engine or within 10 %: these times do not "
                    "say where the engines cross."
                )
    if not lines:
        return ""
    head = [f"constants, {device}", "places", "present: right, time of the choice / better engine", "fitted"]
    return "\n\n".join([markdown.table(head, cells), *notes, "\n".join(["```python", *lines, "```"])])
