"""Where experiments measure: the flags `--device` and `--minutes`, and the environment that shows a device."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from absl import flags

# With this line --help lists the flags that are defined below under the command that calls the function.
flags.disclaim_key_flags()

DEVICES = ("cpu", "gpu")

MINUTES_ON_GPU = 10.0
"""A card is often lent for so long."""

_RESERVED_SECONDS = 30.0
"""What starting and writing the tables take, at most half of the time that is given."""


def define_device_flags() -> None:
    """Defines `--device` and `--minutes`."""
    flags.DEFINE_enum(
        "device", "cpu", DEVICES, "Where to measure. gpu takes one card: the first that CUDA_VISIBLE_DEVICES names."
    )
    flags.DEFINE_float(
        "minutes",
        None,
        f"How long the command may take; it prints what it left out. {MINUTES_ON_GPU:g} with --device=gpu and no limit "
        "with --device=cpu if not given.",
        lower_bound=0.1,
    )


def seconds_to_measure(device: str, minutes: float | None) -> float | None:
    """How long a command may measure, so that it ends in time.

    Args:
        device: one of `DEVICES`.
        minutes: the value of `--minutes`.

    Returns:
        Seconds, or None for no limit.
    """
    if minutes is None:
        if device == "cpu":
            return None
        minutes = MINUTES_ON_GPU
    return 60.0 * minutes - min(_RESERVED_SECONDS, 30.0 * minutes)


LEAST_SECONDS = 0.02
"""How long a timed run on a GPU takes at least: a single pass takes too short a time there to be measured."""

MOST_PASSES = 200


def passes_to_time(seconds: float) -> int:
    """How many passes a timed run on a GPU has.

    Args:
        seconds: that one pass takes.

    Returns:
        A number from 1 to `MOST_PASSES`.
    """
    return max(1, min(MOST_PASSES, math.ceil(LEAST_SECONDS / max(seconds, 1e-6))))


def environment(device: str, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that let a worker process see one card, or none.

    Args:
        device: one of `DEVICES`.
        given: the environment of this process.

    Returns:
        Variables to put over those of this process, for TensorFlow, JAX and PyTorch alike.
    """
    if device == "cpu":
        # With no card in sight, JAX's plugin for CUDA fails unless JAX is told to take the CPU.
        return {"CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu", "KERAS_TORCH_DEVICE": "cpu"}
    # Without the second variable the first of two TensorFlow processes takes all memory of the card.
    return {
        "CUDA_VISIBLE_DEVICES": given.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0],
        "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    }


def no_card(found: Mapping[str, Sequence[str]], given: Mapping[str, str] = os.environ) -> str:
    """The error of `--device=gpu` where there is no card.

    Args:
        found: the devices that each framework found instead, such as 'CPU:0' by 'TensorFlow'.
        given: the environment of this process.

    Returns:
        One line that says what was looked for and what to do.
    """
    instead = ", ".join(f"{framework} found only {' and '.join(names)}" for framework, names in found.items())
    variable = given.get("CUDA_VISIBLE_DEVICES")
    hidden = "" if variable is None else f", where CUDA_VISIBLE_DEVICES is {variable!r}"
    return (
        f"--device=gpu looked for a GPU, and {instead}{hidden}. See whether nvidia-smi lists the card, and install "
        f"{' and '.join(_INSTALLS[framework] for framework in found)}, or measure with --device=cpu."
    )


_INSTALLS = {
    "TensorFlow": "TensorFlow with CUDA (pip install -e '.[cuda]')",
    "JAX": "JAX with CUDA (pip install 'jax[cuda12]')",
    "PyTorch": "PyTorch with CUDA (pip install torch)",
}
