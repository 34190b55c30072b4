"""The options that all poolings share, and their allowed values."""

from __future__ import annotations

from typing import Literal

import tensorflow as tf

Length = int | tf.Tensor
"""Samples along an axis: a Python integer where it is known when the graph is traced, else an int32 scalar."""

MASKS = ("released", "symmetric")

NORMS = ("backward", "forward", "ortho")

METHODS = ("auto", "fft", "matmul")

DATA_FORMATS = ("channels_last", "channels_first")

Mask = Literal["released", "symmetric"]

Norm = Literal["backward", "forward", "ortho"]

Method = Literal["auto", "fft", "matmul"]

DataFormat = Literal["channels_last", "channels_first"]
