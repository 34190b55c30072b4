"""The options that all poolings share, and their allowed values."""

from __future__ import annotations

from typing import Literal

import tensorflow as tf

Length = int | tf.Tensor
"""Samples along an axis: a Python integer if it is known when the graph is traced, else an int32 scalar."""

Limits = float | tuple[float | None, float | None] | None
"""A limit of the strides of both axes, or a pair (vertical, horizontal). None is no limit."""

MASKS = ("released", "symmetric")
"""Windows of DiffStride: as the code released with the paper computes them, or as the paper defines them."""

NORMS = ("backward", "forward", "ortho")
"""Normalizations of the two transforms, as in `numpy.fft`."""

METHODS = ("auto", "fft", "matmul")
"""Engines: the faster one, transforms, or matrix products."""

DATA_FORMATS = ("channels_last", "channels_first")
"""Orders of the axes: channels after or before height and width."""

Mask = Literal["released", "symmetric"]

Norm = Literal["backward", "forward", "ortho"]

Method = Literal["auto", "fft", "matmul"]

DataFormat = Literal["channels_last", "channels_first"]
