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


@contextlib.contextmanager
def computed_in_float32(model: keras.Model) -> Iterator[None]:
    """A context in which a model that was trained in half precision computes in float32.

    The weights are float32 under the mixed policies too. Layers that Keras has quantized keep their arithmetic.

    Args:
        model: a built model.

    Yields:
        Nothing.

    Raises:
        ValueError: a weight is of another floating type than float32.
    """
    for weight in model.variables:
        if keras.backend.is_float_dtype(weight.dtype) and weight.dtype != "float32":
            raise ValueError(f"{weight.path} is {weight.dtype}, and must be float32: choose the format saved_model.")
    layers = (model, *leaf_layers(model))
    policies = {layer: layer._dtype_policy for layer in layers}
    # A model within a model casts what it is given to the type that it was given when it was made. Keras keeps that
    # type in the symbolic inputs and in the input layers, and cannot change it.
    tensors = [tensor for inner in layers if isinstance(inner, keras.Model) for tensor in getattr(inner, "inputs", ())]
    inputs = [*tensors, *(layer for layer in layers if isinstance(layer, keras.layers.InputLayer))]
    inputs = [given for given in inputs if keras.backend.is_float_dtype(given._dtype)]
    dtypes = [given._dtype for given in inputs]
    try:
        for layer, policy in policies.items():
            if getattr(policy, "quantization_mode", None) is None:
                # Not by `dtype_policy`, which would change the map of policies that some layers share.
                layer._dtype_policy = keras.DTypePolicy("float32")
        for given in inputs:
            given._dtype = "float32"
        yield
    finally:
        for layer, policy in policies.items():
            layer._dtype_policy = policy
        for given, dtype in zip(inputs, dtypes):
            given._dtype = dtype


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

    def serve(images: tf.Tensor) -> tf.Tensor:
        with frozen_poolings(model):  # Within the function: TensorFlow traces it once more when it saves it.
            return model(images, training=False)

    images = tf.TensorSpec([None, *image_shape], tf.float32, name="images")
    function = tf.function(serve, input_signature=[images], autograph=False)
    function.get_concrete_function()
    return function


def _constant_call(pooling: FourierPooling) -> Callable[..., tf.Tensor]:
    signature = inspect.signature(pooling.call)

    def call(*args: Any, **kwargs: Any) -> tf.Tensor:
        given = signature.bind(*args, **kwargs).arguments
        return pooling.constant_call(**{name: value for name, value in given.items() if name != "training"})

    return call
