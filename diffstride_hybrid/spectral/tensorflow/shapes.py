"""Lengths that are known only when a graph runs, and the order of the axes, for TensorFlow's engines."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from diffstride_hybrid.spectral.layout import resized
from diffstride_hybrid.spectral.options import DataFormat, Length


def length_of(tensor: tf.Tensor, axis: int) -> Length:
    """The length of one axis of a tensor, a Python integer if it is known."""
    return tf.shape(tensor)[axis] if tensor.shape[axis] is None else tensor.shape[axis]


def with_static_shape(
    outputs: tf.Tensor, inputs: tf.Tensor, lengths: Sequence[Length], data_format: DataFormat
) -> tf.Tensor:
    """The outputs, with the shape that is known of them when the graph is traced.

    Args:
        outputs: the pooled batch.
        inputs: the batch before pooling, whose other axes the outputs share.
        lengths: of the pooled axes.
        data_format: which axis holds the channels.

    Returns:
        `outputs`.
    """
    return tf.ensure_shape(outputs, resized(inputs.shape, lengths, data_format))


def to_channels_first(inputs: tf.Tensor, data_format: DataFormat) -> tf.Tensor:
    """A batch of maps or signals in `data_format`, with its channels moved to axis 1."""
    if data_format == "channels_first":
        return inputs
    return tf.transpose(inputs, [0, 3, 1, 2] if inputs.shape.rank == 4 else [0, 2, 1])


def from_channels_first(
    outputs: tf.Tensor, inputs: tf.Tensor, lengths: Sequence[Length], data_format: DataFormat
) -> tf.Tensor:
    """A pooled batch with its channels on axis 1, in the order, the dtype and the known shape that `inputs` ask for.

    Args:
        outputs: the pooled batch.
        inputs: the batch before pooling.
        lengths: of the pooled axes.
        data_format: which axis holds the channels of `inputs`.

    Returns:
        The pooled batch in `data_format` and in the dtype of `inputs`.
    """
    if data_format == "channels_last":
        outputs = tf.transpose(outputs, [0, 2, 3, 1] if inputs.shape.rank == 4 else [0, 2, 1])
    return with_static_shape(tf.cast(outputs, inputs.dtype), inputs, lengths, data_format)


def as_complex(real: tf.Tensor) -> tf.Tensor:
    """A real tensor as a complex one of the same precision."""
    return tf.complex(real, tf.zeros_like(real))
