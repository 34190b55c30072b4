"""Draws test images beside their classes, what three networks predict, and the pixels that a shift changes."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from experiments.segmentation import scores
from experiments.segmentation.camvid import CLASSES, VOID, CamVid

COLORS = (
    *("#8ecae6", "#8d6e63", "#111111", "#7b7d8a", "#e0b1cb", "#386641"),
    *("#ffb703", "#bc6c25", "#3a0ca3", "#d00000", "#06d6a0", "#ffffff"),
)
"""A color for each of `CLASSES`, and one for void."""

CHANGED, UNCHANGED = "#d00000", "#eef0f2"

SHIFT = 2
"""The shift of the lower row, in pixels down and to the right."""

SHOWN = 2
"""How many test images are drawn."""


class Panels(NamedTuple):
    """What is drawn of one test image.

    Attributes:
        image: uint8 `[height, width, 3]`.
        labels: uint8 `[height, width]`.
        predicted: for each network, classes `[height, width]`.
        changed: for each network, whether a pixel changes its class under the shift, `[height - SHIFT, width - SHIFT]`.
    """

    image: np.ndarray
    labels: np.ndarray
    predicted: Mapping[str, np.ndarray]
    changed: Mapping[str, np.ndarray]


def panels(data: CamVid, predictions: Mapping[str, scores.Predict], count: int = SHOWN) -> list[Panels]:
    """Predicts the classes of a few test images with each network.

    Args:
        data: the test images.
        predictions: predicts the classes of images, for each network.
        count: how many images to take. They are chosen by their labels alone, see `most_classes`.

    Returns:
        The panels of each image.
    """
    chosen = most_classes(data.test.labels, count)
    larger = data.larger[chosen]
    crops = scores.shifted(larger, 0, 0), scores.shifted(larger, SHIFT, SHIFT)
    predicted = {name: predict(data.test.images[chosen]) for name, predict in predictions.items()}
    changed = {
        name: ~scores.same_class(*map(predict, crops), down=SHIFT, right=SHIFT) for name, predict in predictions.items()
    }
    return [
        Panels(
            data.test.images[place],
            data.test.labels[place],
            {name: of_all[i] for name, of_all in predicted.items()},
            {name: of_all[i] for name, of_all in changed.items()},
        )
        for i, place in enumerate(chosen)
    ]


def most_classes(labels: np.ndarray, count: int) -> list[int]:
    """Finds images with many classes: the split is cut into equal parts, and each gives the first that has the most.

    Args:
        labels: `[images, height, width]`.
        count: how many parts, at most as many as there are images.

    Returns:
        Places of the images.
    """
    classes = [len(np.setdiff1d(of_image, VOID)) for of_image in labels]
    return [int(part[np.argmax([classes[i] for i in part])]) for part in np.array_split(np.arange(len(labels)), count)]


def picture(drawn: Sequence[Panels]) -> Figure:
    """Draws the panels of some images.

    Args:
        drawn: at least one image, all with the same networks.

    Returns:
        A figure. Each image has two rows. The upper one has the image and the predicted classes, the lower one the true
        classes and the pixels that the shift changes.
    """
    columns = 1 + len(drawn[0].predicted)
    figure = Figure(figsize=(9, 0.6 + 3.6 * len(drawn)), facecolor="white", layout="constrained")
    grid = figure.subplots(2 * len(drawn), columns, squeeze=False)
    for (upper, lower), image in zip(zip(grid[::2], grid[1::2]), drawn):
        _show(upper[0], image.image, "image")
        _show(lower[0], colored(image.labels), "truth")
        for above, below, name in zip(upper[1:], lower[1:], image.predicted):
            changed = image.changed[name]
            _show(above, colored(image.predicted[name]), f"{name}: prediction")
            _show(
                below,
                np.where(changed[..., None], to_rgb(CHANGED), to_rgb(UNCHANGED)),
                f"{100 * changed.mean():.1f} % change if shifted",
            )
    names = (*CLASSES, "void")
    patches = [Patch(facecolor=color, edgecolor="0.6", label=name) for color, name in zip(COLORS, names)]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return figure


def colored(classes: np.ndarray) -> np.ndarray:
    """Gives each class its color: float64 `[height, width, 3]` from 0 to 1."""
    return np.array([to_rgb(color) for color in COLORS])[classes]


def write(figure: Figure, path: pathlib.Path) -> None:
    """Writes the picture as a PNG file of about twice the size in which a page shows it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=160, pil_kwargs={"optimize": True})


def _show(axes: Axes, image: Any, title: str) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_title(title, fontsize=8.5, pad=3)
    axes.set_xticks([])
    axes.set_yticks([])
