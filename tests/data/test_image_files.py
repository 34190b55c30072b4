from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffstride_hybrid.data.image_files import find_images, read_image
from diffstride_hybrid.data.images import fit_to_size

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
