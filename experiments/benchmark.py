r"""Times the layers and the training step, side by side in one run.

    python -m experiments.benchmark
    python -m experiments.benchmark --against=PATH

`--against` names a checkout of google-research/diffstride; it needs the package tf-keras. Each implementation runs in a
process of its own. The cases of one place are timed in turn, so that a drift of the machine's speed meets all of them
alike; ratios are between medians. Forward and backward passes are timed together. Memory is what TensorFlow holds at
most during a run beyond inputs and weights, measured in a process for each case.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import app, flags, logging

from experiments import benchmark_report

_AGAINST = flags.DEFINE_string("against", None, "A checkout of google-research/diffstride to compare with.")
_PARTS = flags.DEFINE_list("parts", ["layer", "sizes", "step"], "What to measure: layer, sizes, step.")
_REPEATS = flags.DEFINE_integer("repeats", 9, "Timed runs of each case.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 64, "Batch size.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "experiments/results/benchmark.csv", "CSV file to write; a PNG lies beside it.")
_WORKER = flags.DEFINE_enum("worker", None, ["ours", "release"], "Used by the benchmark itself.")


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        part: 'layer', 'sizes', 'step' or 'machine'.
        place: what is pooled or trained.
        variant: which implementation.
        dtype: 'float32' or 'bfloat16'.
        batch: images.
        height: of the map or image.
        channels: of the map, or the network's width.
        stride: initial stride, the same on both axes.
    """

    part: str
    place: str
    variant: str
    dtype: str
    batch: int
    height: int
    channels: int
    stride: float


RESNET_PLACES = (("stem", 32, 64, 1.0), ("block 2", 32, 128, 2.0), ("block 3", 24, 256, 2.0), ("block 4", 20, 512, 2.0))
OTHER_SIZES = (
    ("112x112x64", 112, 64, 2.0, 4),
    ("224x224x64", 224, 64, 2.0, 16),
    ("28x28x64", 28, 64, 2.0, 1),
    ("33x33x64", 33, 64, 2.0, 1),
    ("448x448x16", 448, 16, 2.0, 16),
)
MEASURED_IN_MEMORY = ("released", "symmetric", "diffstride", "hybrid", "slice", "release")
LAYER_VARIANTS = ("released", "symmetric", "fft", "average", "strided convolution")
DTYPES = ("float32", "bfloat16")


def cases(parts: Sequence[str], batch: int) -> list[Case]:
    """All cases of our own implementation, in the order of the table; `release_case` gives their counterparts."""
    listed = [Case("machine", "matrix product 2048", "product", dtype, 1, 2048, 2048, 1.0) for dtype in DTYPES]
    if "layer" in parts:
        listed += [
            Case("layer", place, variant, dtype, batch, height, channels, stride)
            for place, height, channels, stride in RESNET_PLACES
            for variant in LAYER_VARIANTS
            for dtype in DTYPES
        ]
    if "sizes" in parts:
        listed += [
            Case("sizes", place, variant, dtype, max(batch // share, 1), height, channels, stride)
            for place, height, channels, stride, share in OTHER_SIZES
            for variant in ("released", "symmetric", "fft")
            for dtype in DTYPES
        ]
    if "step" in parts:
        listed += [
            Case("step", "ResNet-18", variant, dtype, batch, 32, 64, 2.0)
            for variant in ("diffstride", "hybrid", "slice", "strided")
            for dtype in DTYPES
        ]
    return listed


def release_case(case: Case) -> Case | None:
    """The counterpart in the released code, in float32 since its FFT knows nothing smaller; None where there is none.

    Only one case of each place has one, so that the release is timed once for each place.
    """
    if case.dtype == "float32" and case.variant in ("released", "diffstride"):
        return dataclasses.replace(case, variant="release")
    return None


# --- Worker: builds a case, then runs it when asked ------------------------------------------------------------------


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


# --- Driver ----------------------------------------------------------------------------------------------------------


class Worker:
    """A process that runs cases of one implementation.

    Args:
        name: 'ours' or 'release'.
        environment: added to that of this process.
    """

    def __init__(self, name: str, environment: Mapping[str, str]):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "experiments.benchmark", f"--worker={name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        )

    def ask(self, do: str, case: Case) -> dict[str, Any]:
        """Asks to 'build' or 'run' a case, and waits for the answer."""
        self._process.stdin.write(json.dumps({"do": do, "case": dataclasses.asdict(case)}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"The benchmark process for {case} has ended.")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


def measure(parts: Sequence[str], batch: int, repeats: int, against: str | None) -> list[dict[str, Any]]:
    """Measures all cases, those of one place in turn.

    Args:
        parts: which of 'layer', 'sizes', 'step'.
        batch: batch size.
        repeats: timed runs of each case.
        against: a checkout of the released code, or None.

    Returns:
        A row for each case: the case, MACs, milliseconds (median, least, most), peak memory and, where there is a
        release, how many times faster than it the case is and its share of the release's memory.
    """
    environments: dict[str, dict[str, str]] = {"ours": {}}
    if against is not None:
        path = os.pathsep.join([against, os.environ.get("PYTHONPATH", "")])
        environments["release"] = {"TF_USE_LEGACY_KERAS": "1", "PYTHONPATH": path}
    workers = {name: Worker(name, environment) for name, environment in environments.items()}
    rows: list[dict[str, Any]] = []
    for _, group in itertools.groupby(cases(parts, batch), key=lambda case: (case.part, case.place)):
        listed = [("ours", case) for case in group]
        if against is not None:
            listed += [("release", other) for _, case in listed if (other := release_case(case))]
        macs = [workers[name].ask("build", case)["macs"] for name, case in listed]
        seconds: list[list[float]] = [[] for _ in listed]
        for _ in range(repeats):
            for (name, case), measured in zip(listed, seconds):
                measured.append(workers[name].ask("run", case)["seconds"])
        rows += [
            {
                **dataclasses.asdict(case),
                "macs": counted,
                "milliseconds": round(1e3 * statistics.median(measured), 3),
                "least": round(1e3 * min(measured), 3),
                "most": round(1e3 * max(measured), 3),
                "megabytes": _memory(name, environments[name], case) if case.variant in MEASURED_IN_MEMORY else None,
            }
            for (name, case), counted, measured in zip(listed, macs, seconds)
        ]
        here = rows[-len(listed) :]
        release = next((row for row in here if row["variant"] == "release"), None)
        for row in here:
            row["times_faster"] = release and round(release["milliseconds"] / row["milliseconds"], 2)
            comparable = release and release["megabytes"] and row["megabytes"]
            row["memory_ratio"] = round(row["megabytes"] / release["megabytes"], 3) if comparable else None
            print(benchmark_report.line(row), flush=True)
    for worker in workers.values():
        worker.close()
    return rows


def _memory(name: str, environment: Mapping[str, str], case: Case) -> float | None:
    """Peak memory, in a process of the case's own: TensorFlow's allocator hands out whole what it already has."""
    worker = Worker(name, environment)
    try:
        return worker.ask("memory", case)["megabytes"]
    finally:
        worker.close()


def main(argv: Sequence[str]) -> None:
    """Measures, prints and writes."""
    del argv
    if _WORKER.value:
        logging.set_verbosity(logging.ERROR)  # The release's gradient warns of a cast at every trace.
        work(build_ours if _WORKER.value == "ours" else build_release)
        return
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("tensorflow", "keras"))
    processor = platform.processor() or platform.machine()
    print(f"{versions}, {processor}, {os.cpu_count()} processors and as many threads")
    rows = measure(_PARTS.value, _BATCH.value, _REPEATS.value, _AGAINST.value)
    output = pathlib.Path(_OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    benchmark_report.write_csv(output, rows)
    benchmark_report.write_figure(output.with_suffix(".png"), rows)
    print(f"\n{benchmark_report.markdown(rows)}\n\nwritten to {output}")


if __name__ == "__main__":
    app.run(main)
