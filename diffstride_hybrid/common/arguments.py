"""Checks of arguments that a user gave: each returns the final value, or raises one line that says what is allowed."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

Strides = float | Sequence[float]
"""One stride for both axes, or a pair (vertical, horizontal)."""


def validated_whole(name: str, value: Any, least: int) -> int:
    """The value, if it is a whole number of at least `least`. `True` is refused, though Python takes it for 1.

    Args:
        name: of the argument, for the message.
        value: the argument.
        least: the smallest number allowed.

    Returns:
        The number as a Python integer.

    Raises:
        ValueError: the value is no such number.

    Example:
        >>> validated_whole("num_epochs", 3, least=1)
        3
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}.")
    return int(value)


def validated_choice(name: str, value: Any, allowed: Sequence[str]) -> Any:
    """The value, if it is among those allowed.

    Args:
        name: of the argument, for the message.
        value: the argument.
        allowed: all values that it may have.

    Returns:
        `value`.

    Raises:
        ValueError: the value is not allowed.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    return value


def validated_flag(name: str, value: Any) -> bool:
    """The value, if it is True or False.

    Args:
        name: of the argument, for the message.
        value: the argument.

    Returns:
        `value`.

    Raises:
        TypeError: the value is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}.")
    return value


def validated_number(name: str, value: Any, at_least: float) -> float:
    """The value as a float, if it is a finite number of at least `at_least` that TensorFlow's kernels take.

    Args:
        name: of the argument, for the message.
        value: the argument.
        at_least: the smallest number allowed.

    Returns:
        A Python float.

    Raises:
        TypeError: the value is not a real number.
        ValueError: the number is not finite, or below `at_least`, or above 2147483647.
    """
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}.")
    if not at_least <= value < math.inf:
        raise ValueError(f"{name} must be finite and at least {at_least:g}, got {value!r}.")
    return float(_at_most(name, value))


def validated_limit(name: str, value: Any) -> float | None:
    """The value as a limit of a stride: None, or a float of at least 1.

    Args:
        name: of the argument, for the message.
        value: the argument.

    Returns:
        None or a Python float.

    Raises:
        TypeError: the value is neither None nor a real number.
        ValueError: the number is not finite, or below 1, or above 2147483647.
    """
    return None if value is None else validated_number(name, value, at_least=1.0)


def validated_limits(name: str, value: Any) -> float | tuple[float | None, float | None] | None:
    """The value as limits of the strides of two axes.

    Args:
        name: of the argument, for the message.
        value: None, a number for both axes, or a pair (vertical, horizontal) of numbers or None.

    Returns:
        None, a Python float, or a pair of floats or None.

    Raises:
        TypeError: the value is something else.
        ValueError: a number is not finite, or below 1, or above 2147483647.

    Example:
        >>> validated_limits("upper_limit_stride", (1, None))
        (1.0, None)
    """
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name} must be one number, or a pair (vertical, horizontal), got {value!r}.")
        vertical, horizontal = (validated_limit(name, limit) for limit in value)
        return vertical, horizontal
    return validated_limit(name, value)


def validated_strides(value: Any) -> tuple[float, float]:
    """Strides as a pair (vertical, horizontal).

    Args:
        value: one number for both axes, or a pair.

    Returns:
        Two Python floats.

    Raises:
        TypeError: the value is neither a number nor a pair of numbers.
        ValueError: a number is not finite, or below 1, or above 2147483647.

    Example:
        >>> validated_strides(2), validated_strides([1.5, 3])
        ((2.0, 2.0), (1.5, 3.0))
    """
    pair = (value, value) if isinstance(value, numbers.Real) else value
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise TypeError(f"strides must be a number or a pair (vertical, horizontal), got {value!r}.")
    for stride in pair:
        validated_number("strides", stride, at_least=1.0)
    return float(pair[0]), float(pair[1])


def validated_size(name: str, value: Any) -> tuple[int, int]:
    """A size in samples as a pair (height, width).

    Args:
        name: of the argument, for the message.
        value: one whole number for both axes, or a pair.

    Returns:
        Two Python integers.

    Raises:
        TypeError: the value is neither a whole number nor a pair of whole numbers.
        ValueError: a number is below 1 or above 2147483647.
    """
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


def spread_indices(size: int, count: int) -> np.ndarray:
    """Chooses some of many things, spread evenly over all.

    Args:
        size: how many there are.
        count: how many to choose. If there are fewer, all of them are chosen.

    Returns:
        Their indices, ascending.

    Example:
        >>> spread_indices(10, 4).tolist(), spread_indices(3, 4).tolist()
        ([0, 2, 5, 7], [0, 1, 2])
    """
    count = min(size, count)
    return np.arange(count) * size // max(count, 1)


def _at_most(name: str, value: Any, most: int = np.iinfo(np.int32).max) -> Any:
    """The number, if TensorFlow's kernels take it, as a size or in float32."""
    if value > most:
        raise ValueError(f"{name} must be at most {most}, got {value!r}.")
    return value
