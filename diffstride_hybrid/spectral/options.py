"""The options that all poolings share, and their allowed values."""

from __future__ import annotations

from typing import Any, Literal

Tensor = Any
"""A tensor of the backend that Keras runs on."""

Length = Any
"""Samples along an axis: a Python integer if it is known, else an int32 scalar, which only TensorFlow's graphs have."""

Bound = tuple[int, int] | None
"""The greatest height and width of the maps that a pooling will meet, in samples. None if they are not known."""

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

Kind = Literal["learned", "fixed", "resampled", "resized"]
"""Poolings by what an engine must know of their windows: they depend on trained strides; they are hard, as released;
they are hard and fold the Nyquist frequency, to fewer samples; the same, to any number of samples."""

Mask = Literal["released", "symmetric"]

Norm = Literal["backward", "forward", "ortho"]

Method = Literal["auto", "fft", "matmul"]

DataFormat = Literal["channels_last", "channels_first"]
