"""Corrupts images in six ways, after CIFAR-10-C.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
arXiv 1903.12261. The strengths are those of their severities 1, 3 and 5 for CIFAR-10 (`make_cifar_c.py` in the
repository hendrycks/robustness). The files of CIFAR-10-C are not used: the noise is another.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np

SEVERITIES = (1, 3, 5)
"""The severities of CIFAR-10-C that are measured."""

STRENGTHS: dict[str, tuple[float, ...]] = {
    "noise": (0.04, 0.08, 0.10),
    "blur": (0.4, 0.7, 1.0),
    "contrast": (0.75, 0.4, 0.15),
    "brightness": (0.05, 0.15, 0.3),
    "pixelate": (0.95, 0.85, 0.65),
    "jpeg": (80, 58, 40),
}
"""Of each kind of corruption, the strength at each severity. What it is, the function of that name says."""

_BLUR_SIZE = 32
"""The size of images, in pixels, for which the widths of the blur are meant."""


def corrupted(images: np.ndarray, kind: str, severity: int, seed: int) -> np.ndarray:
    """Corrupts images, and rounds them to 8 bits as image files are.

    Args:
        images: float32 `[number, height, width, channels]`, pixels from 0 to 1.
        kind: a key of `STRENGTHS`.
        severity: of `SEVERITIES`.
        seed: of the noise.

    Returns:
        float32 of the shape of `images`, from 0 to 1.

    Raises:
        ImportError: Pillow or SciPy is not installed.

    Example:
        >>> gray = np.full((1, 2, 2, 1), 0.5, "float32")
        >>> (255 * corrupted(gray, "brightness", 1, seed=0)).ravel().round()
        array([140., 140., 140., 140.], dtype=float32)
    """
    level = SEVERITIES.index(severity)
    strength = STRENGTHS[kind][level]
    if kind == "noise":
        changed = noise(images, strength, np.random.default_rng([seed, level]))
    else:
        changed = _WITHOUT_CHANCE[kind](images, strength)
    return (np.clip(changed, 0, 1) * 255).round().astype(np.float32) / np.float32(255)


def noise(images: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    """Adds Gaussian noise of a standard deviation, drawn for each channel of each pixel."""
    return images + deviation * random.standard_normal(images.shape, np.float32)


def blur(images: np.ndarray, deviation: float) -> np.ndarray:
    """Convolves with a Gaussian. Its standard deviation is in pixels of images whose shorter side is 32."""
    from scipy import ndimage

    pixels = deviation * min(images.shape[1:3]) / _BLUR_SIZE
    return ndimage.gaussian_filter(images, (0, pixels, pixels, 0), mode="nearest")


def contrast(images: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies the difference of each channel to its mean over the image."""
    means = images.mean((1, 2), keepdims=True)
    return (images - means) * factor + means


def brightness(images: np.ndarray, added: float) -> np.ndarray:
    """Adds to the value of each pixel in the HSV model, its brightest channel, and keeps hue and saturation."""
    value = images.max(-1, keepdims=True)
    raised = np.minimum(value + added, 1)
    return np.where(value > 0, images * (raised / np.where(value > 0, value, 1)), raised)


def pixelate(images: np.ndarray, share: float) -> np.ndarray:
    """Resizes to a share of height and width and back, with Pillow's box filter."""
    from PIL import Image

    height, width = images.shape[1:3]
    small = max(1, int(share * width)), max(1, int(share * height))

    def changed(picture: Image.Image) -> Image.Image:
        return picture.resize(small, Image.BOX).resize((width, height), Image.BOX)

    return _by_pillow(images, changed)


def jpeg(images: np.ndarray, quality: float) -> np.ndarray:
    """Stores as JPEG of a quality of Pillow's, and reads that."""
    from PIL import Image

    def changed(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=int(quality))
        return Image.open(file)

    return _by_pillow(images, changed)


def _by_pillow(images: np.ndarray, changed: Callable[..., object]) -> np.ndarray:
    """Changes images as pictures of Pillow: of three channels in color, of any other number channel by channel."""
    from PIL import Image

    pixels = (images * 255).round().astype(np.uint8)
    if pixels.shape[-1] == 3:
        results = [np.asarray(changed(Image.fromarray(image))) for image in pixels]
    else:
        results = [
            np.stack([np.asarray(changed(Image.fromarray(channel))) for channel in np.moveaxis(image, -1, 0)], -1)
            for image in pixels
        ]
    return np.stack(results).astype(np.float32) / np.float32(255)


_WITHOUT_CHANCE: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "blur": blur,
    "contrast": contrast,
    "brightness": brightness,
    "pixelate": pixelate,
    "jpeg": jpeg,
}
