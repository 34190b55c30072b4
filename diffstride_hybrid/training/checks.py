"""Checks of what `train` is given: whole numbers, the loss, the dtype policy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.common import distribution
from diffstride_hybrid.common.arguments import is_whole
from diffstride_hybrid.runs.folder import RunFolder


def check_whole(name: str, value: Any) -> None:
    if not is_whole(value, least=1):
        raise ValueError(f"train.train.{name} must be a whole number of at least 1, got {value!r}.")


def check_loss(loss: keras.losses.Loss, model: keras.Model) -> None:
    """Refuses what Keras would compute nonsense of: such smoothing, and logits for probabilities or the reverse."""
    if not isinstance(loss, keras.losses.CategoricalCrossentropy):
        return
    smoothing, takes_logits = (loss.get_config()[name] for name in ("label_smoothing", "from_logits"))
    if not isinstance(smoothing, (int, float)) or not 0 <= smoothing < 1:
        raise ValueError(
            "tf.keras.losses.CategoricalCrossentropy.label_smoothing must be at least 0 and below 1, got "
            f"{smoothing!r}."
        )
    activation = getattr(model.layers[-1], "activation", None)
    if activation is None:
        return
    if takes_logits != (activation is keras.activations.linear):
        name = keras.activations.serialize(activation)
        raise ValueError(
            "resnet.Resnet.output_activation must be 'softmax', or None together with "
            f"tf.keras.losses.CategoricalCrossentropy.from_logits = True; got {name!r} and {takes_logits}."
        )


def resolved_policy(name: str, strategy: tf.distribute.Strategy, folder: RunFolder) -> str:
    """What 'auto' stands for: what the run began with, or else what the devices compute natively."""
    allowed = ("auto", "float32", "float64", "mixed_bfloat16", "mixed_float16")
    if name not in allowed:
        raise ValueError(f"train.train.dtype_policy must be one of {', '.join(map(repr, allowed))}, got {name!r}.")
    if name != "auto":
        return name
    if folder.has_begun():
        return folder.read_json("run.json")["dtype_policy"]
    return distribution.default_dtype_policy(strategy)


@contextlib.contextmanager
def global_dtype_policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
