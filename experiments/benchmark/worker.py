"""Builds and times benchmark cases in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from experiments.benchmark.cases import Case


@dataclasses.dataclass(frozen=True)
class Built:
    """A case that is ready to run.

    Attributes:
        run: runs it once.
        macs: multiply-accumulate operations of one image's forward pass, those of poolings by 'matmul'; None where they
            are not counted.
    """

    run: Callable[[], None]
    macs: int | None = None


def work(build: Callable[[Case], Built]) -> None:
    """Serves requests on standard input, one JSON object a line: build a case, time a run, or measure its memory."""
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
    """What TensorFlow holds at most during a run, beyond what it held before; None where its allocator does not count.

    Inputs and weights are held before, outputs and gradients are not.
    """
    import tensorflow as tf

    device = tf.config.list_logical_devices()[-1].name
    try:
        tf.config.experimental.reset_memory_stats(device)
        before = tf.config.experimental.get_memory_info(device)["current"]
        run()
        return round((tf.config.experimental.get_memory_info(device)["peak"] - before) / 1e6, 3)
    except ValueError:
        return None


def _timed(function: Callable[..., Any], *inputs: Any) -> Callable[[], None]:
    """A call of the compiled function that ends when its results are there."""
    import tensorflow as tf

    compiled = tf.function(function)

    def run() -> None:
        compiled(*inputs)
        tf.test.experimental.sync_devices()

    return run


def _forward_and_backward(layer: Callable[[Any], Any], case: Case, variables: Sequence[Any]) -> Callable[[], None]:
    import tensorflow as tf

    images = tf.cast(tf.random.normal([case.batch, case.height, case.height, case.channels], seed=1), case.dtype)
    upstream = tf.cast(tf.random.normal(tf.shape(layer(images)), seed=2), case.dtype)

    def run(images: Any, upstream: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = layer(images)
        # In a network nothing flows back before the forward pass has ended.
        with tf.control_dependencies([outputs]):
            upstream = tf.identity(upstream)
        return outputs, tape.gradient(outputs, [images, *variables], output_gradients=upstream)

    return _timed(run, images, upstream)


def build_ours(case: Case) -> Built:
    """What a case of this package runs."""
    import keras
    import tensorflow as tf

    import diffstride_hybrid as dh

    if case.part == "machine":
        matrix = tf.cast(tf.random.normal([case.height, case.height]), case.dtype)
        return Built(_timed(tf.matmul, matrix, matrix), case.height**3)
    policy = "float32" if case.dtype == "float32" else f"mixed_{case.dtype}"
    if case.part == "step":
        return _build_step(case, policy)
    layers = {
        "released": lambda: dh.DiffStride(case.stride, dtype=policy),
        "symmetric": lambda: dh.DiffStride(case.stride, mask="symmetric", dtype=policy),
        "fft": lambda: dh.DiffStride(case.stride, method="fft", dtype=policy),
        "average": lambda: keras.layers.AveragePooling2D(int(case.stride), padding="same", dtype=policy),
        "strided convolution": lambda: keras.layers.Conv2D(
            case.channels, 3, int(case.stride), padding="same", use_bias=False, dtype=policy
        ),
    }
    layer = layers[case.variant]()
    shape = (case.height, case.height, case.channels)
    layer.build((case.batch, *shape))
    run = _forward_and_backward(layer, case, [variable.value for variable in layer.trainable_variables])
    cost = dh.macs(keras.Sequential([keras.Input(shape), layer]))
    return Built(run, None if case.variant == "fft" else cost.macs + cost.pooling_macs)


def _build_step(case: Case, policy: str) -> Built:
    import keras
    import tensorflow as tf

    import diffstride_hybrid as dh
    from diffstride_hybrid import command_line

    command_line.keep_freed_memory()
    options = {
        "diffstride": {"pooling_cls": dh.DiffStride},
        "hybrid": {"pooling_cls": dh.DiffStride, "head_pooling_cls": dh.SpectralPooling},
        "slice": {"pooling_cls": _slice_of_same_size(keras)},
        "strided": {},
    }[case.variant]
    model = dh.resnet18(
        num_output_classes=10,
        output_activation="softmax",
        weight_decay=5e-4,
        dtype=policy,
        width=case.channels,
        **options,
    )
    model.build((None, case.height, case.height, 3))
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    optimizer.build(model.trainable_variables)
    cost = dh.macs(model, (case.height, case.height, 3))
    run = _timed(*_step(tf, model, optimizer, keras.losses.CategoricalCrossentropy(), case))
    return Built(run, cost.macs + cost.pooling_macs)


def _slice_of_same_size(keras: Any) -> Any:
    """A layer that cuts a map to the size that DiffStride starts with: the cheapest pooling there can be."""
    sizes = {(32, 1.0): 32, (32, 2.0): 24, (24, 2.0): 20, (20, 2.0): 18}

    class Slice(keras.layers.Layer):
        def __init__(self, strides: float, data_format: str, **kwargs: Any):
            super().__init__(**kwargs)
            self.stride = float(strides)

        def call(self, inputs: Any) -> Any:
            size = sizes[inputs.shape[1], self.stride]
            return inputs[:, :size, :size]

        def compute_output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
            size = sizes[shape[1], self.stride]
            return (shape[0], size, size, shape[3])

        def get_config(self) -> dict[str, Any]:
            return super().get_config()

    return Slice


def _step(tf: Any, model: Any, optimizer: Any, loss: Any, case: Case) -> tuple[Callable[..., Any], Any, Any]:
    images = tf.random.normal([case.batch, case.height, case.height, 3], seed=1)
    labels = tf.one_hot(tf.range(case.batch) % 10, 10)

    def run(images: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            total = tf.add_n([loss(labels, model(images, training=True)), *model.losses])
        gradients = tape.gradient(total, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))
        return total

    return run, images, labels


def build_release(case: Case) -> Built:
    """What a case of the released code runs, under tf_keras."""
    import functools

    import tensorflow as tf
    import tf_keras
    from diffstride import pooling, resnet

    if case.part == "step":
        model = resnet.resnet18(
            num_output_classes=10,
            output_activation="softmax",
            weight_decay=5e-4,
            channels_first=False,
            pooling_cls=functools.partial(pooling.DiffStride),
        )
        model.build((None, case.height, case.height, 3))
        optimizer = tf_keras.optimizers.SGD(0.01, momentum=0.9)
        optimizer.build(model.trainable_variables)
        return Built(_timed(*_step(tf, model, optimizer, tf_keras.losses.CategoricalCrossentropy(), case)))
    layer = pooling.DiffStride(strides=case.stride, data_format="channels_last")
    layer.build((case.batch, case.height, case.height, case.channels))
    return Built(_forward_and_backward(layer, case, layer.trainable_variables))
