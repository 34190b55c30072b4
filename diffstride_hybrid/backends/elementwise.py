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
    result = keras.ops.where(values < low, low, values)
    if high is not None:
        result = keras.ops.where(result > high, high, result)
    if keras.backend.standardize_dtype(values.dtype) != "float64":
        return result
    # Strides are float32: one at a limit may lie past it by its rounding. It takes the limit, with the gradient 1.
    bounds = [keras.ops.cast(each, "float64") for each in (low, high) if each is not None]
    held = [keras.ops.cast(keras.ops.cast(each, "float32"), "float64") for each in bounds]
    is_held = values >= keras.ops.minimum(bounds[0], held[0])
    if high is not None:
        is_held = keras.ops.logical_and(is_held, values <= keras.ops.maximum(bounds[1], held[1]))
    straight = keras.ops.stop_gradient(result) + (values - keras.ops.stop_gradient(values))
    return keras.ops.where(keras.ops.logical_and(is_held, result != values), straight, result)


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
