"""The picture at the top of the README: its numbers are those of the run and of the layer."""

from pathlib import Path
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
from absl import flags
from support.command_flags import defined_flags

from diffstride_hybrid import command_line
from experiments.picture import __main__, contents, drawing

STRIDES = """epoch,pooling/vertical_stride,pooling/horizontal_stride,pooling/height,pooling/width,\
block_2/layer_1/pooling/vertical_stride,block_2/layer_1/pooling/horizontal_stride,macs
0,2.0,2.0,19,19,3.0,2.0,1600000
1,2.1,2.0,19,19,3.5,1.75,1550000
2,2.2,2.0,19,19,4.25,1.5,1500000
"""


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A run of two epochs whose second layer moved further than its first."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "strides.csv").write_text(STRIDES)
    return tmp_path / "run"


def drawn_texts(figure) -> set[str]:
    return {text.get_text() for axes in [figure, *figure.axes] for text in axes.texts}


def test_the_strides_are_those_of_the_run(workdir):
    courses = contents.read_courses(workdir)
    assert [course.layer for course in courses] == ["pooling", "block_2/layer_1/pooling"]
    course = contents.furthest_moved(courses)
    assert course is courses[1]
    np.testing.assert_array_equal(course.epochs, [0, 1, 2])
    np.testing.assert_array_equal(course.before, [3.0, 2.0])
    np.testing.assert_array_equal(course.after, [4.25, 1.5])


def test_a_shrinking_stride_moves_as_far_as_a_growing_one():
    epochs = np.arange(2)
    grown = contents.StrideCourse("grown", epochs, np.array([[2.0, 2.0], [2.5, 2.0]]))
    shrunk = contents.StrideCourse("shrunk", epochs, np.array([[2.0, 2.0], [1.5, 2.0]]))
    assert contents.furthest_moved([grown, shrunk]) is shrunk


@pytest.mark.parametrize("strides", [(1.0, 1.0), (2.0, 2.0), (4.17, 3.98), (2.26, 1.18), (64.0, 2.0)])
def test_the_boxes_are_as_large_as_the_images_that_the_layer_gives(strides):
    pooling = contents.pooled(contents.photograph(), np.array(strides))
    weights = (pooling.row_weights, pooling.column_weights)
    assert pooling.image.shape == (*(np.count_nonzero(w) for w in weights), 3)
    edges = [drawing.kept_edges(w) for w in weights]
    assert pooling.image.shape[:2] == tuple(high - low for low, high in edges)
    for w in weights:
        assert w[contents.SIZE // 2] == w.max() == 1.0  # Frequency 0.


def test_the_smaller_image_keeps_the_colors():
    image = contents.photograph()
    smaller = contents.pooled(image, np.array([4.0, 4.0])).image
    np.testing.assert_allclose(smaller.mean((0, 1)), image.mean((0, 1)), atol=0.01)


def test_the_photograph_is_what_the_picture_says():
    image = contents.photograph()
    assert image.shape == (contents.SIZE, contents.SIZE, 3)
    assert image.dtype == np.float32
    assert 0 <= image.min() < 0.1 and 0.9 < image.max() <= 1


def test_the_spectrum_is_greatest_at_frequency_0():
    decibels = contents.spectrum(contents.photograph())
    assert np.unravel_index(decibels.argmax(), decibels.shape) == (contents.SIZE // 2, contents.SIZE // 2)
    assert decibels.max() == pytest.approx(0, abs=1e-4)


def test_the_picture_says_the_numbers_and_is_written(workdir, tmp_path):
    courses = contents.read_courses(workdir)
    course, image = contents.furthest_moved(courses), contents.photograph()
    poolings = [contents.pooled(image, strides) for strides in (course.before, course.after)]
    figure = drawing.picture(image, courses, course, poolings)
    (before, after) = ("{} × {}".format(*pooling.image.shape[:2]) for pooling in poolings)
    assert {
        "image, 128 × 128",
        f"stride 3.00 × 2.00 → {before}",
        f"stride 4.25 × 1.50 → {after}",
        *("3.00", "2.00", "4.25", "1.50"),
    } <= drawn_texts(figure)

    path = tmp_path / "new" / "picture.png"
    drawing.write(figure, path)
    drawn = matplotlib.image.imread(path)
    assert drawn.shape[:2] == (2 * drawing.HEIGHT, 2 * drawing.WIDTH)
    assert (drawn[..., 3] == 1).all()  # Readable on a dark page.
    assert path.stat().st_size < 250_000


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no strides from before and after training"),
        ("", "no strides from before and after training"),
        ("epoch,macs\n0,1\n1,1\n", "no strides from before and after training"),
        (STRIDES[: STRIDES.index("1,2.1")], "no strides from before and after training"),
        (STRIDES[: STRIDES.index("3.5,")], "is damaged"),
        (STRIDES.replace("4.25", "four"), "is damaged"),
    ],
    ids=["no file", "empty file", "no DiffStride", "no epoch", "cut off", "no number"],
)
def test_a_folder_without_strides_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "strides.csv").write_text(content)
    with pytest.raises(ValueError, match=message) as refused:
        contents.read_courses(tmp_path)
    assert str(tmp_path / "strides.csv") in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_command_draws_and_prints(workdir, tmp_path, monkeypatch, capsys):
    output = tmp_path / "picture.png"
    monkeypatch.setattr(__main__, "FLAGS", SimpleNamespace(workdir=str(workdir), output=str(output)))
    __main__.main(["picture"])
    before, after, path = capsys.readouterr().out.splitlines()
    assert before.startswith("block_2/layer_1/pooling before training: stride 3.00 × 2.00 → ")
    assert after.startswith("block_2/layer_1/pooling after training: stride 4.25 × 1.50 → ")
    assert Path(path).resolve() == output
    assert output.is_file()


def test_the_command_refuses_a_folder_that_does_not_exist(tmp_path, capsys):
    options = [f"--workdir={tmp_path / 'nowhere'}", f"--output={tmp_path / 'picture.png'}"]
    with defined_flags(__main__.define_flags, command_line.traceback_flag), pytest.raises(SystemExit) as ended:
        flags.FLAGS(["picture", *options])
        command_line.reporting_errors(__main__.main)(["picture"])
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert (
        error == f"error: There is no folder {tmp_path / 'nowhere'}: --workdir must be the folder of a finished run.\n"
    )
    assert not (tmp_path / "picture.png").exists()
