"""The time that the benchmark may take, divided among its parts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")

SHARES = {"machine": 1, "layer": 6, "small": 2, "sizes": 4, "engines": 9, "step": 4}
"""How the time is divided if it does not suffice. A part that needs less leaves the rest to the parts after it."""

_TO_END_IN = 0.05
"""The share of the time in which a place may end that its part has begun in time."""


class Budget:
    """Says when a part of the measurement is over, and when its last place must have ended.

    Args:
        seconds: from now on, None for no limit.
        clock: tells the time in seconds.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._to_end_in = _TO_END_IN * (seconds or 0.0)
        self._end_of_parts = math.inf if seconds is None else clock() + seconds - self._to_end_in
        self._end_of_part = self._end_of_parts

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return self._end_of_parts < math.inf

    def begin(self, part: str, later: Sequence[str]) -> None:
        """Begins a part.

        Args:
            part: one of `SHARES`.
            later: the parts that come after it.
        """
        share = SHARES[part] / (SHARES[part] + sum(SHARES[other] for other in later))
        now = self._clock()
        self._end_of_part = now + share * (self._end_of_parts - now)

    def part_is_over(self) -> bool:
        """Whether the part has used up its time."""
        return self._clock() >= self._end_of_part

    def seconds_left(self) -> float | None:
        """Seconds until a place of this part must have ended, 0 if it must have by now, None without a limit."""
        return max(0.0, self._end_of_part + self._to_end_in - self._clock()) if self.is_limited else None


def coarse_first(items: Sequence[Item]) -> list[Item]:
    """Takes every third item, then those between, so that a list that is cut short still covers its whole range.

    Args:
        items: in the order of their sizes.

    Returns:
        The same items.

    Example:
        >>> from experiments.benchmark.budget import coarse_first
        >>> coarse_first([1, 2, 3, 4, 5, 6, 7])
        [1, 4, 7, 2, 5, 3, 6]
    """
    return [item for start in range(3) for item in items[start::3]]
