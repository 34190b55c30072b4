"""The layers of a `Resnet`, from the first convolution to the classifier.

`Resnet.__init__` makes the layers in this order. Keep it: the initial weights that a seed gives depend on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from diffstride_hybrid.models.layer_templates import LayerFactory, layer_factory
from diffstride_hybrid.models.residual import (
    ResnetBlock,
    WeightDecay,
    channel_axis,
    conv2d,
    image_data_format,
    whole_strides,
)


def made_stem(
    filters: int,
    strides: float | Sequence[float],
    pooling_cls: LayerFactory | dict[str, Any] | None,
    placement: str,
    *,
    channels_first: bool,
    dtype: keras.DTypePolicy,
    weight_decay: float,
) -> tuple[list[keras.layers.Layer], keras.layers.Layer | None]:
    """Makes the layers before the blocks.

    Args:
        filters: channels of the convolution.
        strides: stride of the convolution or of the pooling.
        pooling_cls: makes the pooling, or None.
        placement: one of `POOLING_PLACEMENTS`.
        channels_first: whether the channels are axis 1.
        dtype: dtype policy of the layers.
        weight_decay: factor of the squared kernel in the loss.

    Returns:
        The layers, and a pooling that `pooling_cls` has made, whether or not it is among them.
    """
    shared = {"channels_first": channels_first, "weight_decay": weight_decay, "dtype": dtype}
    pooling = None
    if pooling_cls is not None:
        pooling = layer_factory(pooling_cls)(
            strides=strides, data_format=image_data_format(channels_first), dtype=dtype, name="pooling"
        )
    permute = [keras.layers.Permute((3, 1, 2), dtype=dtype)] if channels_first else []
    if pooling is None or placement == "blocks":
        return [*permute, conv2d(filters, 3, strides=whole_strides(strides), name="conv", **shared)], pooling
    return [*permute, conv2d(filters, 3, name="conv", **shared), pooling], pooling


def made_blocks(
    filters: Sequence[int],
    strides: Sequence[float | Sequence[float]],
    layers_of_blocks: Sequence[int],
    id_only: Sequence[int],
    **options: Any,
) -> list[ResnetBlock]:
    """Makes the residual blocks.

    Args:
        filters: channels of each block.
        strides: stride of each block.
        layers_of_blocks: number of residual layers of each block.
        id_only: the blocks that keep the size and the width of their input.
        **options: further arguments of `ResidualLayer`.
    """
    return [
        ResnetBlock(
            block_filters,
            block_strides,
            num_layers=num_layers,
            project_first=i not in id_only,
            name=f"block_{i + 1}",
            **options,
        )
        for i, (block_filters, block_strides, num_layers) in enumerate(zip(filters, strides, layers_of_blocks))
    ]


def made_activation(
    normalization_cls: LayerFactory | dict[str, Any], channels_first: bool, dtype: keras.DTypePolicy
) -> tuple[keras.layers.Layer, keras.layers.Layer]:
    """Makes the last normalization and its activation.

    Args:
        normalization_cls: makes the normalization.
        channels_first: whether the channels are axis 1.
        dtype: dtype policy of the layers.
    """
    norm = layer_factory(normalization_cls)(axis=channel_axis(channels_first), dtype=dtype, name="norm")
    return norm, keras.layers.ReLU(dtype=dtype, name="relu")


def made_head_poolings(
    blocks: int,
    pooling_cls: LayerFactory | dict[str, Any] | None,
    placement: str,
    channels_first: bool,
    dtype: keras.DTypePolicy,
) -> list[keras.layers.Layer]:
    """Makes the poolings near the end.

    Args:
        blocks: number of blocks.
        pooling_cls: makes a pooling. There is none if None.
        placement: one of `HEAD_PLACEMENTS`.
        channels_first: whether the channels are axis 1.
        dtype: dtype policy of the layers.
    """
    if pooling_cls is None:
        return []
    count = blocks if placement == "after_each_block" else 1
    names = ["head_pooling"] if count == 1 else [f"head_pooling_{i + 1}" for i in range(count)]
    data_format = image_data_format(channels_first)
    return [layer_factory(pooling_cls)(data_format=data_format, dtype=dtype, name=name) for name in names]


def placed(
    blocks: Sequence[keras.layers.Layer],
    poolings: Sequence[keras.layers.Layer],
    activation: Sequence[keras.layers.Layer],
    placement: str,
) -> list[keras.layers.Layer]:
    """Lists the layers between the stem and the classifier in their order.

    Args:
        blocks: the residual blocks.
        poolings: the poolings near the end.
        activation: the last normalization and its activation.
        placement: one of `HEAD_PLACEMENTS`.
    """
    if placement == "before_gap":
        return [*blocks, *activation, *poolings]
    if placement == "before_activation" or not poolings:
        return [*blocks, *poolings, *activation]
    return [layer for pair in zip(blocks, poolings) for layer in pair] + list(activation)


def made_classifier(
    classes: int, activation: str | None, *, channels_first: bool, dtype: keras.DTypePolicy, weight_decay: float
) -> list[keras.layers.Layer]:
    """Makes the global average pooling and the dense layer.

    Args:
        classes: units of the dense layer.
        activation: of the dense layer.
        channels_first: whether the channels are axis 1.
        dtype: dtype policy of the layers.
        weight_decay: factor of the squared weights in the loss.
    """
    return [
        keras.layers.GlobalAveragePooling2D(data_format=image_data_format(channels_first), dtype=dtype, name="average"),
        keras.layers.Dense(
            classes,
            activation=activation,
            kernel_initializer="he_normal",
            kernel_regularizer=WeightDecay(weight_decay),
            bias_regularizer=WeightDecay(weight_decay),
            dtype="float32" if dtype.compute_dtype in ("float16", "bfloat16") else dtype,
            name="classifier",
        ),
    ]
