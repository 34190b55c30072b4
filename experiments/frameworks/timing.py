"""Times forward and backward passes of poolings on the backend that Keras runs on.

Prints a line of JSON for each map and pooling. `python -m experiments.frameworks` runs this for each backend.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from diffstride_hybrid import DiffStride, SpectralPooling

BATCH = 32

MAPS = ((32, 32, 64), (16, 16, 128), (56, 56, 32), (112, 112, 8))
"""Height, width and channels of the maps."""


class ByTransform(keras.layers.Layer):
    """Spectral pooling at stride 2 by the backend's own transforms of two dimensions, on even sizes."""

    def call(self, inputs: Any) -> Any:
        ops = keras.ops
        maps = ops.transpose(inputs, [0, 3, 1, 2])
        real, imaginary = ops.fft2((maps, ops.zeros_like(maps)))
        height, width = (length // 2 for length in maps.shape[2:])

        def cropped(spectrum: Any) -> Any:
            rows = ops.concatenate([spectrum[:, :, : height // 2], spectrum[:, :, -(height // 2) :]], 2)
            return ops.concatenate([rows[..., : width // 2], rows[..., -(width // 2) :]], 3)

        outputs, _ = ops.ifft2((cropped(real), cropped(imaginary)))
        return ops.transpose(outputs, [0, 2, 3, 1]) / 4

    def compute_output_shape(self, input_shape: tuple[int, ...]) -> tuple[int, ...]:
        batch, height, width, channels = input_shape
        return batch, height // 2, width // 2, channels


POOLINGS: dict[str, Callable[[], keras.layers.Layer]] = {
    "average pooling": lambda: keras.layers.AveragePooling2D(2),
    "SpectralPooling": lambda: SpectralPooling(2.0, norm="forward"),
    "transforms": ByTransform,
    "DiffStride, symmetric": lambda: DiffStride(2.0, mask="symmetric", norm="forward"),
    "DiffStride, released": lambda: DiffStride(2.0),
}


def step_of(layer: keras.layers.Layer, maps: np.ndarray) -> Callable[[], None]:
    """A function that runs a layer forward and backward once and waits for the result."""
    return _STEPS[keras.backend.backend()](layer, maps)


def _on_tensorflow(layer: keras.layers.Layer, maps: np.ndarray) -> Callable[[], None]:
    import tensorflow as tf

    inputs = tf.constant(maps)
    weights = [weight.value for weight in layer.trainable_variables]

    @tf.function
    def gradients() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(layer(inputs) ** 2)
        return tape.gradient(loss, [inputs, *weights])

    return lambda: gradients()[0].numpy()


def _on_jax(layer: keras.layers.Layer, maps: np.ndarray) -> Callable[[], None]:
    import jax

    others = [weight.value for weight in layer.non_trainable_variables]
    arguments = [weight.value for weight in layer.trainable_variables], jax.numpy.asarray(maps)

    @jax.jit
    @jax.grad
    def gradients(arguments: Any) -> Any:
        return (layer.stateless_call(arguments[0], others, arguments[1])[0] ** 2).sum()

    return lambda: jax.block_until_ready(gradients(arguments))


def _on_torch(layer: keras.layers.Layer, maps: np.ndarray) -> Callable[[], None]:
    import torch

    inputs = torch.tensor(maps, requires_grad=True)
    weights = [weight.value for weight in layer.trainable_variables]
    return lambda: torch.autograd.grad((layer(inputs) ** 2).sum(), [inputs, *weights])


_STEPS = {"tensorflow": _on_tensorflow, "jax": _on_jax, "torch": _on_torch}


def main(repeats: int) -> None:
    """Times every pooling on every map.

    Args:
        repeats: how often each is timed. The poolings take turns, so that a slow moment of the machine meets all.
    """
    for height, width, channels in MAPS:
        maps = np.random.default_rng(0).normal(size=(BATCH, height, width, channels)).astype("float32")
        steps = {}
        for name, make in POOLINGS.items():
            layer = make()
            layer.build(maps.shape)
            steps[name] = step_of(layer, maps)
            steps[name]()
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(repeats):
            for name, step in steps.items():
                start = time.perf_counter()
                step()
                times[name].append(time.perf_counter() - start)
        for name, seconds in times.items():
            row = {
                "backend": keras.backend.backend(),
                "map": f"{height}x{width}x{channels}",
                "pooling": name,
                "milliseconds": f"{1000 * statistics.median(seconds):.3f}",
            }
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
