"""Times forward and backward passes of poolings on the backend that Keras runs on.

Prints a line of JSON for each map and pooling. `python -m experiments.frameworks` runs this for each backend:

python -m experiments.frameworks.timing REPEATS DEVICE

If DEVICE is 'gpu' and the backend finds none, the one line that it prints says what it found.
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
from diffstride_hybrid.common.errors import one_line
from experiments import devices
from experiments.frameworks.report import CHANNELS_FIRST

Step = Callable[[int], list[Any]]

BATCH = 32

MAPS = ((32, 32, 64), (16, 16, 128), (56, 56, 32), (112, 112, 8))
"""Height, width and channels of the maps."""

MAPS_ON_GPU = (*MAPS, (224, 224, 16), (512, 512, 8), (1024, 1024, 2))


class ByTransform(keras.layers.Layer):
    """Spectral pooling at stride 2 by the backend's own complex transforms of two dimensions, on even sizes."""

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


def _diffstride(**options: Any) -> DiffStride:
    """DiffStride at stride 2. JAX fixes its size in any case, and warns unless that was asked for."""
    return DiffStride(2.0, static_crop=True if keras.backend.backend() == "jax" else None, **options)


POOLINGS: dict[str, Callable[[], keras.layers.Layer]] = {
    "average pooling": lambda: keras.layers.AveragePooling2D(2),
    "SpectralPooling": lambda: SpectralPooling(2.0, norm="forward"),
    "transforms": ByTransform,
    "DiffStride, symmetric": lambda: _diffstride(mask="symmetric", norm="forward"),
    "DiffStride, released": _diffstride,
}


ON_GPU: dict[str, Callable[[], keras.layers.Layer]] = {
    f"SpectralPooling{CHANNELS_FIRST}": lambda: SpectralPooling(2.0, norm="forward", data_format="channels_first"),
    f"DiffStride, symmetric{CHANNELS_FIRST}": lambda: _diffstride(
        mask="symmetric", norm="forward", data_format="channels_first"
    ),
}
"""What a GPU runs too: either data format may be faster there."""


def step_of(layer: keras.layers.Layer, maps: np.ndarray) -> Step:
    """Compiles a pass forward and backward through a layer, in training.

    Args:
        layer: a built layer.
        maps: its inputs.

    Returns:
        A function that runs as many passes as it is told, and waits for the last one. It returns the gradients of the
        sum of the squared outputs to the maps and to the layer's weights.
    """
    return _STEPS[keras.backend.backend()](layer, maps)


def _on_tensorflow(layer: keras.layers.Layer, maps: np.ndarray) -> Step:
    import tensorflow as tf

    inputs = tf.constant(maps)
    weights = [weight.value for weight in layer.trainable_variables]

    @tf.function
    def gradients() -> Any:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            loss = tf.reduce_sum(layer(inputs, training=True) ** 2)
        return tape.gradient(loss, [inputs, *weights])

    def run(times: int) -> list[Any]:
        for _ in range(times):
            last = gradients()
        # To read a result would copy it from the card.
        tf.test.experimental.sync_devices()
        return last

    return run


def _on_jax(layer: keras.layers.Layer, maps: np.ndarray) -> Step:
    import jax

    model = keras.Sequential([keras.Input(maps.shape[1:]), layer])  # Only a model's `stateless_call` takes `training`.
    others = [weight.value for weight in model.non_trainable_variables]
    arguments = [jax.numpy.asarray(maps), *(weight.value for weight in model.trainable_variables)]

    @jax.jit
    @jax.grad
    def gradients(arguments: Any) -> Any:
        return (model.stateless_call(arguments[1:], others, arguments[0], training=True)[0] ** 2).sum()

    def run(times: int) -> list[Any]:
        for _ in range(times):
            last = gradients(arguments)
        return jax.block_until_ready(last)

    return run


def _on_torch(layer: keras.layers.Layer, maps: np.ndarray) -> Step:
    import torch

    inputs = keras.ops.convert_to_tensor(maps).requires_grad_()  # Where Keras keeps the weights.
    weights = [weight.value for weight in layer.trainable_variables]

    def run(times: int) -> list[Any]:
        for _ in range(times):
            last = torch.autograd.grad((layer(inputs, training=True) ** 2).sum(), [inputs, *weights])
        if inputs.is_cuda:
            torch.cuda.synchronize()
        return list(last)

    return run


_STEPS = {"tensorflow": _on_tensorflow, "jax": _on_jax, "torch": _on_torch}


def card() -> tuple[str | None, list[str]]:
    """Finds the card that the backend runs on.

    Returns:
        Its name, None if there is none, and the devices that were found.
    """
    return _CARDS[keras.backend.backend()]()


def _card_on_tensorflow() -> tuple[str | None, list[str]]:
    import tensorflow as tf

    cards = tf.config.list_physical_devices("GPU")
    found = [device.name.rpartition("physical_device:")[2] for device in tf.config.list_physical_devices()]
    return tf.config.experimental.get_device_details(cards[0]).get("device_name", found[-1]) if cards else None, found


def _card_on_jax() -> tuple[str | None, list[str]]:
    import jax

    found = jax.devices()
    return found[0].device_kind if found[0].platform in ("gpu", "cuda", "rocm") else None, [
        str(device) for device in found
    ]


def _card_on_torch() -> tuple[str | None, list[str]]:
    import torch

    name = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return name, [name or "the CPU"]


_CARDS = {"tensorflow": _card_on_tensorflow, "jax": _card_on_jax, "torch": _card_on_torch}


def main(repeats: int, device: str = "cpu") -> None:
    """Times every pooling on every map. On a GPU a pooling that fails is left out, and a line says so.

    Args:
        repeats: how often each is timed. The poolings take turns, so that a slow moment of the machine meets all.
        device: 'cpu' or 'gpu'.
    """
    name = None
    if device == "gpu":
        name, found = card()
        if name is None:
            print(json.dumps({"found": found}), flush=True)
            return
    poolings = {**POOLINGS, **ON_GPU} if name else POOLINGS
    for height, width, channels in MAPS_ON_GPU if name else MAPS:
        maps = np.random.default_rng(0).normal(size=(BATCH, height, width, channels)).astype("float32")
        place, steps = f"{height}x{width}x{channels}", {}
        for pooling, make in poolings.items():
            inputs = np.ascontiguousarray(np.moveaxis(maps, -1, 1)) if pooling.endswith(CHANNELS_FIRST) else maps
            try:
                layer = make()
                layer.build(inputs.shape)
                step = step_of(layer, inputs)
                step(1)
            except Exception as error:  # Each backend has its own for want of memory.
                if not name:
                    raise
                print(json.dumps({"left_out": f"{pooling} at {place}", "error": one_line(error)}), flush=True)
            else:
                steps[pooling] = step
        iterations = {pooling: _iterations(step) if name else 1 for pooling, step in steps.items()}
        times: dict[str, list[float]] = {pooling: [] for pooling in steps}
        for _ in range(repeats):
            for pooling, step in steps.items():
                start = time.perf_counter()
                step(iterations[pooling])
                times[pooling].append((time.perf_counter() - start) / iterations[pooling])
        lines = [
            json.dumps(
                {
                    "backend": keras.backend.backend(),
                    "map": place,
                    "pooling": pooling,
                    "milliseconds": f"{1000 * statistics.median(seconds):.3f}",
                    **({"device": name, "iterations": iterations[pooling]} if name else {}),
                }
            )
            for pooling, seconds in times.items()
        ]
        # All at once: this process may be ended at any time, and the table needs whole maps.
        print("".join(f"{line}\n" for line in lines), end="", flush=True)


def _iterations(step: Callable[[int], None]) -> int:
    """How many passes a timed run on a GPU has."""
    start = time.perf_counter()
    step(1)
    return devices.passes_to_time(time.perf_counter() - start)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
