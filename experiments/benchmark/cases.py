"""The cases of the benchmark: layers at the places of a ResNet-18, other sizes, both engines, whole training steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to time.

    Attributes:
        part: 'layer', 'small' for the same layers in small batches, 'sizes', 'engines', 'step', or 'machine' for a
            matrix product that shows how fast the machine is.
        place: name of the map that is pooled or of the network that is trained.
        variant: the implementation, with ", channels_first" after it if the maps are so; else they are channels_last.
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


PARTS = ("layer", "small", "sizes", "engines", "step")
"""What `--parts` may name."""

RESNET_PLACES = (("stem", 32, 64, 1.0), ("block 2", 32, 128, 2.0), ("block 3", 24, 256, 2.0), ("block 4", 20, 512, 2.0))
"""Name, height, channels and stride of the maps that a ResNet-18 pools."""

SMALL_BATCHES = (1, 2, 8)

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

LONE, FIXED, RESAMPLED = "batch 1", "fixed", "resampled"
"""What may follow the size in the name of a place: the batch, `FixedSpectralPooling`, `SpectralPooling`."""

CHANNELS_FIRST = ", channels_first"
"""The end of the variants in that data format."""

_MEASURED_IN_MEMORY = ("released", "symmetric", "diffstride", "recomputing", "hybrid", "slice", "release")

LAYER_VARIANTS = ("released", "symmetric", "fft", "average", "strided convolution")

STEP_VARIANTS = ("diffstride", "recomputing", "hybrid", "slice", "strided")

DTYPES = ("float32", "bfloat16")


def cases(parts: Sequence[str], batch: int, device: str = "cpu") -> list[Case]:
    """Lists the cases of this package; `release_case` gives their counterparts in the released code.

    On a GPU the layers are timed in both data formats, since either may be faster there. The engines are timed in
    larger batches, which a GPU needs to be busy, and also in batches of one and in the poolings without a stride to
    learn, so that all constants of `auto` can be fitted.

    Args:
        parts: some of `PARTS`.
        batch: batch size, except of 'small' and 'engines'.
        device: 'cpu' or 'gpu'.

    Returns:
        The cases, in the order of the table, with those of one place together.

    Raises:
        ValueError: there is no such part.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise ValueError(f"--parts must name some of {', '.join(PARTS)}, got {', '.join(unknown)}.")
    listed = [Case("machine", "matrix product 2048", "product", dtype, 1, 2048, 2048, 1.0) for dtype in DTYPES]
    formats = ("", CHANNELS_FIRST) if device == "gpu" else ("",)
    if "layer" in parts:
        listed += [
            Case("layer", place, variant + data_format, dtype, batch, height, channels, stride)
            for place, height, channels, stride in RESNET_PLACES
            for variant in LAYER_VARIANTS
            for data_format in formats
            for dtype in DTYPES
        ]
    if "small" in parts:
        listed += [
            Case("small", f"{place}, batch {small}", variant, dtype, small, height, channels, stride)
            for small in SMALL_BATCHES
            for place, height, channels, stride in RESNET_PLACES
            for variant in ("released", "symmetric")
            for dtype in DTYPES
        ]
    if "sizes" in parts:
        listed += [
            Case("sizes", place, variant + data_format, dtype, max(batch // share, 1), height, channels, stride)
            for place, height, channels, stride, share in OTHER_SIZES
            for variant in ("released", "symmetric", "fft")
            for data_format in formats
            for dtype in DTYPES
        ]
    if "engines" in parts:
        listed += _engine_cases() if device == "cpu" else _engine_cases(2**24, 256) + _more_engine_cases(2**24, 256)
    if "step" in parts:
        listed += [
            Case("step", "ResNet-18", variant, dtype, batch, 32, 64, 2.0)
            for variant in STEP_VARIANTS
            for dtype in DTYPES
        ]
    return listed


def _engine_cases(numbers: int = 2**20, largest_batch: int = 64) -> list[Case]:
    """Maps and signals of rising size, in batches of about equally many numbers."""
    listed = []
    for place, n, samples, channels in _engine_places(ENGINE_MAPS, ENGINE_SIGNALS):
        batch = _batch(samples, channels, numbers, largest_batch)
        for variant in ENGINE_VARIANTS:
            if variant != "matmul" or is_map(place) or n <= LONGEST_PRODUCT:
                listed.append(Case("engines", place, variant, "float32", batch, n, channels, 2.0))
    return listed


def _more_engine_cases(numbers: int, largest_batch: int) -> list[Case]:
    """Both engines in batches of one, and in the poolings that learn no stride: only `SpectralPooling` has signals."""
    some_maps, some_signals = ENGINE_MAPS[::2], ENGINE_SIGNALS[:6]
    kinds = ((LONE, some_maps, some_signals[::2]), (FIXED, some_maps, ()), (RESAMPLED, some_maps, some_signals))
    listed = []
    for kind, maps, signals in kinds:
        for place, n, samples, channels in _engine_places(maps, signals):
            batch = _batch(samples, channels, numbers, largest_batch)
            if kind == LONE and batch == 1:
                continue  # Timed already.
            for variant in ("matmul", "fft"):
                one = 1 if kind == LONE else batch
                listed.append(Case("engines", f"{place}, {kind}", variant, "float32", one, n, channels, 2.0))
    return listed


def _engine_places(maps: Sequence[int], signals: Sequence[int]) -> list[tuple[str, int, int, int]]:
    """Name, length of an axis, samples of a channel, channels."""
    places = [(f"map of {n}x{n}x{channels}", n, n * n, channels) for channels in ENGINE_CHANNELS for n in maps]
    return places + [(f"signal of {n:,}x{channels}", n, n, channels) for channels in ENGINE_CHANNELS for n in signals]


def _batch(samples: int, channels: int, numbers: int, largest: int) -> int:
    return max(1, min(largest, numbers // (samples * channels)))


def is_map(place: str) -> bool:
    """Whether a place of the part 'engines' is a map. If not, it is a signal."""
    return place.startswith("map")


def pooling_of(place: str) -> str:
    """The pooling of a place of the part 'engines': 'learned', `FIXED` or `RESAMPLED`."""
    kind = place.partition(", ")[2]
    return kind if kind in (FIXED, RESAMPLED) else "learned"


def is_measured_in_memory(case: Case) -> bool:
    """Whether peak memory is measured too, beside the time. In small batches it says little, and takes longer."""
    return case.variant in _MEASURED_IN_MEMORY and case.part != "small"


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
