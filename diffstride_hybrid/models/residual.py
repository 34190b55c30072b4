"""The residual layers and blocks of the ResNets, with their pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.common.arguments import validated_strides
from diffstride_hybrid.common.registration import register
from diffstride_hybrid.layers.normalization import FusedBatchNormalization

LayerFactory = Callable[..., keras.layers.Layer]
"""Makes a layer from keyword arguments: a layer class, or a function."""


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


@register
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
        normalization = layer_factory(normalization_cls)
        self._norms = [normalization(axis=channel_axis(channels_first), name=f"norm_{i}", **shared) for i in (1, 2)]
        self._pooling = None
        conv_strides = (1, 1)
        if project and pooling_cls is not None:
            self._pooling = layer_factory(pooling_cls)(
                strides=strides, data_format=image_data_format(channels_first), name="pooling", **shared
            )
        elif project:
            conv_strides = whole_strides(strides)
        convolution = {"channels_first": channels_first, "weight_decay": weight_decay, **shared}
        self._strided_conv = conv2d(filters, kernel_size, strides=conv_strides, name="conv_1", **convolution)
        self._unstrided_conv = conv2d(filters, kernel_size, name="conv_2", **convolution)
        self._shortcut_conv = None
        if project:
            self._shortcut_conv = conv2d(filters, 1, name="shortcut", **convolution)
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
            "pooling_cls": layer_template(self._pooling, without=("strides", "data_format")),
            "project": self.project,
            "channels_first": self.channels_first,
            "weight_decay": self.weight_decay,
            "normalization_cls": layer_template(self._norms[0], without=("axis",)),
        }


@register
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


def conv2d(
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
        data_format=image_data_format(channels_first),
        **kwargs,
    )


def image_data_format(channels_first: bool) -> str:
    return "channels_first" if channels_first else "channels_last"


def channel_axis(channels_first: bool) -> int:
    return 1 if channels_first else -1


def whole_strides(strides: float | Sequence[float]) -> tuple[int, int]:
    pair = validated_strides(strides)
    if any(stride != int(stride) for stride in pair):
        raise ValueError(f"Strided convolutions need whole strides of at least 1, got {strides!r}; poolings take any.")
    return int(pair[0]), int(pair[1])


def layer_template(layer: keras.layers.Layer | None, without: Sequence[str]) -> dict[str, Any] | None:
    """What `_factory` needs to make layers like this one, but for the arguments that it will be called with."""
    if layer is None:
        return None
    saved = keras.saving.serialize_keras_object(layer)
    config = {k: v for k, v in saved["config"].items() if k not in ("name", "dtype", *without)}
    return {**{k: saved[k] for k in ("module", "class_name", "registered_name")}, "config": config}


def layer_factory(source: LayerFactory | dict[str, Any]) -> LayerFactory:
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
