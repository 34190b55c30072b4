"""JAX: every size is known when a function is traced, and stays as it was traced."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import keras
import numpy as np

# Keras has no public name for the scope in which `fit` computes with other values than those of the variables.
from keras.src.backend.common.stateless_scope import get_stateless_scope

from diffstride_hybrid.backends.elementwise import added, clipped, half_sum_of_squares

__all__ = ["added", "clipped", "half_sum_of_squares"]

SIZE_ERRORS = (ValueError, TypeError)
"""What is raised if maps do not fit together."""

SIZES_ARE_KNOWN = True
"""Whether every size is a Python integer whenever a layer is called."""


def eagerly() -> AbstractContextManager[Any]:
    """A context whose operations run at once, even while a function is traced."""
    return jax.ensure_compile_time_eval()


def uncompiled() -> AbstractContextManager[Any]:
    """A context in which compiled functions run as Python, so that each call of a layer in them is seen."""
    return jax.disable_jit()


def is_tracing() -> bool:
    """Whether a function is being traced."""
    return isinstance(jax.numpy.zeros(()), jax.core.Tracer)


def needs_static_shapes() -> bool:
    """Whether all sizes must be known: always."""
    return True


def watch(variable: keras.Variable, value: np.ndarray, changed: Callable[[np.ndarray], None]) -> None:
    """Lets `value_of` know the values that a variable gets from now on.

    While `fit`, `evaluate` or `predict` runs, Keras takes the value of a variable away from it.

    Args:
        variable: of Keras.
        value: its initial value. The variable may get it later, if it is made while a function is traced.
        changed: called with each new value.
    """
    assign = variable._direct_assign

    def noting(value: Any) -> None:
        assign(value)
        if not isinstance(value, jax.core.Tracer):
            variable.noted = np.array(value)
            changed(variable.noted)

    variable._direct_assign = noting
    variable.noted = value


def value_of(variable: keras.Variable) -> np.ndarray:
    """The present value of a variable: that of the scope in which it is used, else the last one that it was given.

    A function that is being compiled has no value of its own, so it takes the last one too.

    Args:
        variable: of Keras, which is watched.
    """
    scope = get_stateless_scope()
    value = None if scope is None else scope.get_current_value(variable)
    if value is None:
        return variable.noted
    value = jax.lax.stop_gradient(value)  # Outside of `jax.jit` a value that `jax.grad` follows is known.
    return variable.noted if isinstance(value, jax.core.Tracer) else np.array(value)


def as_length(count: jax.Array) -> int:
    """A number of samples that was computed, as a Python integer.

    Args:
        count: int32 scalar.
    """
    return int(count)


def product(left: jax.Array, right: jax.Array) -> jax.Array:
    """`left @ right` of two matrices, in their own precision: GPUs and TPUs take a coarser one by themselves.

    Args:
        left: `[..., n, k]`.
        right: `[..., k, m]`.
    """
    return jax.numpy.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def checked_when_run(inputs: Any, least_shape: Sequence[int], message: str) -> Any:
    """The tensor itself: its size is known, and was checked."""
    return inputs


def check_beside_graph(condition: Callable[[], jax.Array], advice: str) -> None:
    """Lets a condition be checked whenever the function runs that is being traced. Does nothing if none is.

    `jax.vmap` alone traces no function, but gives `stateless_call` values that nobody can read.

    Args:
        condition: makes a boolean scalar.
        advice: the warning if the condition does not hold.
    """

    def warn(holds: np.ndarray) -> None:
        if not holds:
            warnings.warn(advice, stacklevel=2)

    if is_tracing() or get_stateless_scope() is not None:
        holds = condition()
        if isinstance(holds, jax.core.Tracer):
            jax.debug.callback(warn, holds)


def bring_weights_back(model: keras.Model) -> None:
    """Gives the weights of a model their present values, which `fit` keeps to itself while it runs.

    Args:
        model: any model.
    """
    if getattr(model, "_jax_state", None) is not None:
        model.jax_state_sync()


def gradient_of(function: Callable[..., jax.Array]) -> Callable[..., np.ndarray]:
    """Makes the function that computes the gradient of a scalar by the first argument, compiled.

    Args:
        function: takes tensors, returns a scalar.

    Returns:
        A function of arrays that returns an array.
    """
    gradient = jax.jit(jax.grad(function))
    return lambda *arrays: np.array(gradient(*arrays))


def peak_megabytes(run: Callable[[], Any]) -> float | None:
    """Returns None: JAX does not count the memory of a function."""
