"""The residual layers and blocks of the ResNets, with their pooling."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from diffstride_hybrid.backends import current
from diffstride_hybrid.common.arguments import validated_flag, validated_strides, validated_whole
from diffstride_hybrid.common.registration import register
from diffstride_hybrid.layers.normalization import FusedBatchNormalization
from diffstride_hybrid.layers.recomputing import activated_convolution, recomputed_pooling
from diffstride_hybrid.models.layer_templates import LayerFactory, layer_factory, layer_template
from diffstride_hybrid.models.saved_layers import (
    are_alike,
    description,
    freeze_layers,
    model_of,
    with_frozen_layers,
    with_other_layers,
    without,
)
from diffstride_hybrid.spectral.options import Tensor


def batch_norm(
    axis: int = -1, momentum: float = 0.99, epsilon: float = 1e-3, synchronized: bool = False, **kwargs: Any
) -> keras.layers.Layer:
    """Makes the normalization of the residual networks.

    Args:
        axis: the axis of the channels.
        momentum: momentum of the moving mean and of the moving variance.
        epsilon: small number added to the variance.
        synchronized: whether the statistics are those of the images on all replicas of a distribution strategy.
        **kwargs: further arguments of `FusedBatchNormalization`.

    Returns:
        A batch normalization layer, not built.

    Raises:
        TypeError: `synchronized` is neither True nor False.
    """
    validated_flag("batch_norm.synchronized", synchronized)
    return FusedBatchNormalization(axis=axis, momentum=momentum, epsilon=epsilon, synchronized=synchronized, **kwargs)


@register
class WeightDecay(keras.regularizers.L2):
    """Keras's penalty on squared weights, `l2 · Σ w²`, in fewer operations, of which a network has one for each kernel.

    Args:
        l2: factor of the sum of squares.

    Example:
        >>> float(WeightDecay(0.5)(keras.ops.array([1.0, 2.0])))
        2.5
    """

    def __call__(self, x: Any) -> Tensor:
        return 2.0 * self.l2 * current.half_sum_of_squares(ops.convert_to_tensor(x))


@register
class ResidualLayer(keras.layers.Layer):
    """Two convolutions and a shortcut: `conv(relu(norm(pool(conv(relu(norm(x))))))) + shortcut(x)`.

    It takes maps `[batch, height, width, channels]`, or `[batch, channels, height, width]` with `channels_first`, and
    returns maps of `filters` channels in the same layout and dtype. It is the pre-activation layer of He et al.
    ("Identity mappings in deep residual networks", arXiv 1603.05027).

    If `project` is true, the first convolution is strided or followed by the pooling. The shortcut passes through the
    same pooling object, so that both paths agree in size whatever the strides have become, and then through a 1x1
    convolution. The code released with DiffStride convolves first; without a bias the two commute, and pooling first
    costs less.

    Args:
        filters: channels of the output.
        kernel_size: size of the kernels of both convolutions on the main path, in samples.
        strides: strides of the pooling, or of the first convolution. Not used if `project` is false.
        pooling_cls: the layer that downsamples, called as `pooling_cls(strides=…, data_format=…, dtype=…, name=…)`. If
            None, strided convolutions downsample.
        project: whether this layer changes the size or the number of channels.
        channels_first: whether the channels are axis 1.
        weight_decay: factor of the squared kernels in the loss.
        normalization_cls: makes the normalizations, called as `normalization_cls(axis=…, dtype=…, name=…)`. A list of
            two makes the first and the second.
        recompute_pooling: whether a training step keeps nothing of the map before a `DiffStride`, and computes it again
            in the backward pass: less memory for more time. Only TensorFlow does so.
        **kwargs: further arguments of `keras.layers.Layer`.

    Raises:
        ValueError: strided convolutions are given strides that are not whole, or a stride is less than 1.
        TypeError: an argument that makes layers is neither a class nor a function, or `channels_first` or
            `recompute_pooling` is neither True nor False.

    Example:
        >>> layer = ResidualLayer(8, strides=2, pooling_cls=SpectralPooling, project=True)
        >>> layer(np.zeros([2, 16, 16, 3])).shape
        TensorShape([2, 8, 8, 8])
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
        normalization_cls: LayerFactory | dict[str, Any] | list[Any] = batch_norm,
        recompute_pooling: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.project = project
        self.channels_first = validated_flag("channels_first", channels_first)
        self.weight_decay = weight_decay
        self.recompute_pooling = validated_flag("recompute_pooling", recompute_pooling)

        shared = {"dtype": self.dtype_policy}
        kinds = normalization_cls if isinstance(normalization_cls, list) else [normalization_cls] * 2
        self._norms = [
            layer_factory(kind)(axis=channel_axis(channels_first), name=f"norm_{i + 1}", **shared)
            for i, kind in enumerate(kinds)
        ]
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

    def parts(self) -> dict[str, keras.layers.Layer]:
        """The layers that this layer consists of.

        Returns:
            'norm_1', 'conv_1', 'norm_2' and 'conv_2'; 'pooling' if it has one; 'shortcut', the 1x1 convolution, if it
            projects.
        """
        # This is no property: Keras saves weights under the first public attribute that holds a layer, so properties
        # would rename the weights in `.keras` files, and older files would not load.
        parts = {
            "norm_1": self._norms[0],
            "conv_1": self._strided_conv,
            "pooling": self._pooling,
            "norm_2": self._norms[1],
            "conv_2": self._unstrided_conv,
            "shortcut": self._shortcut_conv,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def build(self, input_shape: Sequence[int | None]) -> None:
        channels = input_shape[channel_axis(self.channels_first)]
        if not self.project and channels != self.filters:
            raise ValueError(
                f"{self.name} has project=False and so keeps the number of channels, but gets {channels} and has "
                f"filters={self.filters}: let it project, or take its block out of id_only."
            )
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

    def call(self, inputs: Tensor, training: bool | None = None) -> Tensor:
        recomputed = self._pooling if self.recompute_pooling else None
        x = activated_convolution(self._norms[0], self._strided_conv, inputs, training, recomputed)
        if self._pooling is not recomputed:
            x = self._pooling(x)
        x = activated_convolution(self._norms[1], self._unstrided_conv, x, training)
        shortcut = inputs
        if self._shortcut_conv is not None:
            shortcut = self._shortcut_conv(self._downsampled(inputs, training))
        return current.added(x, shortcut)

    def _downsampled(self, inputs: Tensor, training: bool | None) -> Tensor:
        """The inputs of the shortcut's convolution: pooled, or the samples that it would read if it were strided.

        It is not strided itself: in the oneDNN of TensorFlow 2.21, the kernel gradient of a strided 1x1
        convolution writes out of bounds on some CPUs.
        """
        if self._pooling is not None and self.recompute_pooling:
            return recomputed_pooling(self._pooling, inputs, training)
        if self._pooling is not None:
            return self._pooling(inputs)
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
        policy, data_format = self.dtype_policy, image_data_format(self.channels_first)
        norms = [layer_template(norm, axis=channel_axis(self.channels_first), dtype=policy) for norm in self._norms]
        config = {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "pooling_cls": layer_template(self._pooling, strides=self.strides, data_format=data_format, dtype=policy),
            "project": self.project,
            "channels_first": self.channels_first,
            "weight_decay": self.weight_decay,
            "normalization_cls": norms[0] if are_alike(norms) else norms,
            "recompute_pooling": self.recompute_pooling,
        }
        return with_frozen_layers(config, self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> ResidualLayer:
        layer = super().from_config({name: value for name, value in config.items() if name != "frozen"})
        if "frozen" in config:
            freeze_layers(layer, config["frozen"])
        return layer


@register
class ResnetBlock(keras.Sequential):
    """Residual layers of one width, of which only the first may downsample.

    It takes and returns maps `[batch, height, width, channels]`, or `[batch, channels, height, width]` with
    `channels_first=True`.

    Args:
        filters: channels of the output.
        strides: strides of the first layer. Not used if `project_first` is false.
        num_layers: number of residual layers.
        project_first: whether the first layer changes the size or the number of channels.
        name: name of the block.
        **kwargs: further arguments of `ResidualLayer`.

    Raises:
        ValueError: strided convolutions are given strides that are not whole, a stride is less than 1, or `num_layers`
            is no whole number of at least 1.
        TypeError: an argument that makes layers is neither a class nor a function.

    Example:
        >>> block = ResnetBlock(8, strides=2, num_layers=3, pooling_cls=SpectralPooling)
        >>> block(np.zeros([2, 16, 16, 3])).shape
        TensorShape([2, 8, 8, 8])
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
        validated_whole("num_layers", num_layers, least=1)
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
        self._config = self._made = None
        with contextlib.suppress(NotImplementedError):  # Layers that cannot be saved can be trained.
            self._note_config()

    def _note_config(self) -> None:
        configs = [layer.get_config() for layer in self.layers]
        left_out = ("name", "project", "trainable", "frozen")
        # While a file is loaded, Keras numbers the objects in a config.
        config = without(["shared_object_id"], {k: v for k, v in configs[0].items() if k not in left_out})
        self._config = {**config, "num_layers": len(configs), "project_first": self.project_first, "name": self.name}
        self._made = description(self.layers) if are_alike(each["normalization_cls"] for each in configs) else None

    def get_config(self) -> dict[str, Any]:
        if self._config is None:
            self._note_config()
        return with_frozen_layers(with_other_layers({**self._config}, self, self._made), self)

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: dict[str, Any] | None = None) -> ResnetBlock:
        return model_of(cls, config)


def conv2d(
    filters: int, kernel_size: int, *, strides: Any = 1, channels_first: bool, weight_decay: float, **kwargs: Any
) -> keras.layers.Conv2D:
    """Makes a convolution of the residual networks: padding 'same', no bias, and a penalty on its squared kernel.

    Args:
        filters: channels of the output.
        kernel_size: size of the kernel, in samples.
        strides: whole strides, one number or (vertical, horizontal).
        channels_first: whether the channels are axis 1.
        weight_decay: factor of the squared kernel in the loss.
        **kwargs: further arguments of `keras.layers.Conv2D`.

    Returns:
        The convolution, not built.
    """
    return keras.layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding="same",
        use_bias=False,
        kernel_initializer="he_normal",
        kernel_regularizer=WeightDecay(weight_decay),
        data_format=image_data_format(channels_first),
        **kwargs,
    )


def image_data_format(channels_first: bool) -> str:
    """Names the layout of maps as Keras does: 'channels_first' or 'channels_last'."""
    return "channels_first" if channels_first else "channels_last"


def channel_axis(channels_first: bool) -> int:
    """Tells which axis of a map `[batch, …]` holds the channels: 1 or -1."""
    return 1 if channels_first else -1


def whole_strides(strides: float | Sequence[float]) -> tuple[int, int]:
    """Checks strides of a convolution.

    Args:
        strides: one number for both axes, or (vertical, horizontal).

    Returns:
        (vertical, horizontal) strides.

    Raises:
        ValueError: a stride is not whole, or less than 1.
        TypeError: `strides` is neither a number nor a pair.
    """
    pair = validated_strides(strides)
    if any(stride != int(stride) for stride in pair):
        raise ValueError(f"Strided convolutions need whole strides of at least 1, got {strides!r}; poolings take any.")
    return int(pair[0]), int(pair[1])
