"""The memory that TensorFlow holds while a function runs."""

from __future__ import annotations

import gc

import tensorflow as tf

from diffstride_hybrid.backends import on_tensorflow


class Unused:
    """Eight megabytes that only the garbage collector frees."""

    def __init__(self):
        self.values, self.itself = tf.zeros([2_000_000]), self


def test_what_is_freed_during_the_run_is_not_subtracted():
    def run() -> None:
        gc.collect()
        tf.random.uniform([1_000_000])

    Unused()
    assert 3.9 < on_tensorflow.peak_megabytes(run) < 6.0
