r"""Times the layers and the training step, side by side in one run.

    python -m experiments.benchmark
    python -m experiments.benchmark --against=PATH

`--against` names a checkout of google-research/diffstride; it needs the package tf-keras. Each implementation runs in a
process of its own. For each case the processes are timed in turn, so that a drift of the machine's speed meets all of
them alike; ratios are between medians. Forward and backward passes are timed together.
"""

from __future__ import annotations

import csv
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


def work(build: Callable[[Case], Callable[[], Any]]) -> None:
    """Serves requests on standard input, one JSON object a line: build a case and tell its memory, or time a run."""
    runs: dict[Case, Callable[[], Any]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        case = Case(**request["case"])
        if request["do"] == "build":
            runs = {built: run for built, run in runs.items() if built.place == case.place}
            runs[case] = build(case)
            for _ in range(2):
                runs[case]()
            answer = {"megabytes": _peak_megabytes(runs[case])}
        else:
            began = time.perf_counter()
            runs[case]()
            answer = {"seconds": time.perf_counter() - began}
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


def _timed(function: Callable[..., Any], *inputs: Any) -> Callable[[], Any]:
    """A call of the compiled function that ends when its results are there."""
    import tensorflow as tf

    compiled = tf.function(function)

    def run() -> None:
        compiled(*inputs)
        tf.test.experimental.sync_devices()

    return run


def _forward_and_backward(layer: Callable[[Any], Any], case: Case, variables: Sequence[Any]) -> Callable[[], Any]:
    import tensorflow as tf

    images = tf.cast(tf.random.normal([case.batch, case.height, case.height, case.channels], seed=1), case.dtype)
    upstream = tf.cast(tf.random.normal(tf.shape(layer(images)), seed=2), case.dtype)

    def run(images: Any, upstream: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(images)
            outputs = layer(images)
        return outputs, tape.gradient(outputs, [images, *variables], output_gradients=upstream)

    return _timed(run, images, upstream)


def build_ours(case: Case) -> Callable[[], Any]:
    """What a case of this package runs."""
    import keras
    import tensorflow as tf

    import diffstride_hybrid as dh

    if case.part == "machine":
        matrix = tf.cast(tf.random.normal([case.height, case.height]), case.dtype)
        return _timed(tf.matmul, matrix, matrix)
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
    layer.build((case.batch, case.height, case.height, case.channels))
    return _forward_and_backward(layer, case, [variable.value for variable in layer.trainable_variables])


def _build_step(case: Case, policy: str) -> Callable[[], Any]:
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
    return _timed(*_step(tf, model, optimizer, keras.losses.CategoricalCrossentropy(), case))


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


def build_release(case: Case) -> Callable[[], Any]:
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
        return _timed(*_step(tf, model, optimizer, tf_keras.losses.CategoricalCrossentropy(), case))
    layer = pooling.DiffStride(strides=case.stride, data_format="channels_last")
    layer.build((case.batch, case.height, case.height, case.channels))
    return _forward_and_backward(layer, case, layer.trainable_variables)


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
    """Times all cases, those of one place in turn.

    Args:
        parts: which of 'layer', 'sizes', 'step'.
        batch: batch size.
        repeats: timed runs of each case.
        against: a checkout of the released code, or None.

    Returns:
        A row for each case: the case, milliseconds (median, least, most), peak memory and, where there is a release,
        how many times faster than it the case is and its share of the release's memory.
    """
    workers = {"ours": Worker("ours", {})}
    if against is not None:
        path = os.pathsep.join([against, os.environ.get("PYTHONPATH", "")])
        workers["release"] = Worker("release", {"TF_USE_LEGACY_KERAS": "1", "PYTHONPATH": path})
    rows: list[dict[str, Any]] = []
    for _, group in itertools.groupby(cases(parts, batch), key=lambda case: (case.part, case.place)):
        listed = [("ours", case) for case in group]
        if against is not None:
            listed += [("release", other) for _, case in listed if (other := release_case(case))]
        megabytes = [workers[name].ask("build", case)["megabytes"] for name, case in listed]
        seconds: list[list[float]] = [[] for _ in listed]
        for _ in range(repeats):
            for (name, case), measured in zip(listed, seconds):
                measured.append(workers[name].ask("run", case)["seconds"])
        group_rows = [
            {
                **dataclasses.asdict(case),
                "milliseconds": round(1e3 * statistics.median(measured), 3),
                "least": round(1e3 * min(measured), 3),
                "most": round(1e3 * max(measured), 3),
                "megabytes": held,
            }
            for (_, case), measured, held in zip(listed, seconds, megabytes)
        ]
        release = next((row for row in group_rows if row["variant"] == "release"), None)
        for row in group_rows:
            row["times_faster"] = release and round(release["milliseconds"] / row["milliseconds"], 2)
            both_counted = release and release["megabytes"] and row["megabytes"]
            row["memory_ratio"] = round(row["megabytes"] / release["megabytes"], 3) if both_counted else None
            print(format_row(row), flush=True)
        rows += group_rows
    for worker in workers.values():
        worker.close()
    return rows


def format_row(row: Mapping[str, Any]) -> str:
    """A row of the table, for people."""
    text = (
        f"{row['part']:<8}{row['place']:<20}{row['variant']:<20}{row['dtype']:<10}{row['milliseconds']:>9.2f} ms "
        f"({row['least']:.2f} to {row['most']:.2f})"
    )
    if row["part"] == "machine":
        return f"{text}  {2 * row['height'] ** 3 / row['milliseconds'] / 1e6:.0f} GFLOP/s"
    if row["megabytes"] is not None:
        text += f"  {row['megabytes']:.0f} MB"
    if row["times_faster"] is not None:
        text += f"  {row['times_faster']:.2f}x the release"
    if row["memory_ratio"] is not None:
        text += f" at {row['memory_ratio']:.2f} of its memory"
    return text


def geometric_means(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Over the four places of ResNet-18, how many times faster than the release each variant is."""
    lines = []
    layer_rows = [row for row in rows if row["part"] == "layer" and row["times_faster"]]
    for variant, dtype in dict.fromkeys((row["variant"], row["dtype"]) for row in layer_rows):
        ratios = [row["times_faster"] for row in layer_rows if (row["variant"], row["dtype"]) == (variant, dtype)]
        lines.append(f"geometric mean  {variant:<20}{dtype:<10}{statistics.geometric_mean(ratios):.2f}x the release")
    return lines


def write_results(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes the CSV file, and beside it a figure of the layers' times."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    layer_rows = [row for row in rows if row["part"] in ("layer", "step")]
    if not layer_rows:
        return
    from matplotlib.figure import Figure

    places = list(dict.fromkeys(row["place"] for row in layer_rows))
    figure = Figure(figsize=(3.2 * len(places), 4.2), layout="constrained")
    for axis, place in zip(figure.subplots(1, len(places), squeeze=False)[0], places):
        here = [row for row in layer_rows if row["place"] == place]
        labels = [f"{row['variant']}, {row['dtype']}" for row in here]
        colours = ["#D55E00" if row["variant"] == "release" else "#0072B2" for row in here]
        axis.barh(labels, [row["milliseconds"] for row in here], color=colours)
        axis.invert_yaxis()
        axis.set_xlabel("forward and backward (ms)")
        axis.set_title(f"{place}, batch {here[0]['batch']}", fontsize=9)
        axis.tick_params(axis="y", labelsize=7)
    figure.savefig(path.with_suffix(".png"), dpi=120)


def main(argv: Sequence[str]) -> None:
    """Measures, prints and writes."""
    del argv
    if _WORKER.value:
        logging.set_verbosity(logging.ERROR)  # The release's gradient warns of a cast at every trace.
        work(build_ours if _WORKER.value == "ours" else build_release)
        return
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("tensorflow", "keras"))
    print(f"{versions}, {os.cpu_count()} processors, {platform.processor() or platform.machine()}")
    rows = measure(_PARTS.value, _BATCH.value, _REPEATS.value, _AGAINST.value)
    print("\n".join(geometric_means(rows)))
    write_results(pathlib.Path(_OUTPUT.value), rows)
    print(f"written to {_OUTPUT.value}")


if __name__ == "__main__":
    app.run(main)
