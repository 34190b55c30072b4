"""The functions of the backend that Keras runs on. Every backend's module has the same ones."""

from __future__ import annotations

import importlib
from typing import Any

import keras

NAME: str = keras.backend.backend()
"""'tensorflow', 'jax' or 'torch'."""

_backend: Any = importlib.import_module(f"diffstride_hybrid.backends.on_{NAME}")

eagerly = _backend.eagerly
uncompiled = _backend.uncompiled
is_tracing = _backend.is_tracing
needs_static_shapes = _backend.needs_static_shapes
watch = _backend.watch
value_of = _backend.value_of
as_length = _backend.as_length
clipped = _backend.clipped
added = _backend.added
half_sum_of_squares = _backend.half_sum_of_squares
product = _backend.product
checked_when_run = _backend.checked_when_run
check_beside_graph = _backend.check_beside_graph
bring_weights_back = _backend.bring_weights_back
gradient_of = _backend.gradient_of
peak_megabytes = _backend.peak_megabytes
SIZE_ERRORS = _backend.SIZE_ERRORS
SIZES_ARE_KNOWN: bool = _backend.SIZES_ARE_KNOWN
