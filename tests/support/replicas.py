"""Two replicas in one process."""

import functools
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid import Resnet
from diffstride_hybrid.data.loading import load_datasets
from diffstride_hybrid.training.loop import TrainingLoop
from diffstride_hybrid.training.run import make_loop


@functools.cache  # TensorFlow mixes up the sums of two such strategies in one process.
def two_cpus() -> tf.distribute.MirroredStrategy:
    """Two replicas, on the logical devices that `conftest.py` makes of the CPU."""
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


def started_loop(jit_compile: bool = False, **options: Any) -> TrainingLoop:
    """A small network on digits, under the current strategy, at its first step."""
    loop = make_loop(
        load_datasets("digits", image_size=16, batch_size=32),
        functools.partial(Resnet, [4, 6], [1, 2], output_activation="softmax", num_layers=1, **options),
        functools.partial(keras.optimizers.SGD, 0.01),
        keras.losses.CategoricalCrossentropy,
        jit_compile=jit_compile,
    )
    loop.start(0)
    return loop
