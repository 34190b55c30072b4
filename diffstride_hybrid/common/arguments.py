"""Checks of what a user gave: each returns the value in its final form, or raises one line that says what is allowed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np


def is_whole(value: Any, least: int) -> bool:
    """Whether a value that a user gave is a whole number of at least `least`. `True`, to Python 1, is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


Strides = float | Sequence[float]


def validated_choice(name: str, value: Any, allowed: Sequence[str]) -> Any:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    return value


def validated_flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}.")
    return value


def validated_number(name: str, value: Any, at_least: float) -> float:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if not at_least <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least {at_least:g}, got {value!r}.")
    return float(_at_most(name, value))


def _at_most(name: str, value: Any, most: int = np.iinfo(np.int32).max) -> Any:
    """A number that TensorFlow's kernels take, as a size or in float32."""
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value!r}.")
    return value


def validated_limit(name: str, value: Any) -> float | None:
    return None if value is None else validated_number(name, value, at_least=1.0)


def validated_strides(value: Any) -> tuple[float, float]:
    """Strides as (vertical, horizontal); raises TypeError or ValueError where they are not numbers of at least 1."""
    pair = (value, value) if isinstance(value, numbers.Real) else value
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise TypeError(f"strides must be a number or a pair (vertical, horizontal), got {value!r}.")
    for stride in pair:
        validated_number("strides", stride, at_least=1.0)
    return float(pair[0]), float(pair[1])


def validated_size(name: str, value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, numbers.Integral) else value
    if (
        not isinstance(pair, Sequence)
        or len(pair) != 2
        or not all(isinstance(n, numbers.Integral) and not isinstance(n, bool) for n in pair)
    ):
        raise TypeError(f"{name} must be a whole number or a pair (height, width), got {value!r}.")
    if min(pair) < 1:
        raise ValueError(f"{name} must be at least 1 along both axes, got {value!r}.")
    _at_most(name, max(pair))
    return int(pair[0]), int(pair[1])
