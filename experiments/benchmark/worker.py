"""Times cases in a process of its own, and measures their memory.

`ours.py` and `release.py` build the cases and run as processes. This module and `cases.py` are all that they share: the
release needs Keras 2 under the name tf_keras, so nothing here may import Keras 3 or diffstride_hybrid.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from experiments.benchmark.cases import Case

MEMORY_RUNS = 5


@dataclasses.dataclass(frozen=True)
class Built:
    """A case that is ready to run.

    Attributes:
        run: runs the case once, or as often as its argument says, and returns when the results are there.
        macs: multiply-accumulate operations of one image's forward pass, with poolings as matrix products; None if they
            are not counted.
    """

    run: Callable[..., None]
    macs: int | None = None


def keep_freed_memory() -> None:
    """Makes the C library reuse freed memory, for both sides of the comparison.

    The commands of this package do so by `command_line.keep_freed_memory`, which the release's process cannot import.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # There is no glibc.
        return
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
        mallopt(option, value)


def work(build: Callable[[Case], Built]) -> None:
    """Answers requests until standard input ends, each a JSON object on one line.

    A request has the key 'do' and, but for 'device', the key 'case'. The answer, a JSON object on one line of standard
    output, has 'macs' for 'build', 'seconds' for 'run', 'megabytes' for 'memory' and 'peak', and what `device` returns
    for 'device'. 'run' may have the key 'times', for as many runs without a pause. 'memory' builds the case anew, for a
    new process; 'peak' takes the case that was built. If a request has the key 'may_fail', an error in it is answered
    as 'error' and the process goes on.

    Args:
        build: makes a case ready to run.
    """
    tf.get_logger().setLevel("ERROR")  # The release's gradient warns of a cast each time that it is traced.
    built: dict[Case, Built] = {}

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "device":
            return device()
        case, times = Case(**request["case"]), request.get("times", 1)
        if request["do"] == "run":
            began = time.perf_counter()
            built[case].run(*[times] if times > 1 else [])
            return {"seconds": time.perf_counter() - began}
        if request["do"] == "peak":
            return {"megabytes": peak_megabytes(built[case].run)}
        for other in [other for other in built if other.place != case.place]:
            del built[other]
        built[case] = build(case)
        built[case].run()
        if request["do"] == "memory":
            return {"megabytes": peak_megabytes(built[case].run)}
        built[case].run()
        return {"macs": built[case].macs}

    for line in sys.stdin:
        request = json.loads(line)
        try:
            answered = answer(request)
        except Exception as error:
            if not request.get("may_fail"):
                raise
            answered = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answered), flush=True)


def device() -> dict[str, Any]:
    """Describes where TensorFlow runs.

    Returns:
        'name' of the card, None if there is none; 'found': the devices; 'tensor_float_32': whether a card may round the
        operands of float32 products to that format, as newer ones do.
    """
    cards = tf.config.list_physical_devices("GPU")
    name = cards and (tf.config.experimental.get_device_details(cards[0]).get("device_name") or cards[0].name)
    return {
        "name": name or None,
        "found": [found.name.rpartition("physical_device:")[2] for found in tf.config.list_physical_devices()],
        "tensor_float_32": tf.config.experimental.tensor_float_32_execution_enabled(),
    }


def peak_megabytes(run: Callable[[], Any]) -> float | None:
    """Measures how much more memory TensorFlow holds during a run than before.

    TensorFlow holds inputs and weights before the run, so they are not part of it. Outputs and gradients are. Unused
    objects are collected first: what is freed during the run would be subtracted from its memory.

    Args:
        run: the function.

    Returns:
        10^6 bytes, the median of `MEMORY_RUNS` runs: each peak depends on the order in which the kernels run. None if
        TensorFlow's allocator does not count.
    """
    device = tf.config.list_logical_devices()[-1].name
    gc.collect()
    peaks = []
    try:
        for _ in range(MEMORY_RUNS):
            tf.config.experimental.reset_memory_stats(device)
            before = tf.config.experimental.get_memory_info(device)["current"]
            run()
            peaks.append(tf.config.experimental.get_memory_info(device)["peak"] - before)
    except ValueError:
        return None
    return round(statistics.median(peaks) / 1e6, 3)


def compiled(
    function: Callable[..., Any], *inputs: Any, signature: Sequence[tf.TensorSpec] | None = None
) -> Callable[..., None]:
    """Compiles a function and binds its inputs.

    Args:
        function: takes and returns tensors.
        *inputs: its arguments.
        signature: what the graph is compiled for; if None, for these inputs alone.

    Returns:
        A function that runs it as often as its argument says, once without one, and returns when the results are there.
    """
    graph = tf.function(function, input_signature=signature)

    def run(times: int = 1) -> None:
        for _ in range(times):
            graph(*inputs)
        # A GPU is still at work when the call returns.
        tf.test.experimental.sync_devices()

    return run


def forward_and_backward(
    layer: Callable[[Any], Any],
    case: Case,
    variables: Sequence[Any],
    spatial_axes: int = 2,
    size_is_known: bool = True,
    channels_first: bool = False,
) -> Callable[..., None]:
    """Compiles a layer's forward and backward pass over random images or signals.

    Args:
        layer: a built layer of either Keras.
        case: the size and dtype of the images.
        variables: the trainable TensorFlow variables of the layer.
        spatial_axes: 2 for images, 1 for signals.
        size_is_known: whether the graph is compiled for this size alone, or for any.
        channels_first: whether the layer takes its channels before the other axes.

    Returns:
        A function that runs both passes once.
    """
    size = [case.height] * spatial_axes
    shape = [case.batch, case.channels, *size] if channels_first else [case.batch, *size, case.channels]
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


def training_step(model: Any, optimizer: Any, loss: Callable[[Any, Any], Any], case: Case) -> Callable[..., None]:
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
