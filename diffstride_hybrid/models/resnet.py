"""Pre-activation residual networks whose downsampling is a choice: strided convolutions, or any pooling layer.

The architecture is that of the code released with DiffStride (after He et al., "Identity mappings in deep residual
networks", arXiv 1603.05027), with an optional pooling in the head as in the hybrid of arXiv 2401.09008.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from diffstride_hybrid.common.registration import register
from diffstride_hybrid.model_tools.stride_penalty import regularize_strides, validated_factor
from diffstride_hybrid.models.residual import (
    LayerFactory,
    ResnetBlock,
    batch_norm,
    channel_axis,
    conv2d,
    image_data_format,
    layer_factory,
    layer_template,
    whole_strides,
)

HEAD_PLACEMENTS = ("before_gap", "before_activation", "after_each_block")

POOLING_PLACEMENTS = ("everywhere", "first_convolution", "blocks")


@register
class Resnet(keras.Sequential):
    """A pre-activation residual network for images.

    Args:
        filters: channels of the first convolution, then of each block.
        strides: of the first convolution, then of each block; a number or a pair each.
        num_output_classes: units of the last dense layer.
        output_activation: of the last dense layer, 'softmax' for probabilities.
        id_only: the blocks, counted from 0, that keep their input's size and width. Their strides are not used.
        channels_first: whether to compute with the channels in axis 1. Images are (batch, height, width, channels)
            either way.
        pooling_cls: what downsamples, a layer class or a function, called as `pooling_cls(strides=…, data_format=…,
            dtype=…, name=…)`. Strided convolutions where None.
        weight_decay: factor of the squared kernels in the loss.
        pooling_placement: where `pooling_cls` stands: 'everywhere', after the 'first_convolution' alone, or in the
            'blocks' alone. The other place has strided convolutions.
        head_pooling_cls: one more pooling near the end, called as `head_pooling_cls(data_format=…, dtype=…, name=…)`.
        head_placement: 'before_gap', straight before global average pooling, 'before_activation', after the last
            block and before the last normalisation and ReLU, or 'after_each_block', one after each. Spectral pooling
            keeps the mean, so in the first place it only multiplies by a constant; in the others it acts.
        num_layers: residual layers of each block, one number for all or one for each.
        kernel_size: of the residual layers' convolutions.
        normalization_cls: called as `normalization_cls(axis=…, dtype=…, name=…)`.
        stride_complexity: factor of the penalty on small strides, see `complexity.regularize_strides`.
        dtype: dtype policy of all layers but the last, which is at least float32.
        name: of the model.

    Raises:
        ValueError: `filters`, `strides` and `num_layers` do not fit together, or a placement is unknown.
    """

    def __init__(
        self,
        filters: Sequence[int],
        strides: Sequence[float | Sequence[float]],
        num_output_classes: int,
        output_activation: str | None = None,
        id_only: Sequence[int] = (),
        channels_first: bool = False,
        pooling_cls: LayerFactory | dict[str, Any] | None = None,
        weight_decay: float = 5e-3,
        pooling_placement: str = "everywhere",
        head_pooling_cls: LayerFactory | dict[str, Any] | None = None,
        head_placement: str = "before_gap",
        num_layers: int | Sequence[int] = 2,
        kernel_size: int = 3,
        normalization_cls: LayerFactory | dict[str, Any] = batch_norm,
        stride_complexity: float = 0.0,
        dtype: Any = None,
        name: str | None = None,
    ):
        if not isinstance(strides, Sequence) or isinstance(strides, str):
            raise TypeError(
                f"strides must list those of the first convolution and of each block, {len(filters)} in all, got "
                f"{strides!r}."
            )
        if len(filters) != len(strides):
            raise ValueError(
                f"filters and strides must have one entry for the first convolution and one for each block, got "
                f"{len(filters)} filters and {len(strides)} strides."
            )
        for argument, placement, allowed in (
            ("pooling_placement", pooling_placement, POOLING_PLACEMENTS),
            ("head_placement", head_placement, HEAD_PLACEMENTS),
        ):
            if placement not in allowed:
                raise ValueError(f"{argument} must be one of {', '.join(map(repr, allowed))}, got {placement!r}.")
        layers_of_blocks = [num_layers] * len(filters[1:]) if isinstance(num_layers, int) else list(num_layers)
        if len(layers_of_blocks) != len(filters) - 1:
            raise ValueError(
                f"num_layers must be one number or one for each of the {len(filters) - 1} blocks, got {num_layers}."
            )
        policy = keras.config.dtype_policy() if dtype is None else keras.dtype_policies.get(dtype)
        data_format = image_data_format(channels_first)
        shared = {"channels_first": channels_first, "weight_decay": weight_decay, "dtype": policy}

        pooling = None
        if pooling_cls is not None:
            pooling = layer_factory(pooling_cls)(
                strides=strides[0], data_format=data_format, dtype=policy, name="pooling"
            )
        stem = [keras.layers.Permute((3, 1, 2), dtype=policy)] if channels_first else []
        if pooling is None or pooling_placement == "blocks":
            stem.append(conv2d(filters[0], 3, strides=whole_strides(strides[0]), name="conv", **shared))
        else:
            stem += [conv2d(filters[0], 3, name="conv", **shared), pooling]

        blocks = [
            ResnetBlock(
                block_filters,
                block_strides,
                num_layers=block_layers,
                project_first=i not in id_only,
                kernel_size=kernel_size,
                pooling_cls=None if pooling_placement == "first_convolution" else pooling_cls,
                normalization_cls=normalization_cls,
                name=f"block_{i + 1}",
                **shared,
            )
            for i, (block_filters, block_strides, block_layers) in enumerate(
                zip(filters[1:], strides[1:], layers_of_blocks)
            )
        ]

        normalization = layer_factory(normalization_cls)(axis=channel_axis(channels_first), dtype=policy, name="norm")
        activation = [normalization, keras.layers.ReLU(dtype=policy, name="relu")]
        count = len(blocks) if head_placement == "after_each_block" else 1
        head_poolings = [
            layer_factory(head_pooling_cls)(
                data_format=data_format, dtype=policy, name="head_pooling" if count == 1 else f"head_pooling_{i + 1}"
            )
            for i in range(0 if head_pooling_cls is None else count)
        ]
        if head_placement == "after_each_block" and head_poolings:
            blocks = [layer for pair in zip(blocks, head_poolings) for layer in pair]
        head = {
            "before_gap": [*activation, *head_poolings],
            "before_activation": [*head_poolings, *activation],
            "after_each_block": activation,
        }[head_placement]
        head = [
            *head,
            keras.layers.GlobalAveragePooling2D(data_format=data_format, dtype=policy, name="average"),
            keras.layers.Dense(
                num_output_classes,
                activation=output_activation,
                kernel_initializer="he_normal",
                kernel_regularizer=keras.regularizers.L2(weight_decay),
                bias_regularizer=keras.regularizers.L2(weight_decay),
                dtype="float32" if policy.compute_dtype in ("float16", "bfloat16") else policy,
                name="classifier",
            ),
        ]
        super().__init__(stem + blocks + head, name=name)
        self.dtype_policy = policy
        self._config = {
            "filters": list(filters),
            "strides": list(strides),
            "num_output_classes": num_output_classes,
            "output_activation": output_activation,
            "id_only": list(id_only),
            "channels_first": channels_first,
            "pooling_cls": layer_template(pooling, without=("strides", "data_format")),
            "weight_decay": weight_decay,
            "pooling_placement": pooling_placement,
            "head_pooling_cls": layer_template(next(iter(head_poolings), None), without=("data_format",)),
            "head_placement": head_placement,
            "num_layers": layers_of_blocks,
            "kernel_size": kernel_size,
            "normalization_cls": layer_template(normalization, without=("axis",)),
            "stride_complexity": validated_factor(stride_complexity),
        }

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        super().build(input_shape)
        if self.layers[-1].built:  # Not yet where Keras asks before the shape is known.
            regularize_strides(self, self._config["stride_complexity"])

    def get_config(self) -> dict[str, Any]:
        return {
            **self._config,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Resnet:
        return cls(**config)


def resnet18(
    strides: Sequence[float | Sequence[float]] = (1, 1, 2, 2, 2),
    width: int = 64,
    resnet_cls: Callable[..., Resnet] = Resnet,
    **kwargs: Any,
) -> Resnet:
    """ResNet-18 for small images: four blocks of two residual layers, 11,179,978 parameters at 10 classes.

    Args:
        strides: of the first convolution, then of each block. The first block keeps its size whatever its stride.
        width: channels of the first convolution; the blocks have 1, 2, 4 and 8 times as many.
        resnet_cls: called with the architecture and `kwargs`.
        **kwargs: for `Resnet`, `num_output_classes` among them.

    Returns:
        The model, not built.
    """
    filters = _widths(width, (1, 1, 2, 4, 8))
    return resnet_cls(filters, strides, id_only=[0], num_layers=2, kernel_size=3, **kwargs)


def resnet34(
    strides: Sequence[float | Sequence[float]] = (1, 1, 2, 2, 2),
    width: int = 64,
    resnet_cls: Callable[..., Resnet] = Resnet,
    **kwargs: Any,
) -> Resnet:
    """ResNet-34 for small images: four blocks of 3, 4, 6 and 3 residual layers.

    Args:
        strides: of the first convolution, then of each block. The first block keeps its size whatever its stride.
        width: channels of the first convolution; the blocks have 1, 2, 4 and 8 times as many.
        resnet_cls: called with the architecture and `kwargs`.
        **kwargs: for `Resnet`, `num_output_classes` among them.

    Returns:
        The model, not built.
    """
    filters = _widths(width, (1, 1, 2, 4, 8))
    return resnet_cls(filters, strides, id_only=[0], num_layers=[3, 4, 6, 3], kernel_size=3, **kwargs)


def resnet56(
    strides: Sequence[float | Sequence[float]] = (1, 1, 2, 2),
    width: int = 16,
    resnet_cls: Callable[..., Resnet] = Resnet,
    **kwargs: Any,
) -> Resnet:
    """ResNet-56 for small images: three blocks of nine residual layers.

    Args:
        strides: of the first convolution, then of each block.
        width: channels of the first convolution; the blocks have 1, 2 and 4 times as many.
        resnet_cls: called with the architecture and `kwargs`.
        **kwargs: for `Resnet`, `num_output_classes` among them.

    Returns:
        The model, not built.
    """
    filters = _widths(width, (1, 1, 2, 4))
    return resnet_cls(filters, strides, num_layers=9, kernel_size=3, **kwargs)


def _widths(width: int, factors: Sequence[int]) -> list[int]:
    if not isinstance(width, int) or width < 1:
        raise ValueError(f"width must be a whole number of at least 1, got {width!r}.")
    return [width * factor for factor in factors]
