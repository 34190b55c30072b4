"""The benchmark process of this package: answers the requests of `processes.Worker`.

python -m experiments.benchmark.ours
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

import diffstride_hybrid
from experiments.benchmark.cases import CHANNELS_FIRST, FIXED, RESAMPLED, Case, is_map, pooling_of
from experiments.benchmark.worker import (
    Built,
    compiled,
    forward_and_backward,
    keep_freed_memory,
    training_step,
    work,
)

DIFFSTRIDE_SIZES = {(32, 1.0): 32, (32, 2.0): 24, (24, 2.0): 20, (20, 2.0): 18}
"""The size that DiffStride cuts a map to before training, by the map's size and the stride."""


def build(case: Case) -> Built:
    """Makes a case of this package ready to run.

    Args:
        case: any that `cases.cases` lists.

    Returns:
        The case with its MACs; those of the transforms ('fft') are not counted.
    """
    if case.part == "machine":
        matrix = tf.cast(tf.random.normal([case.height, case.height]), case.dtype)
        return Built(compiled(tf.matmul, matrix, matrix), case.height**3)
    return {"step": _step, "engines": _engine}.get(case.part, _layer)(case)


def _policy(case: Case) -> str:
    return "float32" if case.dtype == "float32" else f"mixed_{case.dtype}"


def _layer(case: Case) -> Built:
    variant = case.variant.removesuffix(CHANNELS_FIRST)
    first = variant != case.variant
    options = {"data_format": "channels_first" if first else "channels_last", "dtype": _policy(case)}
    layers = {
        "released": lambda: diffstride_hybrid.DiffStride(case.stride, **options),
        "symmetric": lambda: diffstride_hybrid.DiffStride(case.stride, mask="symmetric", **options),
        "fft": lambda: diffstride_hybrid.DiffStride(case.stride, method="fft", **options),
        "average": lambda: keras.layers.AveragePooling2D(int(case.stride), padding="same", **options),
        "strided convolution": lambda: keras.layers.Conv2D(
            case.channels, 3, int(case.stride), padding="same", use_bias=False, **options
        ),
    }
    layer = layers[variant]()
    size = (case.height, case.height)
    shape = (case.channels, *size) if first else (*size, case.channels)
    layer.build((case.batch, *shape))
    weights = [variable.value for variable in layer.trainable_variables]
    run = forward_and_backward(layer, case, weights, channels_first=first)
    cost = diffstride_hybrid.macs(keras.Sequential([keras.Input(shape), layer]))
    return Built(run, None if variant == "fft" else cost.macs + cost.pooling_macs)


def _engine(case: Case) -> Built:
    spatial_axes = 2 if is_map(case.place) else 1
    layer_class = {
        ("learned", 2): diffstride_hybrid.DiffStride,
        ("learned", 1): diffstride_hybrid.DiffStride1D,
        (FIXED, 2): diffstride_hybrid.FixedSpectralPooling,
        (RESAMPLED, 2): diffstride_hybrid.SpectralPooling,
        (RESAMPLED, 1): diffstride_hybrid.SpectralPooling1D,
    }[pooling_of(case.place), spatial_axes]
    method, _, unknown = case.variant.partition(", ")
    layer = layer_class(case.stride, method=method)
    layer.build((None, *[None if unknown else case.height] * spatial_axes, case.channels))
    weights = [variable.value for variable in layer.trainable_variables]
    return Built(forward_and_backward(layer, case, weights, spatial_axes, not unknown))


def _step(case: Case) -> Built:
    keep_freed_memory()
    options = {
        "diffstride": {"pooling_cls": diffstride_hybrid.DiffStride},
        "recomputing": {"pooling_cls": diffstride_hybrid.DiffStride, "recompute_pooling": True},
        "hybrid": {
            "pooling_cls": diffstride_hybrid.DiffStride,
            "head_pooling_cls": diffstride_hybrid.SpectralPooling,
        },
        "slice": {"pooling_cls": Slice},
        "strided": {},
    }[case.variant]
    model = diffstride_hybrid.resnet18(
        num_output_classes=10,
        output_activation="softmax",
        weight_decay=5e-4,
        dtype=_policy(case),
        width=case.channels,
        **options,
    )
    model.build((None, case.height, case.height, 3))
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    optimizer.build(model.trainable_variables)
    cost = diffstride_hybrid.macs(model, (case.height, case.height, 3))
    run = training_step(model, optimizer, keras.losses.CategoricalCrossentropy(), case)
    return Built(run, cost.macs + cost.pooling_macs)


class Slice(keras.layers.Layer):
    """Cuts a map to the size that DiffStride starts with. No pooling to that size can be cheaper.

    Args:
        strides: the stride of both axes.
        data_format: ignored; maps are `[batch, height, width, channels]`.
        **kwargs: options of `keras.layers.Layer`.
    """

    def __init__(self, strides: float, data_format: str, **kwargs: Any):
        super().__init__(**kwargs)
        self.stride = float(strides)

    def call(self, inputs: Any) -> Any:
        size = DIFFSTRIDE_SIZES[inputs.shape[1], self.stride]
        return inputs[:, :size, :size]

    def compute_output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        size = DIFFSTRIDE_SIZES[shape[1], self.stride]
        return (shape[0], size, size, shape[3])

    def get_config(self) -> dict[str, Any]:
        # A network keeps its pooling as a template without strides and data format, which each layer gets anew.
        return {**super().get_config(), "strides": self.stride, "data_format": "channels_last"}


if __name__ == "__main__":
    work(build)
