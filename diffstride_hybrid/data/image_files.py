"""Image files: find them, and read them as a network takes them."""

from __future__ import annotations

import contextlib
import os
import pathlib
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from diffstride_hybrid.common.errors import one_line
from diffstride_hybrid.data.pixels import fit_to_size, to_8_bits

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
"""How the names of image files end."""

_EXIF_ORIENTATION, _TIFF_WIDTH, _TIFF_HEIGHT = 0x0112, 0x0100, 0x0101

_NOTES = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")
"""The notes of a PNG file that may say how its image is turned."""

_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
"""Two tags of a TIFF file, and a value of the second."""

_SAMPLE_FORMAT, _SIGNED = 339, 2
"""Another tag of a TIFF file, and a value of it."""

_NO_KNOWN_WHITE = "it has 32 bits, or a sign, so which of its numbers is white is not known"

_WHITE_OF_FEW_BITS = {"L;2": 3, "L;4": 15}
"""The value of white in a PNG file, by Pillow's name for its gray pixels of less than 8 bits."""


def find_images(names: Iterable[str | os.PathLike[str]], recursive: bool = False) -> list[pathlib.Path]:
    """Lists the image files that a user names, one by one or by their folder.

    Args:
        names: files of any name, or folders. A folder stands for the files in it whose names end as those of images.
        recursive: whether a folder stands for the images in its folders too.

    Returns:
        Paths of files. The files of a folder are sorted by name.

    Raises:
        FileNotFoundError: a name does not exist, or a folder has no images.
    """
    found: list[pathlib.Path] = []
    for path in map(pathlib.Path, names):
        if not path.exists():
            raise FileNotFoundError(f"There is no {path}: give image files, or folders of them.")
        if path.is_file():
            found.append(path)
            continue
        images, _ = images_in(path, recursive)
        if not images:
            hint = "" if recursive else " Folders in it are searched with --recursive."
            raise FileNotFoundError(
                f"There is no image in {path}: a file's name must end in {', '.join(SUFFIXES)}.{hint}"
            )
        found += images
    return found


def images_in(folder: pathlib.Path, recursive: bool) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Lists the image files of a folder by their names, and the other files.

    Links are followed. Each folder and each image counts once: if the list has an image by its own path, links to it
    are left out.

    Args:
        folder: that exists.
        recursive: whether the folders in it are searched too.

    Returns:
        The files whose names end as those of images, and those whose names do not, both sorted. Files and folders whose
        names begin with '.' are in neither list: systems and editors keep notes of their own in them.

    Raises:
        OSError: a folder cannot be read. The message names it.
    """

    def refuse(error: OSError) -> NoReturn:
        raise OSError(
            f"The folder {error.filename} cannot be read ({error.strerror}): change its permissions, or move it away."
        ) from error

    images: list[pathlib.Path] = []
    others: list[pathlib.Path] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        # Of two links to one folder, the first one counts on every machine.
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        real = os.path.realpath(place)
        if real in seen:  # A link leads back.
            folders.clear()
            continue
        seen.add(real)
        for name in files:
            if not name.startswith("."):
                path = pathlib.Path(place, name)
                (images if path.suffix.lower() in SUFFIXES else others).append(path)
    return _without_doubles(sorted(images)), sorted(others)


def _without_doubles(images: Sequence[pathlib.Path]) -> list[pathlib.Path]:
    """Leaves out links to images that are in the list anyway, by their own path or by a link before."""
    links = {path for path in images if path.is_symlink()}
    if not links:
        return list(images)
    seen = {os.path.realpath(path) for path in images if path not in links}
    kept = []
    for path in images:
        real = os.path.realpath(path)
        if path not in links or real not in seen:
            kept.append(path)
            seen.add(real)
    return kept


class ImageHeader(NamedTuple):
    """What the first bytes of an image file say.

    Attributes:
        size: (height, width) of the upright image, in pixels.
        gray: whether it has no colors.
    """

    size: tuple[int, int]
    gray: bool


def read_header(path: str | os.PathLike[str]) -> ImageHeader:
    """Reads the size of an image file, and whether it is gray, without decoding it.

    Args:
        path: of a file in any format that Pillow reads.

    Returns:
        The header.

    Raises:
        ValueError: the file is not an image.
    """
    with _opened(path) as image:
        width, height = image.size
        if image.format == "TIFF":  # Pillow gives the size of the upright image for this format alone.
            width, height = image.tag_v2[_TIFF_WIDTH], image.tag_v2[_TIFF_HEIGHT]
        # For notes at the end of a PNG file, where they hardly ever are, Pillow would decode the whole image.
        noted = image.format != "PNG" or any(note in image.info for note in _NOTES)
        orientation = image.getexif().get(_EXIF_ORIENTATION) if noted else None
        if isinstance(orientation, int) and orientation >= 5:  # It lies on its side.
            width, height = height, width
        return ImageHeader((height, width), image.mode.startswith(("1", "L", "I", "F")) and image.mode != "LAB")


def read_image(path: str | os.PathLike[str], image_shape: Sequence[int], resizes: bool = True) -> np.ndarray:
    """Reads an image upright, makes it gray or color as needed, and resizes it as images of a data set are resized.

    What has more than 8 bits is scaled to 8: 16 bits, and numbers from 0 to 1. Transparent pixels show white. Colors
    for print (CMYK) are converted without a color profile.

    Args:
        path: of a file in any format that Pillow reads. Of a file with several frames the first frame is read.
        image_shape: (height, width, channels) of the result, with 1 or 3 channels.
        resizes: whether an image of another size is resized.

    Returns:
        uint8 array `[height, width, channels]`.

    Raises:
        ValueError: the file is not an image, it has numbers whose black and white are not known, it has another size
            and `resizes` is False, or `image_shape` has neither 1 nor 3 channels.
    """
    from PIL import ImageOps

    *size, channels = image_shape
    if channels not in (1, 3):
        raise ValueError(f"An image file has one channel or three, and the network takes {channels}.")
    with _opened(path) as image:
        tags = dict(image.tag_v2) if image.format == "TIFF" else None
        if tags is not None:
            image.filename = ""  # Pillow 13 maps files without compression by the size of the turned image: scrambled.
        elif image.format == "PNG":
            _scale_transparency(image)
        pixels = _as_bytes(ImageOps.exif_transpose(image), channels, tags)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if pixels.shape[-1] != channels:
        pixels = np.repeat(pixels, channels, axis=-1)
    if pixels.shape == tuple(image_shape):
        return pixels
    if not resizes:
        height, width, _ = pixels.shape
        raise ValueError(
            f"{os.fspath(path)} has {height}x{width} pixels, which its header does not say, and the others have "
            f"{size[0]}x{size[1]}: set data.load_datasets.image_size, or save it anew."
        )
    return fit_to_size(pixels, tuple(size)).numpy()


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """A context in which Pillow does not warn of oddities in files that it can read.

    Outside of the main thread it does nothing: the filters of warnings belong to the whole process, and threads that
    set and restore them in turn can leave them changed. Threads are started in this context instead.

    Yields:
        Nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A context with an image of Pillow. Whatever fails in it is an error that names the file."""
    from PIL import Image

    try:
        with without_warnings(), Image.open(path) as image:
            yield image
    except Exception as error:  # Pillow's readers raise errors of many kinds, such as struct.error.
        reason = one_line(error).replace(repr(os.fspath(path)), "it").rstrip(".")
        raise ValueError(f"{os.fspath(path)} cannot be read as an image: {reason}.") from error


def _scale_transparency(image: Any) -> None:
    """Scales the gray that stands for transparency to 8 bits, as Pillow scales the pixels alone."""
    white = _WHITE_OF_FEW_BITS.get(image.tile[0][3]) if image.tile else None
    if white and "transparency" in image.info:
        image.info["transparency"] = image.info["transparency"] * 255 // white


def _as_bytes(image: Any, channels: int, tags: Mapping[int, Any] | None) -> np.ndarray:
    """The pixels of an image of Pillow as uint8, `[height, width]` or `[height, width, channels]`.

    `tags` are those of a TIFF file.
    """
    from PIL import Image

    transparent = image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info
    if tags is not None and _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise ValueError(_NO_KNOWN_WHITE)
    if image.mode.startswith(("I", "F")):
        if transparent:
            raise ValueError(f"its mode {image.mode} with transparency is not supported")
        return _scaled(np.asarray(image), image.mode, tags)
    if transparent:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("L" if channels == 1 else "RGB"))


def _scaled(values: np.ndarray, mode: str, tags: Mapping[int, Any] | None) -> np.ndarray:
    """Scales pixels of more than 8 bits to 0..255, if it is known which of their values is white."""
    white_is_zero = tags is not None and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    if mode.startswith("F"):
        if not np.all((values >= 0) & (values <= 1)):  # NaN is refused too.
            raise ValueError("its numbers are not all from 0 to 1, so which of them is white is not known")
        return ((1 - values if white_is_zero else values) * 255).round().astype(np.uint8)
    # Older versions of Pillow open PNG files of 16 bits in mode I, which holds 32 bits.
    if mode == "I" and (tags is not None or values.min() < 0 or values.max() > 65_535):
        raise ValueError(_NO_KNOWN_WHITE)
    values = values.astype(np.int32)
    if tags is not None:
        white = 2 ** tags.get(_BITS, (16,))[0] - 1
        values = (values * (65_535 / white)).round().astype(np.int32)
        if white_is_zero:
            values = 65_535 - values
    return to_8_bits(values).numpy()
