"""Shifts images by whole pixels or fractions of pixels, and measures whether their classes stay.

Zhang, "Making Convolutional Networks Shift-Invariant Again", ICML 2019, arXiv 1904.11486, section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from diffstride_hybrid.audit.classifier import Change

BOUNDARIES = ("mirrored", "circular")
"""How an image goes on beyond its edges: as its mirror image, or from the opposite edge."""

PAIRS = 2
"""How many pairs of random shifts each image gets."""

GRID = tuple((down, right) for down in range(-2, 3) for right in range(-2, 3))
"""The shifts of the worst case, in pixels."""

Classes = Callable[[np.ndarray, Change], np.ndarray]
"""Gives the classes `[number]` of images `[number, height, width, channels]` that a function changes batch by batch."""


def greatest_shift(height: int, width: int) -> int:
    """The greatest random shift in pixels: an eighth of the shorter side, at least 1.

    Args:
        height: of the images.
        width: of the images.

    Returns:
        The shift. For images of 224 pixels it is 28; Zhang crops 224 of 256 pixels, at offsets of up to 32.
    """
    return max(1, min(height, width) // 8)


def shifted(images: np.ndarray, shifts: np.ndarray, boundary: str) -> np.ndarray:
    """Shifts each image by its own distance. Whole shifts copy pixels, fractional ones use the Fourier series.

    Args:
        images: float32 `[number, height, width, channels]`, pixels from 0 to 1.
        shifts: (down, right) in pixels, `[number, 2]`. Integers, or floating-point numbers for fractional shifts.
        boundary: 'mirrored' or 'circular'.

    Returns:
        float32 of the shape of `images`. Values that a fractional shift takes beyond 0 or 1 are clipped.

    Example:
        >>> image = np.array([[[[0.0], [0.25], [1.0]]]], "float32")
        >>> [shifted(image, np.array([[0, 1]]), boundary).ravel().tolist() for boundary in BOUNDARIES]
        [[0.0, 0.0, 0.25], [1.0, 0.0, 0.25]]
    """
    height, width = images.shape[1:3]
    if boundary == "mirrored":
        images = np.concatenate([images, images[:, ::-1]], 1)
        images = np.concatenate([images, images[:, :, ::-1]], 2)
    if np.issubdtype(shifts.dtype, np.integer):
        rows = (np.arange(height) - shifts[:, :1]) % images.shape[1]
        columns = (np.arange(width) - shifts[:, 1:]) % images.shape[2]
        return images[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]
    moved = shifted_maps(images, shifts)[:, :height, :width]
    return np.clip(moved, 0, 1).astype(np.float32)


def shifted_maps(maps: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Shifts maps circularly by fractions of samples: every frequency `k` gets the phase `exp(-2 pi i k d / n)`.

    The highest frequency of an even length, which has no sign, is multiplied by `cos(pi d)`: the result is real.

    Args:
        maps: `[number, height, width, channels]`.
        shifts: (down, right) in samples, `[number, 2]` or `[1, 2]`.

    Returns:
        float64 of the shape of `maps`.
    """
    down, right = (_phases(maps.shape[axis], shifts[:, axis - 1]) for axis in (1, 2))
    spectrum = np.fft.fft2(maps, axes=(1, 2)) * down[:, :, None, None] * right[:, None, :, None]
    return np.fft.ifft2(spectrum, axes=(1, 2)).real


def consistency(classes: Classes, images: np.ndarray, seed: int) -> Iterator[tuple[str, str, float]]:
    """Measures the share of pairs of shifted images that get the same class.

    Each image is shifted twice, down and right by random distances of up to `greatest_shift`, never twice by the same,
    and the classes of both are compared; `PAIRS` times.

    Args:
        classes: gives the classes of images.
        images: float32 `[number, height, width, channels]`, pixels from 0 to 1.
        seed: of the shifts.

    Yields:
        The boundary, 'whole' or 'fractional' pixels, and the share, from 0 to 1.
    """
    most = greatest_shift(*images.shape[1:3])
    for boundary in BOUNDARIES:
        for kind in ("whole", "fractional"):
            random = np.random.default_rng([seed, BOUNDARIES.index(boundary), kind == "whole"])
            equal = []
            for _ in range(PAIRS):
                first, second = (
                    _classes_of_shifted(classes, images, distances, boundary)
                    for distances in _random_pair(random, kind, len(images), most)
                )
                equal.append(first == second)
            yield boundary, kind, float(np.mean(equal))


def classes_on_grid(classes: Classes, images: np.ndarray) -> np.ndarray:
    """The classes of images at every shift of `GRID`, with mirrored edges.

    Args:
        classes: gives the classes of images.
        images: float32 `[number, height, width, channels]`, pixels from 0 to 1.

    Returns:
        Integers `[shifts, number]`.
    """
    everywhere = (np.tile(shift, (len(images), 1)) for shift in GRID)
    return np.stack([_classes_of_shifted(classes, images, distances, "mirrored") for distances in everywhere])


def _classes_of_shifted(classes: Classes, images: np.ndarray, distances: np.ndarray, boundary: str) -> np.ndarray:
    return classes(images, lambda batch, where: shifted(batch, distances[where], boundary))


def _random_pair(random: np.random.Generator, kind: str, count: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Two distances for each image, `[count, 2]` each. No image has the same distance twice."""
    if kind == "fractional":
        return random.uniform(0, most, (count, 2)), random.uniform(0, most, (count, 2))
    places = most + 1
    first = random.integers(0, places**2, count)
    second = (first + random.integers(1, places**2, count)) % places**2
    first_shifts, second_shifts = (np.stack(np.divmod(numbers, places), 1) for numbers in (first, second))
    return first_shifts, second_shifts


def _phases(length: int, shifts: np.ndarray) -> np.ndarray:
    """The factor of each frequency, `[number, length]`."""
    return np.exp(-2j * np.pi * np.fft.fftfreq(length) * shifts[:, None])
