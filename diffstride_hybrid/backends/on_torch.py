"""PyTorch: everything runs at once, unless `torch.compile` traces it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import torch

# Keras has no public name for the scope of `stateless_call`, whose values are others than those of the variables.
from keras.src.backend.common.stateless_scope import get_stateless_scope

from diffstride_hybrid.backends.elementwise import added, clipped, half_sum_of_squares

__all__ = ["added", "clipped", "half_sum_of_squares"]

SIZE_ERRORS = (ValueError, RuntimeError)
"""What is raised if maps do not fit together."""

SIZES_ARE_KNOWN = True
"""Whether every size is a Python integer whenever a layer is called."""


def eagerly() -> AbstractContextManager[Any]:
    """A context whose operations run at once, even while Keras infers shapes on PyTorch's device 'meta'."""
    return keras.device("cpu:0")


def uncompiled() -> AbstractContextManager[Any]:
    """A context in which compiled functions run as Python, so that each call of a layer in them is seen."""
    # Importing the compiler takes seconds; as long as nobody has, nothing is compiled.
    is_imported = "torch._dynamo" in sys.modules
    return torch.compiler.set_stance("force_eager") if is_imported else contextlib.nullcontext()


def is_tracing() -> bool:
    """Whether a function is being compiled."""
    return torch.compiler.is_compiling()


def needs_static_shapes() -> bool:
    """Whether all sizes must stay as they are: while a function is being compiled."""
    return torch.compiler.is_compiling()


def watch(variable: keras.Variable, value: np.ndarray, changed: Callable[[np.ndarray], None]) -> None:
    """Does nothing: `value_of` can read a variable without it, and what is called follows the strides.

    Args:
        variable: of Keras.
        value: its initial value.
        changed: would be called with each new value.
    """


def value_of(variable: keras.Variable) -> np.ndarray | None:
    """The present value of a variable: that of the scope in which it is used, else its own.

    Args:
        variable: of Keras.
    """
    scope = get_stateless_scope()
    value = None if scope is None else scope.get_current_value(variable)
    if value is not None and value.device.type != "meta":
        return np.array(keras.ops.convert_to_numpy(value))
    with keras.device("cpu:0"), keras.StatelessScope():
        return np.array(keras.ops.convert_to_numpy(variable))


def as_length(count: torch.Tensor) -> int:
    """A number of samples that was computed, as a Python integer.

    Args:
        count: int32 scalar.
    """
    return int(count)


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """`left @ right` of two matrices.

    Args:
        left: `[..., n, k]`.
        right: `[..., k, m]`.
    """
    return torch.matmul(left, right)


def checked_when_run(inputs: Any, least_shape: Sequence[int], message: str) -> Any:
    """The tensor itself: its size is known, and was checked."""
    return inputs


def check_beside_graph(condition: Callable[[], Any], advice: str) -> None:
    """Does nothing: what is called follows the strides."""


def bring_weights_back(model: keras.Model) -> None:
    """Does nothing: the weights of a model have their present values at any time.

    Args:
        model: any model.
    """


def gradient_of(function: Callable[..., torch.Tensor]) -> Callable[..., np.ndarray]:
    """Makes the function that computes the gradient of a scalar by the first argument.

    Args:
        function: takes tensors, returns a scalar.

    Returns:
        A function of arrays that returns an array.

    Raises:
        ValueError: when called, if the scalar does not depend on the first argument by operations with a gradient.
    """

    def gradient(*arrays: np.ndarray) -> np.ndarray:
        first, *others = (keras.ops.convert_to_tensor(array) for array in arrays)
        first.requires_grad_(True)
        scalar = function(first, *others)
        found = torch.autograd.grad(scalar, first, allow_unused=True)[0] if scalar.requires_grad else None
        if found is None:
            raise ValueError("no gradient reaches the images.")
        return found.cpu().numpy()

    return gradient


def peak_megabytes(run: Callable[[], Any]) -> float | None:
    """Returns None: PyTorch does not count the memory of a function on a CPU."""
