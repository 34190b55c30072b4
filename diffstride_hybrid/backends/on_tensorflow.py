"""TensorFlow: graphs whose sizes may not be known, XLA, replicas."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from diffstride_hybrid.backends.xla import check_beside_graph, compiled_by_xla, needs_static_shapes, xla_einsum

__all__ = ["check_beside_graph", "needs_static_shapes"]

SIZE_ERRORS = (ValueError, tf.errors.InvalidArgumentError)
"""What is raised if maps do not fit together."""

SIZES_ARE_KNOWN = False
"""Whether every size is a Python integer whenever a layer is called."""


def eagerly() -> AbstractContextManager[Any]:
    """A context whose operations run at once, even while a graph is traced."""
    return tf.init_scope()


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """A context in which compiled functions run as Python, so that each call of a layer in them is seen.

    Yields:
        Nothing.
    """
    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def is_tracing() -> bool:
    """Whether a graph is being traced."""
    return not tf.executing_eagerly()


def watch(variable: keras.Variable, value: np.ndarray, changed: Callable[[np.ndarray], None]) -> None:
    """Does nothing: `value_of` can read a variable without it, and graphs notice a change themselves.

    Args:
        variable: of Keras.
        value: its initial value.
        changed: would be called with each new value.
    """


def value_of(variable: keras.Variable) -> np.ndarray | None:
    """The present value of a variable, even while a graph is traced.

    Args:
        variable: of Keras.

    Returns:
        The value. None if it cannot be read: on one of several TPU cores, or while the variable gets a value.
    """
    strategy = tf.distribute.get_strategy()
    is_alone = strategy.num_replicas_in_sync == 1 or tf.distribute.in_cross_replica_context()
    if not is_alone and isinstance(strategy, tf.distribute.TPUStrategy):
        return None
    with tf.init_scope():
        # In a graph of `stateless_call` the value is a tensor of that graph.
        readable = variable if hasattr(variable.value, "numpy") else variable._value
        if not is_alone:
            readable = strategy.experimental_local_results(variable.value)[0]
        value = np.array(readable.numpy())
    return value if value.size else None


def as_length(count: tf.Tensor) -> tf.Tensor:
    """A number of samples that was computed, as graphs take it: a scalar.

    Args:
        count: int32 scalar.
    """
    return count


def clipped(values: tf.Tensor, low: Any, high: Any) -> tf.Tensor:
    """Clips values to a range, with the gradient 1 at both ends.

    Args:
        values: floating-point.
        low: least value, a number or a tensor that broadcasts.
        high: greatest value, a number, a tensor that broadcasts, or None for no limit.

    Returns:
        Of the shape and dtype of `values`.
    """

    @tf.custom_gradient  # TensorFlow's own needs four times as many operations.
    def clip(values: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            least, most = low, high
            if values.dtype == tf.float64:  # Strides are float32: one at a limit may lie past it by its rounding.
                exact = [None if each is None else tf.cast(each, tf.float64) for each in (low, high)]
                held = [None if each is None else tf.cast(tf.cast(each, tf.float32), tf.float64) for each in exact]
                least = tf.minimum(exact[0], held[0])
                most = None if high is None else tf.maximum(exact[1], held[1])
            is_inside = values >= least if most is None else tf.logical_and(values >= least, values <= most)
            return tf.where(is_inside, upstream, tf.zeros([], upstream.dtype))

        raised = tf.maximum(values, low)
        return raised if high is None else tf.minimum(raised, high), gradient

    return clip(values)


def added(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """The sum of two tensors of one shape.

    Args:
        first: any tensor.
        second: of the same shape and dtype.
    """
    return tf.add_n([first, second])  # The gradient of a plain sum of maps of unknown size compares their shapes.


def half_sum_of_squares(tensor: tf.Tensor) -> tf.Tensor:
    """Half of the sum of the squares of all values, as a scalar.

    Args:
        tensor: floating-point.
    """
    return tf.nn.l2_loss(tensor)  # One operation, whose gradient is another one.


def product(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    """`left @ right`; of two matrices in their own precision if XLA compiles it, where TPUs take a coarser one.

    Without XLA, GPUs from Ampere on multiply float32 in TensorFloat-32, of about three digits, unless
    `tf.config.experimental.enable_tensor_float_32_execution(False)` is called.

    Args:
        left: `[..., n, k]`.
        right: `[..., k, m]`.
    """
    if left.shape.rank == right.shape.rank == 2 and compiled_by_xla():
        return xla_einsum("pj,jn->pn", left, right)
    return left @ right


def checked_when_run(inputs: tf.Tensor, least_shape: Sequence[int], message: str) -> tf.Tensor:
    """A tensor of unknown size, which the graph checks whenever it runs.

    Args:
        inputs: the tensor.
        least_shape: the least length of each axis.
        message: of the error, followed by the shape.

    Returns:
        `inputs`.

    Raises:
        tf.errors.InvalidArgumentError: when the graph runs, on an input that is too small.
    """
    shape = tf.shape(inputs)
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(shape >= least_shape), [message, shape])]):
        return tf.identity(inputs)


def bring_weights_back(model: keras.Model) -> None:
    """Does nothing: the weights of a model have their present values at any time.

    Args:
        model: any model.
    """


def gradient_of(function: Callable[..., tf.Tensor]) -> Callable[..., np.ndarray]:
    """Makes the function that computes the gradient of a scalar by the first argument, compiled.

    Args:
        function: takes tensors, returns a scalar.

    Returns:
        A function of arrays that returns an array.

    Raises:
        ValueError: when called, if the scalar does not depend on the first argument by operations with a gradient.
    """

    @tf.function(autograph=False)
    def gradient(first: tf.Tensor, *others: tf.Tensor) -> tf.Tensor | None:
        with tf.GradientTape() as tape:
            tape.watch(first)
            scalar = function(first, *others)
        return tape.gradient(scalar, first)

    def of_arrays(*arrays: np.ndarray) -> np.ndarray:
        found = gradient(*map(tf.convert_to_tensor, arrays))
        if found is None:
            raise ValueError("no gradient reaches the images.")
        return found.numpy()

    return of_arrays


def peak_megabytes(run: Callable[[], Any]) -> float | None:
    """How much more memory TensorFlow holds while a function runs than before.

    Unused objects are collected first: what is freed during the run would be subtracted from its memory.

    Args:
        run: the function.

    Returns:
        10^6 bytes. None if TensorFlow does not count the memory of its last device, or counts none.
    """
    device = tf.config.list_logical_devices()[-1].name
    gc.collect()
    try:
        tf.config.experimental.reset_memory_stats(device)
        before = tf.config.experimental.get_memory_info(device)["current"]
        run()
        return round((tf.config.experimental.get_memory_info(device)["peak"] - before) / 1e6, 3) or None
    except ValueError:
        return None
