"""Everything that leans on TensorFlow's internals: what XLA compiles, and products at XLA's highest precision.

`tensorflow.compiler.tf2xla.python.xla` and `control_flow_util` have no public counterpart. tests/spectral/test_xla.py
names the version of TensorFlow in which one of them is missing or different.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla
from tensorflow.python.ops import control_flow_util


def needs_static_shapes() -> bool:
    """Whether all shapes must be known now: a graph is being traced for XLA, or a TPU's strategy is in scope."""
    return compiled_by_xla() or on_tpu()


def on_tpu() -> bool:
    """Whether the strategy in scope is a TPU's."""
    return isinstance(tf.distribute.get_strategy(), tf.distribute.TPUStrategy)


def compiled_by_xla() -> bool:
    """Whether the current graph, or a graph around it, is being traced for XLA.

    That is so under `jit_compile=True` and in the replicas of a TPU.
    """
    return not tf.executing_eagerly() and control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def check_beside_graph(condition: Callable[[], tf.Tensor], advice: str) -> None:
    """Lets a condition be checked whenever the graph runs that is being traced. Does nothing if none is.

    If the condition does not hold, the graph fails with an error. XLA drops assertions. So for a graph that it compiles
    the condition is checked outside, in the graph that calls it or, if it is called eagerly, before the call. There it
    gives a warning: Keras validates in such a graph, and a long training should not end by that.

    Args:
        condition: makes a boolean scalar, eagerly or in the current graph.
        advice: the message.
    """
    if tf.executing_eagerly():
        return
    if not compiled_by_xla():
        tf.debugging.Assert(condition(), [advice])
        return
    graph = tf.compat.v1.get_default_graph()
    while hasattr(graph.outer_graph, "outer_graph") and control_flow_util.GraphOrParentsInXlaContext(graph):
        graph = graph.outer_graph
    if not control_flow_util.GraphOrParentsInXlaContext(graph):
        with graph.as_default():
            tf.cond(condition(), tf.no_op, lambda: tf.py_function(lambda: warnings.warn(advice, stacklevel=2), [], []))
        return

    def checked() -> tf.Tensor:
        if not condition():
            warnings.warn(advice, stacklevel=2)
        return tf.constant(True)

    # TensorFlow has no public way to run Python before each call of a function.
    graph.capture_call_time_value(checked, tf.TensorSpec([], tf.bool), default_value=tf.constant(True))


def xla_einsum(equation: str, left: tf.Tensor, right: tf.Tensor, dtype: tf.DType | None = None) -> tf.Tensor:
    """`tf.einsum` of two tensors for XLA, at the highest precision, with derivatives of every order.

    `tf.einsum` and `tf.matmul` leave float32 at XLA's default, which on a TPU is one pass in bfloat16.

    Args:
        equation: such as "bnc,pn->bpc". Every index must stand in at least two of the three terms.
        left: the first operand.
        right: the second operand. The product is computed in the coarser of the two dtypes.
        dtype: of the result. The dtype of `left` if None.

    Returns:
        The sums of products.
    """
    operands, result = equation.split("->")
    first, second = operands.split(",")
    shared = [axis for axis in first if axis in second]
    summed, batch = ([axis for axis in shared if (axis in result) == kept] for kept in (False, True))
    order = batch + [axis for axis in first + second if axis not in shared]
    dimensions = xla.DotDimensionNumbers(
        lhs_contracting_dimensions=[first.index(axis) for axis in summed],
        rhs_contracting_dimensions=[second.index(axis) for axis in summed],
        lhs_batch_dimensions=[first.index(axis) for axis in batch],
        rhs_batch_dimensions=[second.index(axis) for axis in batch],
    )
    precision = xla.PrecisionConfig(operand_precision=[xla.PrecisionConfig.HIGHEST] * 2)
    coarser = min(left.dtype, right.dtype, key=lambda dtype: dtype.size)

    @tf.custom_gradient
    def product(left: tf.Tensor, right: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return (
                xla_einsum(f"{result},{second}->{first}", upstream, right, left.dtype),
                xla_einsum(f"{first},{result}->{second}", left, upstream, right.dtype),
            )

        # XLA on a CPU cannot multiply bfloat16 operands into a float32 result: cast afterwards.
        outputs = xla.dot_general(tf.cast(left, coarser), tf.cast(right, coarser), dimensions, precision)
        outputs = tf.cast(outputs, dtype or left.dtype)
        return tf.transpose(outputs, [order.index(axis) for axis in result]), gradient

    return product(left, right)
