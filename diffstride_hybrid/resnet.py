"""Pre-activation residual networks whose downsampling is a choice: strided convolutions, or any pooling layer.

The architecture is that of the code released with DiffStride (after He et al., "Identity mappings in deep residual
networks", arXiv 1603.05027), with an optional pooling in the head as in the hybrid of arXiv 2401.09008.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid import complexity
from diffstride_hybrid.normalization import FusedBatchNormalization
from diffstride_hybrid.pooling import validated_strides

LayerFactory = Callable[..., keras.layers.Layer]
"""Makes a layer from keyword arguments: a layer class, or a function."""

HEAD_PLACEMENTS = ("before_gap", "before_activation", "after_each_block")
POOLING_PLACEMENTS = ("everywhere", "first_convolution", "blocks")

_register = keras.saving.register_keras_serializable(package="diffstride_hybrid")


def batch_norm(
    axis: int = -1, momentum: float = 0.99, epsilon: float = 1e-3, synchronized: bool = False, **kwargs: Any
) -> keras.layers.Layer:
    """The normalisation of the residual networks.

    Args:
        axis: the axis of the channels.
        momentum: of the moving mean and variance.
        epsilon: added to the variance.
        synchronized: whether the statistics are taken over all replicas of a distribution strategy.
        **kwargs: for `FusedBatchNormalization`.

    Returns:
        A batch normalisation layer.
    """
    return FusedBatchNormalization(axis=axis, momentum=momentum, epsilon=epsilon, synchronized=synchronized, **kwargs)


@_register
class ResidualLayer(keras.layers.Layer):
    """Two convolutions and a shortcut: `conv(relu(norm(pool(conv(relu(norm(x))))))) + shortcut(x)`.

    Where `project` is true, the first convolution is strided or followed by pooling, and the shortcut passes through
    the same pooling object, so that both paths agree in size whatever the strides have become, and then through a 1x1
    convolution. The release convolves first; without a bias the two commute, and pooling first does less work.

    Args:
        filters: channels of the output.
        kernel_size: of both convolutions on the main path.
        strides: of the pooling or of the first convolution. Not used where `project` is false.
        pooling_cls: called as `pooling_cls(strides=…, data_format=…, dtype=…, name=…)`. Strided convolutions where
            None.
        project: whether this layer changes the size or the number of channels.
        channels_first: whether the channels are axis 1.
        weight_decay: factor of the squared kernels in the loss.
        normalization_cls: called as `normalization_cls(axis=…, dtype=…, name=…)`.
        **kwargs: for `keras.layers.Layer`.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int = 3,
        strides: float | Sequence[float] = 1,
        pooling_cls: LayerFactory | dict[str, Any] | None = None,
        project: bool = False,
        channels_first: bool = False,
        weight_decay: float = 5e-3,
        normalization_cls: LayerFactory | dict[str, Any] = batch_norm,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.project = project
        self.channels_first = channels_first
        self.weight_decay = weight_decay

        shared = {"dtype": self.dtype_policy}
        normalization = _factory(normalization_cls)
        self._norms = [normalization(axis=_channel_axis(channels_first), name=f"norm_{i}", **shared) for i in (1, 2)]
        self._pooling = None
        conv_strides = (1, 1)
        if project and pooling_cls is not None:
            self._pooling = _factory(pooling_cls)(
                strides=strides, data_format=_data_format(channels_first), name="pooling", **shared
            )
        elif project:
            conv_strides = _whole_strides(strides)
        convolution = {"channels_first": channels_first, "weight_decay": weight_decay, **shared}
        self._strided_conv = _conv2d(filters, kernel_size, strides=conv_strides, name="conv_1", **convolution)
        self._unstrided_conv = _conv2d(filters, kernel_size, name="conv_2", **convolution)
        self._shortcut_conv = None
        if project:
            self._shortcut_conv = _conv2d(filters, 1, name="shortcut", **convolution)
        self._shortcut_strides = conv_strides

    def build(self, input_shape: Sequence[int | None]) -> None:
        self._norms[0].build(input_shape)
        self._strided_conv.build(input_shape)
        shape = self._strided_conv.compute_output_shape(input_shape)
        if self._pooling is not None:
            self._pooling.build(shape)
            shape = self._pooling.compute_output_shape(shape)
        self._norms[1].build(shape)
        self._unstrided_conv.build(shape)
        if self._shortcut_conv is not None:
            self._shortcut_conv.build(input_shape)

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        x = self._strided_conv(tf.nn.relu(self._norms[0](inputs, training=training)))
        if self._pooling is not None:
            x = self._pooling(x)
        x = self._unstrided_conv(tf.nn.relu(self._norms[1](x, training=training)))
        shortcut = inputs
        if self._shortcut_conv is not None:
            shortcut = self._subsample(shortcut) if self._pooling is None else self._pooling(shortcut)
            shortcut = self._shortcut_conv(shortcut)
        return x + shortcut

    def _subsample(self, inputs: tf.Tensor) -> tf.Tensor:
        """What a strided 1x1 convolution reads of its input.

        The convolution itself is not strided: the kernel gradient of a strided 1x1 convolution writes out of bounds in
        the oneDNN of TensorFlow 2.21, on some CPUs.
        """
        vertical, horizontal = self._shortcut_strides
        if (vertical, horizontal) == (1, 1):
            return inputs
        if self.channels_first:
            return inputs[:, :, ::vertical, ::horizontal]
        return inputs[:, ::vertical, ::horizontal]

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        shape = self._strided_conv.compute_output_shape(input_shape)
        return shape if self._pooling is None else self._pooling.compute_output_shape(shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "pooling_cls": _template(self._pooling, without=("strides", "data_format")),
            "project": self.project,
            "channels_first": self.channels_first,
            "weight_decay": self.weight_decay,
            "normalization_cls": _template(self._norms[0], without=("axis",)),
        }


@_register
class ResnetBlock(keras.Sequential):
    """Residual layers of one width, of which only the first may downsample.

    Args:
        filters: channels of the block.
        strides: of the first layer, if it projects.
        num_layers: how many residual layers.
        project_first: whether the first layer projects.
        name: of the block.
        **kwargs: for `ResidualLayer`.
    """

    def __init__(
        self,
        filters: int,
        strides: float | Sequence[float],
        num_layers: int = 2,
        project_first: bool = True,
        name: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            [
                ResidualLayer(
                    filters, strides=strides, project=project_first and i == 0, name=f"layer_{i + 1}", **kwargs
                )
                for i in range(num_layers)
            ],
            name=name,
        )
        self.dtype_policy = self.layers[0].dtype_policy
        self.project_first = project_first

    def get_config(self) -> dict[str, Any]:
        first = {k: v for k, v in self.layers[0].get_config().items() if k not in ("name", "project", "trainable")}
        return {**first, "num_layers": len(self.layers), "project_first": self.project_first, "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> ResnetBlock:
        return cls(**config)


@_register
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
        data_format = _data_format(channels_first)
        shared = {"channels_first": channels_first, "weight_decay": weight_decay, "dtype": policy}

        pooling = None
        if pooling_cls is not None:
            pooling = _factory(pooling_cls)(strides=strides[0], data_format=data_format, dtype=policy, name="pooling")
        stem = [keras.layers.Permute((3, 1, 2), dtype=policy)] if channels_first else []
        if pooling is None or pooling_placement == "blocks":
            stem.append(_conv2d(filters[0], 3, strides=_whole_strides(strides[0]), name="conv", **shared))
        else:
            stem += [_conv2d(filters[0], 3, name="conv", **shared), pooling]

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

        normalization = _factory(normalization_cls)(axis=_channel_axis(channels_first), dtype=policy, name="norm")
        activation = [normalization, keras.layers.ReLU(dtype=policy, name="relu")]
        count = len(blocks) if head_placement == "after_each_block" else 1
        head_poolings = [
            _factory(head_pooling_cls)(
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
            "pooling_cls": _template(pooling, without=("strides", "data_format")),
            "weight_decay": weight_decay,
            "pooling_placement": pooling_placement,
            "head_pooling_cls": _template(next(iter(head_poolings), None), without=("data_format",)),
            "head_placement": head_placement,
            "num_layers": layers_of_blocks,
            "kernel_size": kernel_size,
            "normalization_cls": _template(normalization, without=("axis",)),
            "stride_complexity": complexity.validated_factor(stride_complexity),
        }

    def build(self, input_shape: Sequence[int | None] | None = None) -> None:
        super().build(input_shape)
        if self.layers[-1].built:  # Not yet where Keras asks before the shape is known.
            complexity.regularize_strides(self, self._config["stride_complexity"])

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


def _conv2d(
    filters: int, kernel_size: int, *, strides: Any = 1, channels_first: bool, weight_decay: float, **kwargs: Any
) -> keras.layers.Conv2D:
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.L2(weight_decay),
        data_format=_data_format(channels_first),
        **kwargs,
    )


def _data_format(channels_first: bool) -> str:
    return "channels_first" if channels_first else "channels_last"


def _channel_axis(channels_first: bool) -> int:
    return 1 if channels_first else -1


def _whole_strides(strides: float | Sequence[float]) -> tuple[int, int]:
    pair = validated_strides(strides)
    if any(stride != int(stride) for stride in pair):
        raise ValueError(f"Strided convolutions need whole strides of at least 1, got {strides!r}; poolings take any.")
    return int(pair[0]), int(pair[1])


def _template(layer: keras.layers.Layer | None, without: Sequence[str]) -> dict[str, Any] | None:
    """What `_factory` needs to make layers like this one, but for the arguments that it will be called with."""
    if layer is None:
        return None
    saved = keras.saving.serialize_keras_object(layer)
    config = {k: v for k, v in saved["config"].items() if k not in ("name", "dtype", *without)}
    return {**{k: saved[k] for k in ("module", "class_name", "registered_name")}, "config": config}


def _factory(source: LayerFactory | dict[str, Any]) -> LayerFactory:
    if callable(source):
        return source
    if not isinstance(source, dict):
        raise TypeError(
            "pooling_cls, head_pooling_cls and normalization_cls must be layer classes or functions that make a layer; "
            f"got {source!r}."
        )

    def create(**arguments: Any) -> keras.layers.Layer:
        return keras.saving.deserialize_keras_object({**source, "config": {**source["config"], **arguments}})

    return create
