"""Models whose strides are fixed: graphs that hold each pooling as products with constant matrices."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.layers.fourier_pooling import FourierPooling
from diffstride_hybrid.model_tools.inspection import leaf_layers, replaced_calls


@contextlib.contextmanager
def frozen_poolings(model: keras.Model) -> Iterator[None]:
    """A context in which the poolings of a model are products with constant matrices, those of the present strides.

    A graph that is traced there has no window, no transform and no unknown size. It does not notice if the strides
    change afterwards. The size of the images must be known.

    Args:
        model: a built model.

    Yields:
        Nothing.
    """
    poolings = [layer for layer in leaf_layers(model) if isinstance(layer, FourierPooling)]
    with replaced_calls(poolings, _constant_call):
        yield


def inference_function(model: keras.Model, image_shape: Sequence[int]) -> tf.types.experimental.PolymorphicFunction:
    """Compiles a model for inference with its present strides and weights, as `export` writes it.

    Args:
        model: a built model whose strides will not change.
        image_shape: (height, width, channels) of an image.

    Returns:
        A traced `tf.function` from float32 images `[batch, height, width, channels]` to outputs `[batch, classes]`.

    Example:
        >>> from diffstride_hybrid.model_tools.frozen import inference_function
        >>> model = keras.Sequential([keras.Input((16, 16, 1)), DiffStride(2.0), keras.layers.GlobalAveragePooling2D()])
        >>> inference_function(model, (16, 16, 1))(keras.ops.ones([5, 16, 16, 1])).shape
        TensorShape([5, 1])
    """
    function = tf.function(
        lambda images: model(images, training=False),
        input_signature=[tf.TensorSpec([None, *image_shape], tf.float32, name="images")],
        autograph=False,
    )
    with frozen_poolings(model):
        function.get_concrete_function()
    return function


def _constant_call(pooling: FourierPooling) -> Callable[..., tf.Tensor]:
    signature = inspect.signature(pooling.call)

    def call(*args: Any, **kwargs: Any) -> tf.Tensor:
        given = signature.bind(*args, **kwargs).arguments
        return pooling.constant_call(**{name: value for name, value in given.items() if name != "training"})

    return call
