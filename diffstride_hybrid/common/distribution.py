"""Where a run is computed: one device, all devices of a machine, several machines, or a TPU."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from diffstride_hybrid.common.errors import first_line
from diffstride_hybrid.common.registration import register

STRATEGIES = ("one_device", "mirrored", "multi_worker", "tpu")


def make_strategy(name: str = "one_device", tpu: str | None = None) -> tf.distribute.Strategy:
    """Makes a distribution strategy. GPUs take memory as they need it.

    This must come before anything else is computed.

    Args:
        name: 'one_device'; 'mirrored', all GPUs of this machine; 'multi_worker', the machines that the environment
            variable TF_CONFIG names; or 'tpu'.
        tpu: name or address of the TPU, 'local' on a TPU's own machine. For 'tpu' only.

    Returns:
        The strategy.

    Raises:
        ValueError: `name` is unknown, `tpu` is missing or not wanted, or TF_CONFIG does not say what it should.
        OSError: the TPU or the other workers cannot be reached.
    """
    if name not in STRATEGIES:
        raise ValueError(f"--strategy must be one of {', '.join(map(repr, STRATEGIES))}, got {name!r}.")
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
    """The fastest dtype policy whose products the devices compute natively and that trains to the same accuracy.

    Args:
        strategy: where to run.

    Returns:
        'mixed_bfloat16' on a TPU and on GPUs of compute capability 8 and later, 'mixed_float16' on GPUs of 7,
        'float32' elsewhere.
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
    """Which of `STRATEGIES` a strategy is, its class's name where it is none of them."""
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
    """Whether a strategy is that of a TPU, which compiles every step by itself."""
    return isinstance(strategy, tf.distribute.TPUStrategy)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Whether this process is the one of several that writes."""
    return not _has_workers(strategy) or strategy.extended.should_checkpoint


def worker_count(strategy: tf.distribute.Strategy) -> int:
    """How many processes train together."""
    return strategy.extended._num_workers if _has_workers(strategy) else 1


def wait_for_all_workers(strategy: tf.distribute.Strategy) -> None:
    """Returns once every worker has called it, or one is gone."""
    with contextlib.suppress(tf.errors.OpError):
        sum_over_replicas(strategy, 1)


@contextlib.contextmanager
def naming_lost_workers(strategy: tf.distribute.Strategy, advice: str) -> Iterator[None]:
    """Says so, and what to do, where something fails within the context because another worker is gone."""
    try:
        yield
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        if worker_count(strategy) == 1:
            raise
        raise ConnectionError(f"One of the {worker_count(strategy)} workers is gone. {advice}") from error


@register
class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Keras's loss scaling, for several replicas as well: none takes a step where the gradients of one overflowed.

    Keras asks each replica for its own gradients only, before they are added up.
    """

    def check_finite(self, grads: Sequence[tf.Tensor]) -> tf.Tensor:
        return on_all_replicas(super().check_finite(grads))


def on_all_replicas(condition: tf.Tensor) -> tf.Tensor:
    """Whether a condition holds on every replica, where one asks."""
    replica = tf.distribute.get_replica_context()
    if replica is None or replica.num_replicas_in_sync == 1:
        return condition
    return replica.all_reduce(tf.distribute.ReduceOp.SUM, 1.0 - tf.cast(condition, tf.float32)) == 0.0


def sum_over_replicas(strategy: tf.distribute.Strategy, value: int) -> int:
    """Adds up what the worker of each replica has. It returns once every worker has called it."""
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
    """How many workers TF_CONFIG names, and which of them this one is."""
    text = os.environ.get("TF_CONFIG")
    example = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
    if not text:
        raise ValueError(f"--strategy=multi_worker needs the environment variable TF_CONFIG, such as {example}.")
    try:
        config = json.loads(text)
        job, index, cluster = config["task"]["type"], int(config["task"]["index"]), config["cluster"]
        if index < 0 or not all(isinstance(addresses, list) for addresses in cluster.values()):
            raise TypeError
        workers = sum(len(cluster.get(name, ())) for name in ("chief", "worker"))
        return workers, f"{job} {index} at {cluster[job][index]}"
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(f"TF_CONFIG must look like {example}, got {text}.") from error
