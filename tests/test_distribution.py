import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf

from diffstride_hybrid import DiffStride, Resnet, SpectralPooling, spectral
from diffstride_hybrid.common import distribution, signals
from diffstride_hybrid.config import gin_files, gin_names
from diffstride_hybrid.data.loading import load_datasets
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.models.residual import batch_norm
from diffstride_hybrid.training.loop import TrainingLoop
from diffstride_hybrid.training.run import evaluate, make_loop, train
from experiments.launch_local import start_workers

pytestmark = pytest.mark.long

SMALL_HYBRID = """
train.train:
  model_cls = @resnet.Resnet
  optimizer_cls = @tf.keras.optimizers.SGD
  num_epochs = 2
  steps_per_epoch = 10
tf.keras.optimizers.SGD:
  learning_rate = 0.01
  momentum = 0.9
data.load_datasets:
  name = 'digits'
  image_size = 16
  batch_size = 64
  augment_fn = @data.augment
  mixup_alpha = 0.2
resnet.Resnet:
  filters = [4, 6]
  strides = [1, 2]
  num_layers = 1
  output_activation = 'softmax'
  pooling_cls = @pooling.DiffStride
  head_pooling_cls = @pooling.SpectralPooling
batch_norm.synchronized = True
"""


@pytest.fixture(scope="module")
def gin_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "small_hybrid.gin"
    path.write_text(SMALL_HYBRID)
    return path


@functools.cache  # TensorFlow mixes up the sums of two such strategies in one process.
def two_cpus() -> tf.distribute.MirroredStrategy:
    """Two replicas, on the logical devices that `conftest.py` makes of the CPU."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def started_loop(**options: Any) -> TrainingLoop:
    """A small network on digits, under the current strategy, at its first step."""
    loop = make_loop(
        load_datasets("digits", image_size=16, batch_size=32),
        functools.partial(Resnet, [4, 6], [1, 2], output_activation="softmax", num_layers=1, **options),
        functools.partial(keras.optimizers.SGD, 0.01),
        keras.losses.CategoricalCrossentropy,
    )
    loop.start(0)
    return loop


def outcome(workers: list[subprocess.Popen[str]], timeout: float = 120) -> list[tuple[int, str, str]]:
    ends = []
    for worker in workers:
        out, err = worker.communicate(timeout=timeout)
        ends.append((worker.returncode, out, err))
    return ends


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Any]:
    """Starts two workers of the train command, and ends them with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> list[subprocess.Popen[str]]:
        workers = start_workers(2, arguments, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        started.extend(workers)
        return workers

    yield start
    for worker in started:
        with worker:
            worker.kill()


# --- Several devices and several machines ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_one_device(gin_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    return run_here(gin_file, tmp_path_factory.mktemp("one_device"), tf.distribute.get_strategy())


def run_here(gin_file: Path, workdir: Path, strategy: tf.distribute.Strategy) -> tuple[Path, dict[str, Any]]:
    gin_files.parse([str(gin_file)], [])
    with strategy.scope():
        return workdir, gin_names.train(workdir=str(workdir))


def assert_same_run(run: tuple[Path, dict[str, Any]], expected: tuple[Path, dict[str, Any]]) -> None:
    """Compares weights after twenty steps.

    Sums over replicas round otherwise than sums over the batch. In twenty steps that comes to 4e-5 of the greatest
    weight, which leaves a margin of five; one step left out, or one replica's share counted twice, gives 1e-2.
    """
    model, other = (keras.saving.load_model(folder / "final.keras") for folder, _ in (run, expected))
    for weight, other_weight in zip(model.weights, other.weights, strict=True):
        np.testing.assert_allclose(
            weight.numpy(), other_weight.numpy(), rtol=2e-4, atol=2e-4 * scale_of(weight), err_msg=weight.path
        )
    strides, other_strides = (
        np.concatenate([layer.strides.numpy() for layer in diffstride_layers(m)]) for m in (model, other)
    )
    np.testing.assert_allclose(strides, other_strides, rtol=1e-6)
    assert run[1]["test_accuracy"] == pytest.approx(expected[1]["test_accuracy"], abs=1e-6)
    assert run[1]["test_loss"] == pytest.approx(expected[1]["test_loss"], rel=1e-4)
    assert run[1]["steps"] == expected[1]["steps"] == 20


def scale_of(weight: keras.Variable) -> float:
    """Betas and moving means start at 0 and have hardly moved: they are held to the scale of what they are added to."""
    return 1.0 if weight.name in ("beta", "moving_mean") else float(np.abs(weight.numpy()).max())


def test_two_devices_train_as_one(gin_file: Path, on_one_device: tuple[Path, dict[str, Any]], tmp_path: Path):
    run = run_here(gin_file, tmp_path, two_cpus())
    assert_same_run(run, on_one_device)
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["strategy"], record["replicas"], record["workers"]) == ("mirrored", 2, 1)


def test_two_workers_train_as_one(
    gin_file: Path, on_one_device: tuple[Path, dict[str, Any]], tmp_path: Path, launch: Any
):
    ends = outcome(launch(f"--gin_file={gin_file}", "--workdir=run"))
    assert [code for code, *_ in ends] == [0, 0], ends
    folder = tmp_path / "run"
    assert_same_run((folder, json.loads((folder / "summary.json").read_text())), on_one_device)
    record = json.loads((folder / "run.json").read_text())
    assert (record["strategy"], record["replicas"], record["workers"]) == ("multi_worker", 2, 2)
    chief, other = (out for _, out, _ in ends)
    assert chief.count("epoch") > 2 and "test accuracy" in chief
    assert "epoch" not in other and "waiting for all 2 workers" in other
    assert not list(folder.rglob("*partial*"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1], ids=["chief", "other"])
def test_a_lost_worker_ends_the_other_and_both_resume(gin_file: Path, tmp_path: Path, launch: Any, victim: int):
    arguments = (f"--gin_file={gin_file}", "--workdir=run", "--gin_bindings=train.train.num_epochs = 500")
    workers = launch(*arguments)
    wait_for_epochs(tmp_path / "run", 2, workers)
    workers[victim].kill()
    killed = time.monotonic()
    code, _, err = outcome([workers[1 - victim]], timeout=60)[0]
    assert time.monotonic() - killed < 40
    assert code == 1
    assert "Traceback" not in err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "One of the 2 workers is gone. Start all of them again: training in run goes on from its last backup" in line
    epochs = len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) - 1
    workers = launch(*arguments)
    wait_for_epochs(tmp_path / "run", epochs + 1, workers)
    workers[0].kill()
    resumed = re.search(r"resuming run after epoch (\d+)", workers[0].communicate()[0])
    assert int(resumed[1]) in (epochs - 1, epochs)


@pytest.mark.slow
def test_a_signal_to_one_worker_saves_and_stops_all(gin_file: Path, tmp_path: Path, launch: Any):
    arguments = (f"--gin_file={gin_file}", "--workdir=run", "--gin_bindings=train.train.num_epochs = 500")
    workers = launch(*arguments)
    wait_for_epochs(tmp_path / "run", 2, workers)
    workers[1].send_signal(signal.SIGTERM)
    for (code, _, err), name in zip(outcome(workers, timeout=60), ("a signal to another worker", "SIGTERM")):
        assert code == signals.EXIT_CODE, err
        assert "Traceback" not in err
        steps = int(
            re.search(rf"^stopped by {name} after ([\d,]+) steps: start", err, re.MULTILINE)[1].replace(",", "")
        )
    assert steps >= 20
    assert (tmp_path / "run" / "backup" / f"ckpt-{steps}-1.index").exists()
    workers = launch(*arguments)
    wait_for_epochs(tmp_path / "run", steps // 10 + 1, workers)
    workers[0].kill()
    assert f"resuming run after epoch {steps // 10}" in workers[0].communicate()[0]


def wait_for_epochs(folder: Path, count: int, workers: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 120
    metrics = folder / "metrics.csv"
    while not metrics.exists() or len(metrics.read_text().splitlines()) <= count:
        assert all(worker.poll() is None for worker in workers), workers
        assert time.monotonic() < deadline
        time.sleep(0.1)


# --- Evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [8, 50, 64, 1000])
@pytest.mark.parametrize("make_strategy", [tf.distribute.get_strategy, two_cpus], ids=["one", "two"])
def test_evaluation_counts_every_image_once(make_strategy: Any, batch_size: int):
    datasets = load_datasets("digits", image_size=8, batch_size=batch_size, validation_fraction=0.25)
    assert datasets.splits["validation"].size == 359  # A prime number.
    with make_strategy().scope():
        model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(10, activation="softmax")])
        model.build((None, 8, 8, 1))
        results = evaluate(model, keras.losses.CategoricalCrossentropy(), datasets, "validation")
    batches = datasets.evaluation("validation").as_numpy_iterator()
    images, labels, weights = (np.concatenate(parts) for parts in zip(*batches))
    assert weights.sum() == 359
    probabilities = model(images[weights > 0]).numpy().astype("float64")
    labels = labels[weights > 0]
    assert results["accuracy"] == pytest.approx(np.mean(probabilities.argmax(1) == labels.argmax(1)), abs=1e-6)
    assert results["loss"] == pytest.approx(np.mean(-np.log((probabilities * labels).sum(1))), rel=1e-5)


def test_a_batch_must_split_evenly_over_the_replicas():
    datasets = load_datasets("digits", image_size=8, batch_size=25)
    with two_cpus().scope():
        model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)])
        with pytest.raises(
            ValueError, match=r"data\.load_datasets\.batch_size must be a multiple of the 2 replicas, got 25"
        ):
            evaluate(model, keras.losses.CategoricalCrossentropy(), datasets)


def test_what_several_cpus_cannot_do_is_named(tmp_path: Path):
    small = functools.partial(Resnet, [4, 6], [1, 2], output_activation="softmax", pooling_cls=DiffStride, num_layers=1)
    options = {
        "load_data_fn": functools.partial(load_datasets, "digits", image_size=16, batch_size=64),
        "model_cls": small,
        "optimizer_cls": keras.optimizers.SGD,
        "workdir": str(tmp_path),
    }
    with two_cpus().scope():
        with pytest.raises(ValueError, match=r"train\.train\.jit_compile = True needs one replica"):
            train(**options, jit_compile=True)
        with pytest.raises(ValueError, match=r"train\.train\.dtype_policy = 'float64' needs one replica"):
            train(**options, dtype_policy="float64")
        clipped = {**options, "optimizer_cls": functools.partial(keras.optimizers.SGD, clipnorm=1.0)}
        with pytest.raises(ValueError, match=r"clipnorm needs one replica: Keras would clip .* of each of the 2"):
            train(**clipped)


@pytest.mark.parametrize("broken", [0, 1])
def test_no_replica_takes_a_step_where_the_gradients_of_one_overflow(broken: int):
    strategy = two_cpus()
    with strategy.scope():
        weight = keras.Variable([1.0, 2.0])
        optimizer = distribution.LossScaleOptimizer(keras.optimizers.SGD(0.5), initial_scale=8.0)
        optimizer.build([weight])

        @tf.function(autograph=False)
        def step(overflows: tf.Tensor) -> None:
            def of_replica() -> None:
                here = tf.distribute.get_replica_context().replica_id_in_sync_group
                gradient = tf.where(overflows & (here == broken), np.inf, 8.0) * tf.ones([2])
                optimizer.apply_gradients([(gradient, weight)])

            strategy.run(of_replica)

        step(tf.constant(True))
        for component in weight.value.values:
            np.testing.assert_array_equal(component.numpy(), [1.0, 2.0])
        scales = [component.numpy() for component in optimizer.dynamic_scale.value.values]
        assert scales == [4.0, 4.0]
        step(tf.constant(False))
        for component in weight.value.values:
            np.testing.assert_array_equal(component.numpy(), [1.0 - 0.5 * 4, 2.0 - 0.5 * 4])


class WithoutGradient(keras.losses.CategoricalCrossentropy):
    """The cross-entropy, whose gradient is no number in the third step of two replicas, and when that is repeated."""

    calls = 0

    def call(self, labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        type(self).calls += 1
        broken = type(self).calls in (5, 6, 7)
        return super().call(labels, outputs) + (tf.sqrt(0.0 * outputs[:, 0]) if broken else 0.0)


def test_replicas_go_back_together_when_a_gradient_is_not_finite(
    tmp_path: Path, uncompiled: None, caplog: pytest.LogCaptureFixture
):
    WithoutGradient.calls = 0
    with two_cpus().scope():
        summary = train(
            functools.partial(load_datasets, "digits", image_size=16, batch_size=32),
            functools.partial(Resnet, [4, 6], [1, 2], output_activation="softmax", num_layers=1),
            functools.partial(keras.optimizers.SGD, 0.01),
            WithoutGradient,
            num_epochs=1,
            steps_per_epoch=4,
            steps_per_execution=1,
            on_not_finite="roll_back",
            workdir=str(tmp_path),
        )
    (warning,) = [record.getMessage() for record in caplog.records if "leaving its batch out" in record.getMessage()]
    assert warning.startswith("Step 3 (step 3 of epoch 1) is not finite, first the gradient of ")
    assert summary["steps"] == 3


@pytest.mark.parametrize("axis", [-1, 1], ids=["fused", "not fused"])
def test_a_layers_moving_averages_stay_the_same_on_all_replicas(axis: int):
    strategy = two_cpus()
    with strategy.scope():
        layer = batch_norm(axis=axis)
        layer.build((None, 4, 4, 4))
        images = tf.random.normal([8, 4, 4, 4])

        @tf.function(autograph=False)
        def step() -> None:
            def of_replica() -> None:
                here = tf.distribute.get_replica_context().replica_id_in_sync_group
                layer(images + tf.cast(here, tf.float32), training=True)

            strategy.run(of_replica)

        step()
    first, second = (component.numpy() for component in layer.moving_mean.value.values)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first.mean(), 0.01 * (images.numpy().mean() + 0.5), rtol=1e-4)


def test_unsynchronised_statistics_stay_the_same_on_all_replicas():
    with two_cpus().scope():
        loop = started_loop(head_pooling_cls=SpectralPooling)
        loop.train_steps(3)
    for variable in loop.model.variables:
        first, second = (component.numpy() for component in variable.value.values)
        np.testing.assert_array_equal(first, second, err_msg=variable.path)
    assert np.abs(loop.model.get_layer("norm").moving_mean.value.values[0].numpy()).max() > 0


def test_what_a_tpu_asks_for_is_chosen_by_itself(monkeypatch: pytest.MonkeyPatch):
    """Two CPUs in the place of a TPU: nothing is compiled, but everything is decided as there."""
    monkeypatch.setattr(tf.distribute, "TPUStrategy", tf.distribute.MirroredStrategy)
    strategy = two_cpus()
    assert distribution.default_dtype_policy(strategy) == "mixed_bfloat16"
    with strategy.scope():
        loop = started_loop(pooling_cls=DiffStride)
        assert loop.jit_compile
        crops = [layer.crops for layer in diffstride_layers(loop.model)]
        assert all(crops)
        loop.train_steps(2)
        assert [layer.crops for layer in diffstride_layers(loop.model)] == crops
    assert spectral.resolve_method("auto", 2048, 2048) == "fft"
    with strategy.scope():
        assert spectral.resolve_method("auto", 2048, 2048) == "matmul"


# --- Choosing where to run -------------------------------------------------------------------------------------------


def test_one_device_is_the_default():
    assert distribution.make_strategy() is tf.distribute.get_strategy()
    strategy = tf.distribute.get_strategy()
    assert distribution.is_chief(strategy)
    assert distribution.worker_count(strategy) == 1
    assert distribution.strategy_name(strategy) == "one_device"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("many",), r"--strategy must be one of 'one_device', .*, got 'many'"),
        (("tpu",), r"--strategy=tpu and --tpu=NAME go together, got --strategy=tpu and --tpu=None"),
        (("mirrored", "local"), r"go together, got --strategy=mirrored and --tpu=local"),
        (("multi_worker",), r"needs the environment variable TF_CONFIG, such as \{"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match=message):
        distribution.make_strategy(*arguments)


@pytest.mark.parametrize(
    "text",
    [
        '{"cluster": ["a:1"], "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": -1}}',
        "{",
        "[]",
        "{}",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
    ],
)
def test_a_wrong_tf_config_is_named(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG must look like"):
        distribution.make_strategy("multi_worker")


def test_a_tpu_that_is_not_there_is_named():
    command = [
        sys.executable,
        "-m",
        "diffstride_hybrid.train",
        "--gin_file=digits_hybrid",
        "--strategy=tpu",
        "--tpu=local",
    ]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env={**os.environ, "TPU_SKIP_MDS_QUERY": "1"}
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert [line for line in ended.stderr.splitlines() if line.startswith("error: No TPU 'local' could be reached: ")]


@pytest.mark.parametrize(
    ("capability", "policy"),
    [
        (None, "float32"),
        ((6, 1), "float32"),
        ((7, 5), "mixed_float16"),
        ((8, 0), "mixed_bfloat16"),
        ((9, 0), "mixed_bfloat16"),
    ],
)
def test_the_default_precision_is_what_the_card_has(capability: tuple[int, int] | None, policy: str):
    cards = [] if capability is None else ["GPU:0"]
    with (
        mock.patch.object(tf.config, "list_physical_devices", return_value=cards),
        mock.patch.object(
            tf.config.experimental, "get_device_details", return_value={"compute_capability": capability}
        ),
    ):
        assert distribution.default_dtype_policy(tf.distribute.get_strategy()) == policy


def test_gpus_take_memory_as_they_need_it():
    grown = []
    with (
        mock.patch.object(tf.config, "list_physical_devices", return_value=["GPU:0", "GPU:1"]),
        mock.patch.object(tf.config.experimental, "set_memory_growth", lambda card, grows: grown.append((card, grows))),
    ):
        distribution.make_strategy()
    assert grown == [("GPU:0", True), ("GPU:1", True)]
