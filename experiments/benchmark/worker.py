"""Times cases in a process of its own, and measures their memory.

`ours.py` and `release.py` build the cases and run as processes. This module and `cases.py` are all that they share: the
release needs Keras 2 under the name tf_keras, so nothing here may import Keras 3 or diffstride_hybrid.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from experiments.benchmark.cases import Case


@dataclasses.dataclass(frozen=True)
class Built:
    """A case that is ready to run.

    Attributes:
        run: runs the case once and returns when its results are there.
        macs: multiply-accumulate operations of one image's forward pass, with poolings as matrix products; None if they
            are not counted.
    """

    run: Callable[[], None]
    macs: int | None = None


def work(build: Callable[[Case], Built]) -> None:
    """Answers requests until standard input ends, each a JSON object on one line.

    A request has the keys 'do' ('build', 'run' or 'memory') and 'case'. The answer, a JSON object on one line of
    standard output, has 'macs' for 'build', 'seconds' for 'run' and 'megabytes' for 'memory'.

    Args:
        build: makes a case ready to run.
    """
    tf.get_logger().setLevel("ERROR")  # The release's gradient warns of a cast each time that it is traced.
    built: dict[Case, Built] = {}
    for line in sys.stdin:
        request = json.loads(line)
        case = Case(**request["case"])
        if request["do"] == "run":
            began = time.perf_counter()
            built[case].run()
            answer = {"seconds": time.perf_counter() - began}
        else:
            built = {other: ready for other, ready in built.items() if other.place == case.place}
            built[case] = build(case)
            built[case].run()
            if request["do"] == "memory":
                answer = {"megabytes": _peak_megabytes(built[case].run)}
            else:
                built[case].run()
                answer = {"macs": built[case].macs}
        print(json.dumps(answer), flush=True)


def _peak_megabytes(run: Callable[[], Any]) -> float | None:
    """Measures how much more memory TensorFlow holds during a run than before; None if its allocator does not count.

    TensorFlow holds inputs and weights before the run, so they are not part of it. Outputs and gradients are.
    """
    device = tf.config.list_logical_devices()[-1].name
    try:
        tf.config.experimental.reset_memory_stats(device)
        before = tf.config.experimental.get_memory_info(device)["current"]
        run()
        return round((tf.config.experimental.get_memory_info(device)["peak"] - before) / 1e6, 3)
    except ValueError:
        return None


def compiled(
    function: Callable[..., Any], *inputs: Any, signature: Sequence[tf.TensorSpec] | None = None
) -> Callable[[], None]:
    """Compiles a function and binds its inputs.

    Args:
        function: takes and returns tensors.
        *inputs: its arguments.
        signature: what the graph is compiled for; if None, for these inputs alone.

    Returns:
        A function that runs it once and returns when the results are there.
    """
    graph = tf.function(function, input_signature=signature)

    def run() -> None:
        graph(*inputs)
        tf.test.experimental.sync_devices()

    return run


def forward_and_backward(
    layer: Callable[[Any], Any],
    case: Case,
    variables: Sequence[Any],
    spatial_axes: int = 2,
    size_is_known: bool = True,
) -> Callable[[], None]:
    """Compiles a layer's forward and backward pass over random images or signals.

    Args:
        layer: a built layer of either Keras.
        case: the size and dtype of the images.
        variables: the trainable TensorFlow variables of the layer.
        spatial_axes: 2 for images, 1 for signals.
        size_is_known: whether the graph is compiled for this size alone, or for any.

    Returns:
        A function that runs both passes once.
    """
    shape = [case.batch, *[case.height] * spatial_axes, case.channels]
    images = tf.cast(tf.random.normal(shape, seed=1), case.dtype)
    upstream = tf.cast(tf.random.normal(tf.shape(layer(images)), seed=2), case.dtype)

    def run(images: Any, upstream: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = layer(images)
        # In a network the backward pass starts only after the forward pass has ended.
        with tf.control_dependencies([outputs]):
            upstream = tf.identity(upstream)
        return outputs, tape.gradient(outputs, [images, *variables], output_gradients=upstream)

    any_size = tf.TensorSpec([None] * (spatial_axes + 1) + [case.channels], case.dtype)
    return compiled(run, images, upstream, signature=None if size_is_known else [any_size, any_size])


def training_step(model: Any, optimizer: Any, loss: Callable[[Any, Any], Any], case: Case) -> Callable[[], None]:
    """Compiles a training step of a classifier with ten classes on random images.

    Args:
        model: a built model of either Keras.
        optimizer: a built optimizer of the same Keras.
        loss: takes labels and outputs, returns a scalar.
        case: the size of the images, which are float32.

    Returns:
        A function that runs one step.
    """
    images = tf.random.normal([case.batch, case.height, case.height, 3], seed=1)
    labels = tf.one_hot(tf.range(case.batch) % 10, 10)

    def run(images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            total = tf.add_n([loss(labels, model(images, training=True)), *model.losses])
        gradients = tape.gradient(total, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return total

    return compiled(run, images, labels)
