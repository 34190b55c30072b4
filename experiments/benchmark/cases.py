"""The cases of the benchmark: layers at the places of a ResNet-18, other sizes, both engines, whole training steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        part: 'layer', 'sizes', 'engines', 'step', or 'machine' for a matrix product that shows how fast the machine is.
        place: name of the map that is pooled or of the network that is trained.
        variant: the implementation.
        dtype: 'float32' or 'bfloat16'.
        batch: how many images.
        height: height and width of the map or image, or samples of the signal.
        channels: channels of the map, or width of the network.
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


PARTS = ("layer", "sizes", "engines", "step")
"""What `--parts` may name."""

RESNET_PLACES = (("stem", 32, 64, 1.0), ("block 2", 32, 128, 2.0), ("block 3", 24, 256, 2.0), ("block 4", 20, 512, 2.0))
"""Name, height, channels and stride of the maps that a ResNet-18 pools."""

OTHER_SIZES = (
    ("112x112x64", 112, 64, 2.0, 4),
    ("224x224x64", 224, 64, 2.0, 16),
    ("28x28x64", 28, 64, 2.0, 1),
    ("33x33x64", 33, 64, 2.0, 1),
    ("448x448x16", 448, 16, 2.0, 16),
)
"""Name, height, channels and stride of other maps, and by how much their batch is smaller."""

ENGINE_MAPS = (8, 16, 32, 64, 128, 256, 384, 512, 640, 768, 1024)
"""Heights of square maps at which the engines are compared."""

ENGINE_SIGNALS = (100, 256, 512, 1024, 2048, 4096, 16_000, 50_000, 200_000)
"""Lengths of signals at which the engines are compared."""

ENGINE_CHANNELS = (4, 64)

LONGEST_PRODUCT = 4096
"""The longest signal that is multiplied by a matrix: at 200,000 samples and stride 2 the matrix takes 80 GB."""

ENGINE_VARIANTS = ("matmul", "fft", "auto", "auto, size unknown")

MEASURED_IN_MEMORY = ("released", "symmetric", "diffstride", "hybrid", "slice", "release")

LAYER_VARIANTS = ("released", "symmetric", "fft", "average", "strided convolution")

STEP_VARIANTS = ("diffstride", "hybrid", "slice", "strided")

DTYPES = ("float32", "bfloat16")


def cases(parts: Sequence[str], batch: int) -> list[Case]:
    """Lists the cases of this package; `release_case` gives their counterparts in the released code.

    Args:
        parts: some of `PARTS`.
        batch: batch size.

    Returns:
        The cases, in the order of the table, with those of one place together.

    Raises:
        ValueError: there is no such part.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"--parts must name some of {', '.join(PARTS)}, got {', '.join(unknown)}.")
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
    if "engines" in parts:
        listed += _engine_cases()
    if "step" in parts:
        listed += [
            Case("step", "ResNet-18", variant, dtype, batch, 32, 64, 2.0)
            for variant in STEP_VARIANTS
            for dtype in DTYPES
        ]
    return listed


def _engine_cases() -> list[Case]:
    """Maps and signals of rising size, in batches of about equally many numbers."""
    numbers = 2**20
    places = [(f"map of {n}x{n}x{channels}", n, n * n, channels) for channels in ENGINE_CHANNELS for n in ENGINE_MAPS]
    places += [(f"signal of {n:,}x{channels}", n, n, channels) for channels in ENGINE_CHANNELS for n in ENGINE_SIGNALS]
    return [
        Case("engines", place, variant, "float32", max(1, min(64, numbers // (samples * channels))), n, channels, 2.0)
        for place, n, samples, channels in places
        for variant in ENGINE_VARIANTS
        if variant != "matmul" or is_map(place) or n <= LONGEST_PRODUCT
    ]


def is_map(place: str) -> bool:
    """Whether a place of the part 'engines' is a map. If not, it is a signal."""
    return place.startswith("map")


def release_case(case: Case) -> Case | None:
    """Returns the counterpart of a case in the released code.

    Args:
        case: a case of this package.

    Returns:
        A case in float32, the only precision of the release. None for all but one case of each place, so that the
        release is timed once for each place.
    """
    if case.dtype == "float32" and case.variant in ("released", "diffstride"):
        return dataclasses.replace(case, variant="release")
    return None
