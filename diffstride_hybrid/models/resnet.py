"""Pre-activation residual networks whose downsampling is a choice: strided convolutions, or any pooling layer.

The architecture is that of the code released with DiffStride (after He et al., "Identity mappings in deep residual
networks", arXiv 1603.05027), with an optional pooling in the head as in the hybrid of arXiv 2401.09008.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from diffstride_hybrid.common.arguments import validated_choice, validated_flag, validated_number
from diffstride_hybrid.common.registration import register
from diffstride_hybrid.layers.fourier_pooling import FourierPooling
from diffstride_hybrid.model_tools.inspection import leaf_layers
from diffstride_hybrid.model_tools.stride_penalty import regularize_strides
from diffstride_hybrid.models.layer_templates import LayerFactory, layer_template
from diffstride_hybrid.models.residual import batch_norm, channel_axis, image_data_format
from diffstride_hybrid.models.resnet_parts import (
    made_activation,
    made_blocks,
    made_classifier,
    made_head_poolings,
    made_stem,
    placed,
)
from diffstride_hybrid.models.saved_layers import (
    are_alike,
    description,
    model_of,
    with_frozen_layers,
    with_other_layers,
)

HEAD_PLACEMENTS = ("before_gap", "before_activation", "after_each_block")

POOLING_PLACEMENTS = ("everywhere", "first_convolution", "blocks")


@register
class Resnet(keras.Sequential):
    """A pre-activation residual network for images.

    It takes images `[batch, height, width, channels]` and returns `[batch, num_output_classes]`, in float32, or in
    float64 under the policy 'float64'. The architecture is that of the code released with Riad et al. ("Learning
    strides in convolutional neural networks", ICLR 2022, arXiv 2202.01653).

    Args:
        filters: channels of the first convolution, then of each block.
        strides: stride of the first convolution, then of each block; each is a number or a pair (vertical, horizontal).
        num_output_classes: units of the last dense layer.
        output_activation: activation of the last dense layer, such as 'softmax' for probabilities. None returns logits.
        id_only: the blocks, counted from 0, that keep the size and the width of their input. Their strides are not
            used.
        channels_first: whether the network computes with the channels in axis 1. Its images are
            `[batch, height, width, channels]` either way.
        pooling_cls: the layer that downsamples, a layer class or a function, called as `pooling_cls(strides=…,
            data_format=…, dtype=…, name=…)`. If None, strided convolutions downsample.
        weight_decay: factor of the squared kernels, and of the squared bias of the last layer, in the loss.
        pooling_placement: the place of `pooling_cls`: 'everywhere', after the 'first_convolution' alone, or in the
            'blocks' alone. The other place has strided convolutions.
        head_pooling_cls: makes one more pooling near the end, called as `head_pooling_cls(data_format=…, dtype=…,
            name=…)`. If None, there is no such pooling.
        head_placement: the place of `head_pooling_cls`: 'before_gap', straight before the global average pooling;
            'before_activation', between the last block and the last normalization; or 'after_each_block', one pooling
            after each block. Spectral pooling keeps the mean, so 'before_gap' only multiplies by a constant; the other
            places change the result.
        num_layers: number of residual layers of each block, one number for all blocks or one for each.
        kernel_size: size of the kernels of the residual layers, in samples.
        normalization_cls: makes the normalizations, called as `normalization_cls(axis=…, dtype=…, name=…)`.
        stride_complexity: factor of the penalty on small strides that `regularize_strides` adds to the loss.
        recompute_pooling: whether a training step keeps nothing of the maps before the `DiffStride` layers of the
            blocks, and computes them again in the backward pass: less memory for more time. Only TensorFlow does so.
        dtype: dtype policy of all layers but the last, which computes in float32 at least. The global policy if None.
        name: name of the model.

    Raises:
        ValueError: `filters`, `strides` and `num_layers` do not fit together, a placement is unknown, or a number is
            out of range.
        TypeError: `strides` is not a sequence, a number is none, an argument that makes layers is neither a class nor
            a function, or `channels_first` or `recompute_pooling` is neither True nor False.

    Example:
        >>> model = Resnet([4, 8], [1, 2], 10, num_layers=1, pooling_cls=DiffStride)
        >>> model(np.zeros([2, 16, 16, 3])).shape
        TensorShape([2, 10])
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
        recompute_pooling: bool = False,
        dtype: Any = None,
        name: str | None = None,
    ):
        _check(filters, strides, id_only, pooling_placement, head_placement)
        validated_flag("channels_first", channels_first)
        validated_flag("recompute_pooling", recompute_pooling)
        of_pooling = {"pooling_placement": pooling_placement != "everywhere", "recompute_pooling": recompute_pooling}
        _warn_of_idle("pooling_cls", pooling_cls, of_pooling)
        _warn_of_idle("head_pooling_cls", head_pooling_cls, {"head_placement": head_placement != "before_gap"})
        layers_of_blocks = _layers_of_blocks(num_layers, len(filters) - 1)
        policy = keras.config.dtype_policy() if dtype is None else keras.dtype_policies.get(dtype)
        shared = {"channels_first": channels_first, "weight_decay": weight_decay, "dtype": policy}
        block_pooling = None if pooling_placement == "first_convolution" else pooling_cls
        options = {"kernel_size": kernel_size, "pooling_cls": block_pooling, "normalization_cls": normalization_cls}
        options["recompute_pooling"] = recompute_pooling
        stem, pooling = made_stem(filters[0], strides[0], pooling_cls, pooling_placement, **shared)
        blocks = made_blocks(filters[1:], strides[1:], layers_of_blocks, id_only, **options, **shared)
        norm, relu = made_activation(normalization_cls, channels_first, policy)
        poolings = made_head_poolings(len(blocks), head_pooling_cls, head_placement, channels_first, policy)
        body = placed(blocks, poolings, [norm, relu], head_placement)
        head = made_classifier(num_output_classes, output_activation, **shared)
        super().__init__([*stem, *body, *head], name=name)
        self.dtype_policy = policy
        given = {"data_format": image_data_format(channels_first), "dtype": policy}
        of_stem = layer_template(pooling, strides=strides[0], **given)
        of_blocks = [block.get_config() for block in blocks]
        of_poolings = [config["pooling_cls"] for config in of_blocks if config["pooling_cls"] is not None]
        if pooling_placement != "blocks":
            of_poolings = [of_stem, *of_poolings]
        of_heads = [layer_template(each, **given) for each in poolings]
        of_norm = layer_template(norm, axis=channel_axis(channels_first), dtype=policy)
        of_norms = [of_norm, *(config["normalization_cls"] for config in of_blocks)]
        is_one_kind = all(map(are_alike, (of_poolings, of_heads, of_norms)))
        is_told = is_one_kind and not any("layers" in config for config in of_blocks)
        self._made = description(self.layers) if is_told else None
        self._config = {
            "filters": list(filters),
            "strides": list(strides),
            "num_output_classes": num_output_classes,
            "output_activation": output_activation,
            "id_only": list(id_only),
            "channels_first": channels_first,
            "pooling_cls": (of_poolings or [of_stem])[0],
            "weight_decay": weight_decay,
            "pooling_placement": pooling_placement,
            "head_pooling_cls": (of_heads or [None])[0],
            "head_placement": head_placement,
            "num_layers": layers_of_blocks,
            "kernel_size": kernel_size,
            "normalization_cls": of_norms[0],
            "stride_complexity": validated_number("stride_complexity", stride_complexity, at_least=0.0),
            "recompute_pooling": recompute_pooling,
        }

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        super().build(input_shape)
        # Keras also calls this before the shape is known; the layers are not built then.
        if self.layers[-1].built:
            self._bound_maps(input_shape)
            if self._config["stride_complexity"]:  # A penalty that a user has set stays, if layers change.
                regularize_strides(self, self._config["stride_complexity"])

    def _bound_maps(self, input_shape: Sequence[int | None] | None) -> None:
        """Tells the poolings that no map of this network is larger than its images."""
        size = (input_shape or self.input_shape)[1:3]
        if None not in size:
            for layer in leaf_layers(self):
                if isinstance(layer, FourierPooling):
                    layer.largest_map = tuple(size)

    def get_config(self) -> dict[str, Any]:
        dtype = keras.dtype_policies.serialize(self.dtype_policy)
        config = {**self._config, "dtype": dtype, "name": self.name}
        return with_frozen_layers(with_other_layers(config, self, self._made), self)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> Resnet:
        return model_of(cls, config)


def resnet18(
    strides: Sequence[float | Sequence[float]] = (1, 1, 2, 2, 2),
    width: int = 64,
    resnet_cls: Callable[..., Resnet] = Resnet,
    **kwargs: Any,
) -> Resnet:
    """ResNet-18 for small images: four blocks of two residual layers, 11,179,978 parameters at 10 classes.

    It takes images `[batch, height, width, channels]` and returns `[batch, num_output_classes]`.

    Args:
        strides: stride of the first convolution, then of each block. The first block keeps its size whatever its
            stride.
        width: channels of the first convolution; the blocks have 1, 2, 4 and 8 times as many.
        resnet_cls: called with the architecture and `kwargs`.
        **kwargs: further arguments of `Resnet`, which must include `num_output_classes`.

    Returns:
        The model, not built.

    Raises:
        ValueError: `width` or an argument of `Resnet` is out of range.

    Example:
        >>> model = resnet18(width=4, num_output_classes=10, pooling_cls=DiffStride)
        >>> model.build((None, 16, 16, 3))
        >>> [layer.name for layer in model.layers][1:6]
        ['pooling', 'block_1', 'block_2', 'block_3', 'block_4']
    """
    return _resnet(18, strides, width, resnet_cls, **kwargs)


def resnet34(
    strides: Sequence[float | Sequence[float]] = (1, 1, 2, 2, 2),
    width: int = 64,
    resnet_cls: Callable[..., Resnet] = Resnet,
    **kwargs: Any,
) -> Resnet:
    """ResNet-34 for small images: four blocks of 3, 4, 6 and 3 residual layers.

    It takes images `[batch, height, width, channels]` and returns `[batch, num_output_classes]`.

    Args:
        strides: stride of the first convolution, then of each block. The first block keeps its size whatever its
            stride.
        width: channels of the first convolution; the blocks have 1, 2, 4 and 8 times as many.
        resnet_cls: called with the architecture and `kwargs`.
        **kwargs: further arguments of `Resnet`, which must include `num_output_classes`.

    Returns:
        The model, not built.

    Raises:
        ValueError: `width` or an argument of `Resnet` is out of range.

    Example:
        >>> model = resnet34(width=4, num_output_classes=10)
        >>> [len(block.layers) for block in model.layers if isinstance(block, ResnetBlock)]
        [3, 4, 6, 3]
    """
    return _resnet(34, strides, width, resnet_cls, **kwargs)


def resnet56(
    strides: Sequence[float | Sequence[float]] = (1, 1, 2, 2),
    width: int = 16,
    resnet_cls: Callable[..., Resnet] = Resnet,
    **kwargs: Any,
) -> Resnet:
    """ResNet-56 for small images: three blocks of nine residual layers.

    It takes images `[batch, height, width, channels]` and returns `[batch, num_output_classes]`.

    Args:
        strides: stride of the first convolution, then of each block.
        width: channels of the first convolution; the blocks have 1, 2 and 4 times as many.
        resnet_cls: called with the architecture and `kwargs`.
        **kwargs: further arguments of `Resnet`, which must include `num_output_classes`.

    Returns:
        The model, not built.

    Raises:
        ValueError: `width` or an argument of `Resnet` is out of range.

    Example:
        >>> model = resnet56(width=4, num_output_classes=10)
        >>> [len(block.layers) for block in model.layers if isinstance(block, ResnetBlock)]
        [9, 9, 9]
    """
    return _resnet(56, strides, width, resnet_cls, **kwargs)


# Channels as multiples of the width, for the first convolution, then for each block; and further arguments of Resnet.
_DEPTHS: dict[int, tuple[tuple[int, ...], dict[str, Any]]] = {
    18: ((1, 1, 2, 4, 8), {"id_only": [0], "num_layers": 2}),
    34: ((1, 1, 2, 4, 8), {"id_only": [0], "num_layers": [3, 4, 6, 3]}),
    56: ((1, 1, 2, 4), {"num_layers": 9}),
}


def _resnet(
    depth: int,
    strides: Sequence[float | Sequence[float]],
    width: int,
    resnet_cls: Callable[..., Resnet],
    **kwargs: Any,
) -> Resnet:
    if not isinstance(width, int) or width < 1:
        raise ValueError(f"width must be a whole number of at least 1, got {width!r}.")
    multiples, options = _DEPTHS[depth]
    return resnet_cls([width * multiple for multiple in multiples], strides, kernel_size=3, **options, **kwargs)


def _check(filters: Sequence[int], strides: Any, id_only: Any, pooling_placement: str, head_placement: str) -> None:
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
    blocks = range(len(filters) - 1)
    if not isinstance(id_only, Sequence) or any(block not in blocks for block in id_only):
        raise ValueError(
            f"id_only must list blocks by their numbers, counted from 0 to {len(blocks) - 1}, got {id_only!r}."
        )
    validated_choice("pooling_placement", pooling_placement, POOLING_PLACEMENTS)
    validated_choice("head_placement", head_placement, HEAD_PLACEMENTS)


def _warn_of_idle(name: str, layer: Any, settings: Mapping[str, bool]) -> None:
    """Warns of settings that differ from their defaults and concern a layer that the network does not have."""
    idle = [setting for setting, is_set in settings.items() if is_set]
    if layer is None and idle:
        warnings.warn(
            f"{' and '.join(idle)} of a Resnet act on nothing if {name} is None: give {name}, or leave them out.",
            stacklevel=3,
        )


def _layers_of_blocks(num_layers: int | Sequence[int], blocks: int) -> list[int]:
    layers_of_blocks = list(num_layers) if isinstance(num_layers, Sequence) else [num_layers] * blocks
    if len(layers_of_blocks) != blocks:
        raise ValueError(f"num_layers must be one number or one for each of the {blocks} blocks, got {num_layers}.")
    return layers_of_blocks
