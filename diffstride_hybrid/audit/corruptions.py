"""Corrupts images in six ways, after CIFAR-10-C.

Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019,
arXiv 1903.12261. The strengths are those of their severities 1, 3 and 5 for CIFAR-10 (`make_cifar_c.py` in the
repository hendrycks/robustness). The files of CIFAR-10-C are not used, and the noise is not theirs.

Images are float32 `[number, height, width, channels]` with pixels from 0 to 1 in all functions. The functions for one
kind return pixels that may lie outside that range.
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
"""The strength of each kind of corruption at each severity. The function of the same name says its unit."""

_BLUR_SIZE = 32
"""The size of images, in pixels, for which the widths of the blur are meant."""


def corruption(kind: str, severity: int, seed: int) -> Callable[[np.ndarray], np.ndarray]:
    """Makes a function that corrupts images, and rounds them to 8 bits as image files are.

    The noise of an image depends on the images that the function has corrupted before, but not on their division into
    batches.

    Args:
        kind: a key of `STRENGTHS`.
        severity: of `SEVERITIES`.
        seed: of the noise.

    Returns:
        A function of images that returns images, with pixels from 0 to 1. It raises ImportError if Pillow or SciPy is
        not installed.

    Example:
        >>> gray = np.full((1, 2, 2, 1), 0.5, "float32")
        >>> (255 * corruption("brightness", 1, seed=0)(gray)).ravel().round()
        array([140., 140., 140., 140.], dtype=float32)
    """
    level = SEVERITIES.index(severity)
    strength, random = STRENGTHS[kind][level], np.random.default_rng([seed, level])

    def corrupted(images: np.ndarray) -> np.ndarray:
        changed = noise(images, strength, random) if kind == "noise" else _WITHOUT_CHANCE[kind](images, strength)
        return (np.clip(changed, 0, 1) * 255).round().astype(np.float32) / np.float32(255)

    return corrupted


def noise(images: np.ndarray, deviation: float, random: np.random.Generator) -> np.ndarray:
    """Adds Gaussian noise, drawn for each channel of each pixel.

    Args:
        images: as the module says.
        deviation: standard deviation, of pixels from 0 to 1.
        random: draws the noise.
    """
    return images + deviation * random.standard_normal(images.shape, np.float32)


def blur(images: np.ndarray, deviation: float) -> np.ndarray:
    """Convolves with a Gaussian.

    Args:
        images: as the module says.
        deviation: standard deviation in pixels. On images whose shorter side has more than 32 it grows with it.
    """
    from scipy import ndimage

    pixels = deviation * max(1.0, min(images.shape[1:3]) / _BLUR_SIZE)
    return ndimage.gaussian_filter(images, (0, pixels, pixels, 0), mode="nearest")


def contrast(images: np.ndarray, factor: float) -> np.ndarray:
    """Multiplies the difference of each channel to its mean over the image.

    Args:
        images: as the module says.
        factor: below 1.
    """
    means = images.mean((1, 2), keepdims=True)
    return (images - means) * factor + means


def brightness(images: np.ndarray, added: float) -> np.ndarray:
    """Adds to the value of each pixel in the HSV model, its brightest channel, and keeps hue and saturation.

    Args:
        images: as the module says. If they have not three channels, every channel gets the addition.
        added: of pixels from 0 to 1.
    """
    if images.shape[-1] != 3:
        return images + added
    value = images.max(-1, keepdims=True)
    raised = np.minimum(value + added, 1)
    return np.where(value > 0, images * (raised / np.where(value > 0, value, 1)), raised)


def pixelate(images: np.ndarray, share: float) -> np.ndarray:
    """Resizes to a share of height and width and back, with Pillow's box filter.

    Args:
        images: as the module says.
        share: of each side, below 1.
    """
    from PIL import Image

    height, width = images.shape[1:3]
    small = max(1, int(share * width)), max(1, int(share * height))

    def changed(picture: Image.Image) -> Image.Image:
        return picture.resize(small, Image.BOX).resize((width, height), Image.BOX)

    return _by_pillow(images, changed)


def jpeg(images: np.ndarray, quality: float) -> np.ndarray:
    """Stores images as JPEG and reads them again.

    Args:
        images: as the module says.
        quality: of Pillow, from 1 to 95.
    """
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
