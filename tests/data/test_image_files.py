import math
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, PngImagePlugin

from diffstride_hybrid.data.image_files import find_images, read_header, read_image
from diffstride_hybrid.data.pixels import fit_to_size

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 20, 3), "uint8")


def saved(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def test_an_image_of_the_right_size_is_read_as_it_is(tmp_path: Path):
    np.testing.assert_array_equal(read_image(saved(tmp_path / "a.png", PIXELS), (12, 20, 3)), PIXELS)
    gray = PIXELS[..., 0]
    np.testing.assert_array_equal(read_image(saved(tmp_path / "b.png", gray), (12, 20, 1))[..., 0], gray)


def test_an_image_of_another_size_is_resized_as_those_of_data_sets_are(tmp_path: Path):
    image = read_image(saved(tmp_path / "a.png", PIXELS), (8, 8, 3))
    np.testing.assert_array_equal(image, fit_to_size(PIXELS, (8, 8)))
    assert image.dtype == np.uint8
    # A half as high as wide: black above and below.
    assert not image[:1].any()
    assert not image[-1:].any()
    assert image[2:6].any()


@pytest.mark.parametrize(
    ("height", "width", "size", "black"),
    [
        (256, 256, 224, 0),
        (512, 512, 224, 0),
        (32, 32, 28, 0),
        (128, 128, 112, 0),
        (200, 100, 64, 32),
        (100, 300, 96, 64),
        (1000, 30, 32, 31),
        (2, 1000, 16, 15),
    ],
)
def test_an_image_fills_the_size_as_far_as_its_sides_allow(height: int, width: int, size: int, black: int):
    """In float32, 256 over 256 / 224 is a little less than 224."""
    white = np.full((height, width, 1), 255, np.uint8)
    for fitted in (fit_to_size(white, (size, size)), tf.function(fit_to_size)(white, (size, size))):
        assert fitted.shape == (size, size, 1)
        shown = fitted.numpy()[..., 0] == 255
        sides = sorted([int(shown.any(1).sum()), int(shown.any(0).sum())])
        assert sides == [size - black, size]
        assert shown.sum() == math.prod(sides)


def test_where_it_divides_rightly_resizing_is_that_of_tensorflow():
    for height, width, size in ((12, 20, 8), (20, 12, 8), (12, 20, 50), (64, 64, 32)):
        image = RNG.integers(0, 256, (height, width, 3), "uint8")
        expected = tf.round(tf.clip_by_value(tf.image.resize_with_pad(image, size, size, antialias=True), 0, 255))
        np.testing.assert_array_equal(fit_to_size(image, (size, size)), tf.cast(expected, tf.uint8))


def test_gray_becomes_color_and_color_gray(tmp_path: Path):
    gray = saved(tmp_path / "gray.png", PIXELS[..., 0])
    color = read_image(gray, (12, 20, 3))
    np.testing.assert_array_equal(color, np.repeat(PIXELS[..., :1], 3, -1))
    luma = PIXELS @ [0.299, 0.587, 0.114]
    actual = read_image(saved(tmp_path / "color.png", PIXELS), (12, 20, 1))
    np.testing.assert_allclose(actual[..., 0], luma, atol=1)


def test_sixteen_bits_become_eight(tmp_path: Path):
    path = saved(tmp_path / "deep.png", PIXELS[..., 0].astype("uint16") * 257)
    np.testing.assert_array_equal(read_image(path, (12, 20, 1))[..., 0], PIXELS[..., 0])


def test_a_photo_is_turned_as_its_camera_says(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was held upright: turn by 90 degrees clockwise.
    path = saved(tmp_path / "photo.png", PIXELS, exif=exif)
    np.testing.assert_array_equal(read_image(path, (20, 12, 3)), np.rot90(PIXELS, -1))


def test_what_is_not_an_image_is_named(tmp_path: Path):
    path = tmp_path / "text.png"
    path.write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png cannot be read as an image: cannot identify"):
        read_image(path, (8, 8, 1))
    with pytest.raises(ValueError, match="one channel or three, and the network takes 4"):
        read_image(path, (8, 8, 4))


def test_a_folder_stands_for_its_images(tmp_path: Path):
    (tmp_path / "folder.png").mkdir()
    for name in ("b.PNG", "a.jpeg", "c.txt"):
        (tmp_path / name).touch()
    names = [tmp_path / "c.txt", tmp_path]
    assert [path.name for path in find_images(names)] == ["c.txt", "a.jpeg", "b.PNG"]


def test_transparent_pixels_show_white(tmp_path: Path):
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[..., 3] = np.arange(64).reshape(8, 8) * 4
    path = saved(tmp_path / "ink.png", ink)
    expected = 255 - ink[..., 3].astype(int)
    np.testing.assert_allclose(read_image(path, (8, 8, 1))[..., 0], expected, atol=1)
    np.testing.assert_allclose(read_image(path, (8, 8, 3)), expected[..., None].repeat(3, -1), atol=1)


def test_transparency_of_every_kind_shows_white(tmp_path: Path):
    gray = Image.new("L", (4, 4), 10)
    half = Image.new("L", (4, 4), 0)
    half.paste(255, (0, 0, 2, 4))  # The left half shows.
    palette = Image.new("RGBA", (4, 4), (10, 10, 10, 255))
    palette.putalpha(half)
    images = {
        "la.png": Image.merge("LA", (gray, half)),
        "rgba.webp": Image.merge("RGBA", (gray, gray, gray, half)),
        "rgba.tif": Image.merge("RGBA", (gray, gray, gray, half)),
        "palette.gif": palette.convert("P", palette=Image.Palette.ADAPTIVE, colors=4),
    }
    for name, image in images.items():
        image.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    palette.save(tmp_path / "palette.gif")
    keyed = Image.new("L", (4, 4), 10)
    keyed.paste(77, (2, 0, 4, 4))
    keyed.save(tmp_path / "keyed.png", transparency=77)
    for name in [*images, "keyed.png"]:
        pixels = read_image(tmp_path / name, (4, 4, 1))[..., 0]
        np.testing.assert_array_equal(pixels, [[10, 10, 255, 255]] * 4, err_msg=name)


@pytest.mark.parametrize(("bits", "keyed"), [(2, 1), (4, 8), (4, 15)])
def test_transparency_of_few_bits_shows_white(tmp_path: Path, bits: int, keyed: int):
    """A gray PNG of one row, one pixel of each value; one of the values is transparent."""
    values = 2**bits
    row = int("".join(f"{value:0{bits}b}" for value in range(values)), 2).to_bytes(values * bits // 8, "big")
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", values, 1, bits, 0, 0, 0, 0),
        b"tRNS": struct.pack(">H", keyed),
        b"IDAT": zlib.compress(b"\0" + row),
        b"IEND": b"",
    }
    whole = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    ]
    (tmp_path / "keyed.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(whole))
    expected = np.arange(values) * 255 // (values - 1)
    expected[keyed] = 255
    np.testing.assert_array_equal(read_image(tmp_path / "keyed.png", (1, values, 1)).ravel(), expected)


def test_the_colors_of_a_palette_are_kept(tmp_path: Path):
    image = Image.fromarray(PIXELS).convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
    image.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png", (12, 20, 3)), np.asarray(image.convert("RGB")))
    np.testing.assert_allclose(
        read_image(tmp_path / "palette.png", (12, 20, 1))[..., 0],
        np.asarray(image.convert("RGB")) @ [0.299, 0.587, 0.114],
        atol=1,
    )


def test_black_and_white_become_0_and_255(tmp_path: Path):
    bits = PIXELS[..., 0] > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bits.png", (12, 20, 1))[..., 0], bits * 255)


@pytest.mark.parametrize("name", ["print.jpg", "print.tif"])
def test_colors_for_print_are_converted(tmp_path: Path, name: str):
    cyan, none = np.full((8, 8), 200, np.uint8), np.zeros((8, 8), np.uint8)
    Image.merge("CMYK", [Image.fromarray(band) for band in (cyan, none, none, none)]).save(tmp_path / name)
    np.testing.assert_allclose(read_image(tmp_path / name, (8, 8, 3)), [[[55, 255, 255]] * 8] * 8, atol=3)


@pytest.mark.parametrize("name", ["deep.tif", "deep.png", "deep.pgm"])
def test_sixteen_bits_of_every_format_become_eight(tmp_path: Path, name: str):
    values = np.array([[0, 255, 20_000, 40_000, 65_535]], np.uint16).repeat(2, 0)
    path = saved(tmp_path / name, values)
    np.testing.assert_array_equal(read_image(path, (2, 5, 1))[..., 0], [[0, 1, 78, 156, 255]] * 2)
    assert read_image(path, (2, 5, 3)).shape == (2, 5, 3)


def test_sixteen_bits_of_color_keep_the_upper_eight(tmp_path: Path):
    values = RNG.integers(0, 65_536, (6, 6, 3), np.uint16)
    encoded = tf.io.encode_png(values)
    (tmp_path / "deep.png").write_bytes(encoded.numpy())
    np.testing.assert_allclose(read_image(tmp_path / "deep.png", (6, 6, 3)), values / 257, atol=1)


def test_numbers_from_0_to_1_become_bytes(tmp_path: Path):
    path = saved(tmp_path / "float.tif", np.array([[0, 0.25, 0.5, 1]], np.float32))
    np.testing.assert_array_equal(read_image(path, (1, 4, 1))[..., 0], [[0, 64, 128, 255]])


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[0, 300.0]], np.float32), "not all from 0 to 1"),
        (np.array([[0, np.nan]], np.float32), "not all from 0 to 1"),
        (np.array([[0, -0.1]], np.float32), "not all from 0 to 1"),
        (np.array([[0, 70_000]], np.int32), "32 bits"),
        (np.array([[0, 100]], np.int32), "32 bits"),
    ],
)
def test_numbers_without_a_known_white_are_refused(tmp_path: Path, values: np.ndarray, reason: str):
    path = saved(tmp_path / "numbers.tif", values)
    with pytest.raises(ValueError, match=rf"numbers\.tif cannot be read as an image: .*{reason}"):
        read_image(path, (1, 2, 1))


def test_of_several_frames_the_first_is_read(tmp_path: Path):
    frames = [Image.fromarray(PIXELS[..., i]) for i in range(3)]
    for name in ("frames.gif", "frames.tif", "frames.webp"):
        options = {"lossless": True} if name.endswith("webp") else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(read_image(tmp_path / name, (12, 20, 1))[..., 0], PIXELS[..., 0], err_msg=name)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_files_without_content_are_named(tmp_path: Path, content: bytes):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image"):
        read_image(tmp_path / "a.png", (8, 8, 1))


def test_notes_that_are_cut_off_are_named(tmp_path: Path):
    """Pillow raises `struct.error` if the file says how dense its pixels are."""
    path = saved(tmp_path / "cut.jpg", PIXELS, dpi=(72, 72), exif=b"Exif\0\0II*\0")
    for read in (read_header, lambda path: read_image(path, (12, 20, 3))):
        with pytest.raises(ValueError, match=r"cut\.jpg cannot be read as an image: unpack requires"):
            read(path)


def test_an_orientation_that_is_no_number_is_none(tmp_path: Path):
    entry = struct.pack("<HHI4s", 0x0112, 2, 2, b"6\0")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    path = saved(tmp_path / "text.jpg", PIXELS, exif=exif)
    assert read_header(path).size == read_image(path, (12, 20, 3)).shape[:2] == (12, 20)


XMP = """<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>"""


def test_a_header_and_its_image_are_turned_alike(tmp_path: Path):
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt("XML:com.adobe.xmp", XMP)
    path = saved(tmp_path / "xmp.png", PIXELS, pnginfo=notes)
    np.testing.assert_array_equal(read_image(path, (20, 12, 3)), np.rot90(PIXELS, -1))
    assert read_header(path).size == (20, 12)


def test_an_image_of_another_size_than_its_header_says_is_named(tmp_path: Path):
    """Its notes may stand at the end of the file, which is not read for the header."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "late.png", PIXELS, exif=exif)
    data = path.read_bytes()
    at = data.index(b"eXIf") - 4
    length = 12 + int.from_bytes(data[at : at + 4], "big")
    note, rest = data[at : at + length], data[:at] + data[at + length :]
    end = rest.index(b"IEND") - 4
    path.write_bytes(rest[:end] + note + rest[end:])
    assert read_header(path).size == (12, 20)
    with pytest.raises(ValueError, match=r"late\.png has 20x12 pixels, .* the others have 12x20: set data\.load_d"):
        read_image(path, (12, 20, 3), resizes=False)


def write_tiff(path: Path, pixels: bytes, bits: int, photometric: int, numbers: int = 1) -> Path:
    """A gray TIFF of 2x2 pixels, as Pillow cannot write it. Its `numbers` are 1: whole, 2: with a sign, 3: floating."""
    tags = {256: 2, 257: 2, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 2, 279: len(pixels), 339: numbers}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels)
    return path


def test_twelve_bits_become_eight(tmp_path: Path):
    path = write_tiff(tmp_path / "12.tif", bytes.fromhex("000fff 800400".replace(" ", "")), 12, 1)
    assert read_image(path, (2, 2, 1)).ravel().tolist() == [0, 255, 128, 64]


def test_white_may_be_zero(tmp_path: Path):
    path = write_tiff(tmp_path / "16.tif", struct.pack("<4H", 0, 65_535, 257, 25_700), 16, 0)
    assert read_image(path, (2, 2, 1)).ravel().tolist() == [255, 0, 254, 155]
    path = write_tiff(tmp_path / "float.tif", struct.pack("<4f", 0, 1, 0.2, 0.6), 32, 0, numbers=3)
    assert read_image(path, (2, 2, 1)).ravel().tolist() == [255, 0, 204, 102]


@pytest.mark.parametrize(("bits", "code"), [(8, "b"), (16, "h"), (32, "i")])
def test_numbers_with_a_sign_are_refused(tmp_path: Path, bits: int, code: str):
    path = write_tiff(tmp_path / "signed.tif", struct.pack(f"<4{code}", -1, 0, 1, 100), bits, 1, numbers=2)
    with pytest.raises(ValueError, match=r"signed\.tif cannot be read as an image: it has 32 bits, or a sign"):
        read_image(path, (2, 2, 1))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_header_of_every_format_says_the_upright_size(suffix: str, orientation: int, tmp_path: Path):
    path, exif = tmp_path / f"image.{suffix}", Image.Exif()
    exif[0x0112] = orientation
    ramps = np.add.outer(np.arange(12) * 8, np.arange(20) * 4).astype("uint8")
    upright = np.rot90(ramps, {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    Image.fromarray(ramps).save(path, exif=exif)
    assert read_header(path).size == upright.shape
    found = read_image(path, (*upright.shape, 1), resizes=False)[..., 0]
    np.testing.assert_allclose(found.astype(int), upright.astype(int), atol=4 if suffix == "jpg" else 0)
