"""Where a run is computed: one device, all devices of a machine, several machines, or a TPU."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.common.arguments import validated_choice
from diffstride_hybrid.common.errors import first_line
from diffstride_hybrid.common.registration import register

STRATEGIES = ("one_device", "mirrored", "multi_worker", "tpu")


def make_strategy(name: str = "one_device", tpu: str | None = None) -> tf.distribute.Strategy:
    """Makes a distribution strategy, and lets GPUs take memory as they need it.

    Call it before TensorFlow computes anything: devices cannot be set up later.

    Args:
        name: 'one_device'; 'mirrored' for all GPUs of this machine; 'multi_worker' for the machines that the
            environment variable TF_CONFIG names; or 'tpu'.
        tpu: name or address of the TPU; 'local' on the TPU's own machine. Only for 'tpu'.

    Returns:
        The strategy. For 'one_device' it is TensorFlow's default strategy.

    Raises:
        ValueError: `name` is unknown, `tpu` is missing or does not belong to `name`, or TF_CONFIG is wrong.
        OSError: the TPU or another worker cannot be reached.

    Example:
        >>> from diffstride_hybrid.common.distribution import make_strategy
        >>> make_strategy("one_device").num_replicas_in_sync
        1
    """
    validated_choice("--strategy", name, STRATEGIES)
    if (tpu is not None) != (name == "tpu"):
        raise ValueError(f"--strategy=tpu and --tpu=NAME go together, got --strategy={name} and --tpu={tpu}.")
    for gpu in tf.config.list_physical_devices("GPU"):
        tf.config.experimental.set_memory_growth(gpu, True)
    if name == "tpu":
        return _tpu_strategy(tpu)
    if name == "mirrored":
        return tf.distribute.MirroredStrategy()
    if name == "multi_worker":
        workers, task = _read_tf_config()
        print(f"{task}: waiting for all {workers} workers", flush=True)
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except tf.errors.OpError as error:
            raise ConnectionError(
                f"Not all {workers} workers of TF_CONFIG could be reached: {first_line(error)}"
            ) from error
    return tf.distribute.get_strategy()


def default_dtype_policy(strategy: tf.distribute.Strategy) -> str:
    """The fastest dtype policy that the devices multiply in natively and that trains to the same accuracy.

    Args:
        strategy: says whether the device is a TPU.

    Returns:
        'mixed_bfloat16' on a TPU and if every GPU has compute capability 8 or higher; 'mixed_float16' if every GPU has
        7 or higher; otherwise 'float32'.
    """
    if is_tpu(strategy):
        return "mixed_bfloat16"
    capabilities = [
        tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
        for gpu in tf.config.list_physical_devices("GPU")
    ]
    least = min(capabilities, default=(0, 0))
    if least >= (8, 0):
        return "mixed_bfloat16"
    return "mixed_float16" if least >= (7, 0) else "float32"


def strategy_name(strategy: tf.distribute.Strategy) -> str:
    """The name of a strategy, as `run.json` records it.

    Args:
        strategy: any strategy.

    Returns:
        One of `STRATEGIES`; the name of the strategy's class if `make_strategy` does not make that class.
    """
    classes = {
        "mirrored": tf.distribute.MirroredStrategy,
        "multi_worker": tf.distribute.MultiWorkerMirroredStrategy,
        "tpu": tf.distribute.TPUStrategy,
    }
    found = [name for name, cls in classes.items() if isinstance(strategy, cls)]
    if found:
        return found[0]
    return type(strategy).__name__ if tf.distribute.has_strategy() else "one_device"


def is_tpu(strategy: tf.distribute.Strategy) -> bool:
    """Whether a strategy runs on a TPU. A TPU compiles every step."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process writes the files of the run. Of several workers only the chief does."""
    return not _has_workers(strategy) or strategy.extended.should_checkpoint


def worker_count(strategy: tf.distribute.Strategy) -> int:
    """The number of processes that train together."""
    if not _has_workers(strategy):
        return 1
    return max(1, _count_workers(strategy.cluster_resolver.cluster_spec()))  # Without TF_CONFIG the cluster is empty.


def wait_for_all_workers(strategy: tf.distribute.Strategy) -> None:
    """Returns when every worker has called this function, or when a worker is gone."""
    with contextlib.suppress(tf.errors.OpError):
        sum_over_replicas(strategy, 1)


@contextlib.contextmanager
def naming_lost_workers(strategy: tf.distribute.Strategy, advice: str) -> Iterator[None]:
    """Turns an error that arises because another worker is gone into a message that says so.

    Args:
        strategy: of the run. With one worker errors pass unchanged.
        advice: a sentence that says what to do.

    Raises:
        ConnectionError: within the context TensorFlow reported a lost worker.
    """
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        if worker_count(strategy) == 1:
            raise
        raise ConnectionError(f"One of the {worker_count(strategy)} workers is gone. {advice}") from error


@register
class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Keras's loss scaling for several replicas: if the gradients of one replica overflow, no replica takes the step.

    Keras's own class checks on each replica that replica's gradients alone, before they are added up. The replicas
    would then disagree about the step.
    """

    def check_finite(self, grads: Sequence[tf.Tensor]) -> tf.Tensor:
        return on_all_replicas(super().check_finite(grads))


def without_loss_scaling(optimizer: Any) -> Any:
    """Returns the optimizer that a `LossScaleOptimizer` wraps, and any other one as it is.

    Args:
        optimizer: of any kind; None is one of them.
    """
    return getattr(optimizer, "inner_optimizer", optimizer)


def on_all_replicas(condition: tf.Tensor) -> tf.Tensor:
    """Whether a condition holds on every replica. Call it within a step.

    Args:
        condition: a boolean scalar of the replica that calls.

    Returns:
        A boolean scalar, the same on every replica.
    """
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return condition
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, 1.0 - tf.cast(condition, tf.float32)) == 0.0


def sum_over_replicas(strategy: tf.distribute.Strategy, value: int) -> int:
    """Adds up a number over all replicas, and waits until every worker has called this function.

    Args:
        strategy: of the run.
        value: the number of this worker, counted once for each of its replicas.

    Returns:
        The sum.
    """
    if worker_count(strategy) == 1:
        return value * strategy.num_replicas_in_sync
    return int(_total_over(strategy)(tf.constant(value)))


@functools.lru_cache(maxsize=1)
def _total_over(strategy: tf.distribute.Strategy) -> Callable[[tf.Tensor], tf.Tensor]:
    @tf.function(autograph=False)
    def total(value: tf.Tensor) -> tf.Tensor:
        return strategy.reduce("SUM", strategy.run(tf.identity, (value,)), axis=None)

    return total


def _has_workers(strategy: tf.distribute.Strategy) -> bool:
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def _tpu_strategy(tpu: str) -> tf.distribute.TPUStrategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=tpu)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    except (tf.errors.OpError, ValueError, OSError, RuntimeError) as error:
        raise OSError(f"No TPU {tpu!r} could be reached: {first_line(error)}") from error


def _read_tf_config() -> tuple[int, str]:
    """Reads how many workers TF_CONFIG names, and which of them this process is."""
    text = os.environ.get("TF_CONFIG")
    example = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
    if not text:
        raise ValueError(f"--strategy=multi_worker needs the environment variable TF_CONFIG, such as {example}.")
    try:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
        cluster, job, index = resolver.cluster_spec(), resolver.task_type, resolver.task_id
        return _count_workers(cluster), f"{job} {index} at {cluster.task_address(job, index)}"
    except (ValueError, TypeError) as error:
        raise ValueError(f"TF_CONFIG must look like {example}, got {text}.") from error


def _count_workers(cluster: tf.train.ClusterSpec) -> int:
    """Counts the processes that train. A cluster may also name processes that evaluate or serve parameters."""
    return sum(cluster.num_tasks(job) for job in ("chief", "worker") if job in cluster.jobs)
