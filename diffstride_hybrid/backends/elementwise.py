"""What JAX and PyTorch compute alike, element by element, and TensorFlow in operations of its own."""

from __future__ import annotations

from typing import Any

import keras


def clipped(values: Any, low: Any, high: Any) -> Any:
    """Clips values to a range, with the gradient 1 at both ends, where a maximum and a minimum would give a half.

    Args:
        values: floating-point.
        low: least value, a number or a tensor that broadcasts.
        high: greatest value, a number, a tensor that broadcasts, or None for no limit.

    Returns:
        Of the shape and dtype of `values`.
    """
    raised = keras.ops.where(values < low, low, values)
    return raised if high is None else keras.ops.where(raised > high, high, raised)


def added(first: Any, second: Any) -> Any:
    """The sum of two tensors of one shape.

    Args:
        first: any tensor.
        second: of the same shape and dtype.
    """
    return first + second


def half_sum_of_squares(tensor: Any) -> Any:
    """Half of the sum of the squares of all values, as a scalar.

    Args:
        tensor: floating-point.
    """
    return 0.5 * keras.ops.sum(tensor * tensor)
