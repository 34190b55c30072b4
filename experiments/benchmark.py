r"""Times the layers and the training step, side by side in one run.

    python -m experiments.benchmark
    python -m experiments.benchmark --against=PATH

`--against` names a checkout of google-research/diffstride; it needs the package tf-keras. Each implementation runs in a
process of its own. For each case the processes are timed in turn, so that a drift of the machine's speed meets all of
them alike; ratios are between medians. Forward and backward passes are timed together.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags

_AGAINST = flags.DEFINE_string("against", None, "A checkout of google-research/diffstride to compare with.")
_PARTS = flags.DEFINE_list("parts", ["layer", "sizes", "step"], "What to measure: layer, sizes, step.")
_REPEATS = flags.DEFINE_integer("repeats", 9, "Timed runs of each case.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 64, "Batch size.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "experiments/results/benchmark.csv", "CSV file to write; a PNG lies beside it.")
_WORKER = flags.DEFINE_enum("worker", None, ["ours", "release"], "Used by the benchmark itself.")


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        part: 'layer', 'sizes', 'step' or 'machine'.
        place: what is pooled or trained.
        variant: which implementation.
        dtype: 'float32' or 'bfloat16'.
        batch: images.
        height: of the map or image.
        channels: of the map, or the network's width.
        stride: initial stride, the same on both axes.
    """

    part: str
    place: str
    variant: str
    dtype: str
    batch: int
    height: int
    channels: int
    stride: float


RESNET_PLACES = (("stem", 32, 64, 1.0), ("block 2", 32, 128, 2.0), ("block 3", 24, 256, 2.0), ("block 4", 20, 512, 2.0))
OTHER_SIZES = (
    ("112x112x64", 112, 64, 2.0, 4),
    ("224x224x64", 224, 64, 2.0, 16),
    ("28x28x64", 28, 64, 2.0, 1),
    ("33x33x64", 33, 64, 2.0, 1),
    ("448x448x16", 448, 16, 2.0, 16),
)
LAYER_VARIANTS = ("released", "symmetric", "fft", "average", "strided convolution")


def cases(parts: Sequence[str], batch: int) -> list[Case]:
    """All cases of our own implementation, in the order of the table; `release_case` gives their counterparts."""
    listed = [Case("machine", "matrix product 2048", "product", dtype, 1, 2048, 2048, 1.0) for dtype in DTYPES]
    if "layer" in parts:
        listed += [
            Case("layer", place, variant, dtype, batch, height, channels, stride)
            for place, height, channels, stride in RESNET_PLACES
            for variant in LAYER_VARIANTS
            for dtype in DTYPES
        ]
    if "sizes" in parts:
        listed += [
            Case("sizes", place, variant, dtype, max(batch // share, 1), height, channels, stride)
            for place, height, channels, stride, share in OTHER_SIZES
            for variant in ("released", "symmetric", "fft")
            for dtype in DTYPES
        ]
    if "step" in parts:
        listed += [
            Case("step", "ResNet-18", variant, dtype, batch, 32, 64, 2.0)
            for variant in ("diffstride", "hybrid", "slice", "strided")
            for dtype in DTYPES
        ]
    return listed


DTYPES = ("float32", "bfloat16")
