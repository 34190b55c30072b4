"""Draws the picture that explains DiffStride, from left to right as the layer computes."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from diffstride_hybrid.runs.figures import COLORS
from experiments.picture.contents import SIZE, Pooling, StrideCourse, spectrum

AFTER, BEFORE = COLORS[:2]
STAGES = (("before", BEFORE, "--"), ("after", AFTER, "-"))
"""Each stage of the training, with its color and its line style."""
WIDTH, HEIGHT = 900, 352
"""Size in which a page shows the picture. All places below are in these pixels, from the top left corner."""
PIXELS_PER_SAMPLE = 1.5
SIDE = SIZE * PIXELS_PER_SAMPLE
TOP = 66
IMAGE_LEFT, SPECTRUM_LEFT, SMALLER_LEFT, STRIDE_LEFT = 10, 258, 506, 720


def picture(
    image: np.ndarray, courses: Sequence[StrideCourse], course: StrideCourse, poolings: Sequence[Pooling]
) -> Figure:
    """Draws the picture.

    Args:
        image: `[SIZE, SIZE, 3]`, from 0 to 1.
        courses: of all layers of the run.
        course: of the layer whose strides pool the image.
        poolings: of the image, before and after training.

    Returns:
        A figure of `WIDTH` by `HEIGHT` hundredths of an inch.
    """
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), facecolor="white")
    _text(figure, WIDTH / 2, 20, "DiffStride: downsampling whose stride is trained", 12.5, weight="bold", ha="center")
    _draw_image(_axes(figure, IMAGE_LEFT, TOP, SIDE, SIDE), image)
    _title(figure, IMAGE_LEFT, f"image, {SIZE} × {SIZE}")
    _draw_spectrum(_axes(figure, SPECTRUM_LEFT, TOP, SIDE, SIDE), image, poolings)
    _title(figure, SPECTRUM_LEFT, "its spectrum × a soft window")
    _draw_profile(_axes(figure, SPECTRUM_LEFT, TOP + SIDE + 6, SIDE, 34), poolings)
    _draw_smaller(figure, poolings)
    _title(figure, SMALLER_LEFT, "smaller image")
    _draw_course(_axes(figure, STRIDE_LEFT, TOP, WIDTH - STRIDE_LEFT - 12, SIDE), courses, course)
    _title(figure, STRIDE_LEFT - 16, "training moves the stride")
    _text(figure, SPECTRUM_LEFT - 18, TOP + SIDE + 23, "weight of\na frequency", 7.5, ha="right")
    notes = (
        f"Size of a smaller image: {SIZE} / stride, plus the two ramps of the window.",
        "Strides: from the training of a network; the photograph only shows their effect. "
        f"Blue: its layer {course.layer}. Gray: its other layers.",
    )
    for line, note in enumerate(notes):
        _text(figure, IMAGE_LEFT, HEIGHT - 24 + 14 * line, note, 7.5, color="0.35")
    for left, label in ((IMAGE_LEFT + SIDE, "DFT"), (SPECTRUM_LEFT + SIDE, "inverse\nDFT")):
        _draw_arrow(figure, left, label)
    return figure


def stride_and_size(pooling: Pooling) -> str:
    """Says which strides gave which size."""
    height, width = pooling.image.shape[:2]
    vertical, horizontal = pooling.strides
    return f"stride {vertical:.2f} × {horizontal:.2f} → {height} × {width}"


def write(figure: Figure, path: pathlib.Path) -> None:
    """Writes the picture as a PNG file of twice the size in which a page shows it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200, pil_kwargs={"optimize": True})


def _draw_image(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, interpolation="nearest", aspect="auto")
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_spectrum(axes: Axes, image: np.ndarray, poolings: Sequence[Pooling]) -> None:
    """The window after training in color, its ramp as a fading edge, and the crops before and after as boxes."""
    decibels = spectrum(image)
    darkest, lightest = np.percentile(decibels, (1, 99.8))
    gray = np.clip((decibels - darkest) / (lightest - darkest), 0, 1)[..., None]
    pooling = poolings[-1]
    weights = (pooling.row_weights[:, None] * pooling.column_weights)[..., None]
    kept = gray + (1 - gray) * 0.7 * np.array(to_rgb(AFTER))
    dropped = 0.72 + 0.28 * gray
    half = SIZE / 2
    axes.imshow(
        weights * kept + (1 - weights) * dropped,
        interpolation="nearest",
        aspect="auto",
        extent=(-half - 0.5, half - 0.5, half - 0.5, -half - 0.5),
    )
    for pooling, (when, color, style) in zip(poolings, STAGES):
        (top, bottom), (left, right) = (kept_edges(w) for w in (pooling.row_weights, pooling.column_weights))
        size = (right - left, bottom - top)
        axes.add_patch(Rectangle((left, top), *size, edgecolor=color, fill=False, linewidth=1.6, linestyle=style))
        axes.text(left, top - 3, when, color=color, fontsize=8, weight="bold")
    axes.set_xticks([])
    axes.set_yticks([])


def kept_edges(weights: np.ndarray) -> tuple[float, float]:
    """The edges of the crop along an axis, in frequencies."""
    bins = np.flatnonzero(weights) - len(weights) // 2
    return bins[0] - 0.5, bins[-1] + 0.5


def _draw_profile(axes: Axes, poolings: Sequence[Pooling]) -> None:
    frequencies = np.arange(SIZE) - SIZE // 2
    for pooling, (_, color, style) in zip(poolings, STAGES):
        axes.plot(frequencies, pooling.column_weights, color=color, linestyle=style, linewidth=1.6)
    axes.set_xlim(-SIZE / 2 - 0.5, SIZE / 2 - 0.5)
    axes.set_ylim(-0.08, 1.15)
    axes.set_xticks([])
    axes.set_yticks([0, 1], ["0", "1"], fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=2, pad=2)


def _draw_smaller(figure: Figure, poolings: Sequence[Pooling]) -> None:
    """Both smaller images in the scale of the large one."""
    top = TOP
    for pooling, (when, color, style) in zip(poolings, STAGES):
        height, width = (PIXELS_PER_SAMPLE * length for length in pooling.image.shape[:2])
        axes = _axes(figure, SMALLER_LEFT, top + 32, width, height)
        _draw_image(axes, pooling.image)
        for spine in axes.spines.values():
            spine.set(color=color, linewidth=1.6, linestyle=style)
        _text(figure, SMALLER_LEFT, top + 8, f"{when} training", 8.5, color=color, weight="bold")
        _text(figure, SMALLER_LEFT, top + 22, stride_and_size(pooling), 8.2, color=color)
        top += 32 + height + 14


def _draw_course(axes: Axes, courses: Sequence[StrideCourse], course: StrideCourse) -> None:
    for other in courses:
        axes.plot(other.epochs, other.strides, color="0.8", linewidth=1)
    axes.plot(course.epochs, course.strides, color=AFTER, linewidth=1.8)
    axes.plot(course.epochs[[0, 0]], course.before, "o", color=BEFORE, markersize=6)
    axes.plot(course.epochs[[-1, -1]], course.after, "o", color=AFTER, markersize=6)
    for stride, offset in zip(sorted(course.after), (-5, 5)):
        _label_point(axes, course.epochs[-1], stride, (6, offset), AFTER)
    for stride in np.unique(course.before):
        _label_point(axes, course.epochs[0], stride, (-1, -12), BEFORE)
    axes.set_xlim(right=1.3 * course.epochs[-1])
    axes.set_xticks(course.epochs[[0, len(course.epochs) // 2, -1]])
    axes.margins(y=0.08)
    axes.set_xlabel("epoch", fontsize=8.5)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _label_point(axes: Axes, epoch: int, stride: float, offset: tuple[int, int], color: str) -> None:
    background = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    options = {"textcoords": "offset points", "va": "center", "fontsize": 9, "weight": "bold", "bbox": background}
    axes.annotate(f"{stride:.2f}", (epoch, stride), offset, color=color, **options)


def _draw_arrow(figure: Figure, left: float, label: str) -> None:
    """An arrow in the gap to the right of a panel that ends at `left`."""
    middle, center = TOP + SIDE / 2, left + 28
    start, end = ((x / WIDTH, 1 - middle / HEIGHT) for x in (center - 18, center + 18))
    options = {"arrowstyle": "-|>", "mutation_scale": 14, "shrinkA": 0, "shrinkB": 0}
    figure.add_artist(FancyArrowPatch(start, end, linewidth=2, color="0.25", **options))
    _text(figure, center, middle - 9, label, 8, ha="center", va="bottom")


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    return figure.add_axes((left / WIDTH, 1 - (top + height) / HEIGHT, width / WIDTH, height / HEIGHT))


def _title(figure: Figure, left: float, text: str) -> None:
    _text(figure, left, TOP - 14, text, 9.5)


def _text(figure: Figure, left: float, top: float, text: str, size: float, **options: str) -> None:
    figure.text(left / WIDTH, 1 - top / HEIGHT, text, fontsize=size, **{"va": "center", **options})
