"""The segmentation experiment: its images, its networks, its scores and its command."""

import math
import shutil
from pathlib import Path
from typing import Any

import keras
import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf
from absl import flags, logging
from absl.testing import flagsaver
from PIL import Image
from support.command_flags import defined_flags

from diffstride_hybrid import command_line
from diffstride_hybrid.common.files import read_rows
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.model_tools.macs import macs
from experiments.segmentation import __main__, camvid, drawing, network, scores
from experiments.segmentation import report as segmentation_report
from experiments.segmentation.camvid import CLASSES, MOST_SHIFT, VOID

SIZE = (16, 24)
IMAGES = {"train": 9, "test": 4}
WIDTHS = (2, 3, 4, 5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like CamVid, with random images twice as large as `SIZE` and random labels, void among them."""
    random = np.random.default_rng(1)
    folder = tmp_path_factory.mktemp("made") / "CamVid"
    for split, count in IMAGES.items():
        for name in (split, f"{split}annot"):
            (folder / name).mkdir(parents=True)
        for i in range(count):
            shape = tuple(2 * length for length in SIZE)
            Image.fromarray(random.integers(0, 256, (*shape, 3), np.uint8)).save(folder / split / f"{i}.png")
            labels = random.integers(0, VOID + 1, shape, np.uint8)
            Image.fromarray(labels).save(folder / f"{split}annot" / f"{i}.png")
    return folder


@pytest.fixture
def source(made: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be spoiled."""
    return Path(shutil.copytree(made, tmp_path / "CamVid"))


@pytest.fixture(scope="module")
def data(made: Path) -> camvid.CamVid:
    return camvid.load(made, SIZE)


# --- Images ----------------------------------------------------------------------------------------------------------
def test_images_are_the_means_of_areas_and_labels_stay_labels(made: Path, data: camvid.CamVid):
    for split, found in (("train", data.train), ("test", data.test)):
        assert found.images.shape == (IMAGES[split], *SIZE, 3)
        assert found.labels.shape == (IMAGES[split], *SIZE)
        for i in range(IMAGES[split]):
            image, labels = (np.asarray(Image.open(made / name / f"{i}.png")) for name in (split, f"{split}annot"))
            means = image.reshape(SIZE[0], 2, SIZE[1], 2, 3).mean((1, 3))
            np.testing.assert_allclose(found.images[i], means, atol=1.01)  # Pillow rounds after each axis.
            of_area = labels.reshape(SIZE[0], 2, SIZE[1], 2)
            assert (of_area == found.labels[i][:, None, :, None]).any((1, 3)).all()
    assert set(np.unique(data.train.labels)) == set(range(VOID + 1))


def test_the_larger_images_are_the_test_images_again(data: camvid.CamVid):
    assert data.larger.shape == (IMAGES["test"], *(length + MOST_SHIFT for length in SIZE), 3)
    assert data.larger.dtype == np.uint8
    np.testing.assert_allclose(data.larger.mean((1, 2)), data.test.images.mean((1, 2)), atol=2)


def test_images_and_labels_may_have_palettes(made: Path, tmp_path: Path):
    labels = np.asarray(Image.open(made / "trainannot" / "0.png"))
    colored = Image.fromarray(labels)
    colored.putpalette([value for i in range(256) for value in (i, 0, 255 - i)])
    colored.save(tmp_path / "colored.png")
    np.testing.assert_array_equal(camvid.read_labels(tmp_path / "colored.png", (32, 48)), labels)
    assert camvid.read_image(tmp_path / "colored.png", (32, 48)).shape == (32, 48, 3)


# --- Scores ----------------------------------------------------------------------------------------------------------
def test_ious_are_those_of_sets_of_pixels():
    random = np.random.default_rng(1)
    labels = random.integers(0, VOID + 1, (3, 8, 9), np.uint8)
    predicted = np.where(random.random(labels.shape) < 0.5, labels % VOID, random.integers(0, VOID, labels.shape))
    labels[labels == 4], predicted[predicted == 4] = 5, 5
    ious = scores.ious(scores.confusion(labels, predicted.astype(np.uint8)))
    for i in range(len(CLASSES)):
        true = {tuple(place) for place in np.argwhere(labels == i)}
        found = {tuple(place) for place in np.argwhere((predicted == i) & (labels != VOID))}
        assert ious[i] == pytest.approx(len(true & found) / len(true | found)) if i != 4 else np.isnan(ious[i])


def larger_images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (2, 16 + MOST_SHIFT, 24 + MOST_SHIFT, 3), np.uint8)


def predicting(*layers: keras.layers.Layer) -> scores.Predict:
    model = keras.Sequential([keras.Input((16, 24, 3)), *layers])
    return lambda images: network.predicted(model, images)


def test_what_ignores_the_position_keeps_every_class():
    shares = scores.consistency(predicting(keras.layers.Conv2D(5, 1)), larger_images())
    assert shares == [1.0, 1.0, 1.0]


def test_what_depends_on_the_position_changes_classes():
    pooled = [keras.layers.Conv2D(5, 1), keras.layers.MaxPooling2D(2), keras.layers.UpSampling2D(2)]
    odd, even, _ = scores.consistency(predicting(*pooled), larger_images())
    assert 0.1 < odd < 0.9
    assert even == 1.0  # The crops begin at the same place of a pooling window.


def test_consistency_is_a_share_of_all_pixels_that_both_crops_show():
    def by_column(images: np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.arange(images.shape[2]) % 2, images.shape[:3])

    # Only a vertical shift by an odd number keeps the columns.
    kept = [
        (16 - shift) * 24 / ((16 - shift) * 24 + 16 * (24 - shift) + (16 - shift) * (24 - shift)) for shift in (1, 3)
    ]
    assert scores.consistency(by_column, larger_images()) == pytest.approx([kept[0], 1.0, kept[1]])


# --- Networks --------------------------------------------------------------------------------------------------------
def test_but_for_poolings_and_resizings_the_networks_are_the_same():
    models = []
    for method in network.METHODS:
        keras.utils.set_random_seed(1)
        models.append(network.network(method, SIZE, WIDTHS))
    weights = [[weight for weight in model.trainable_weights if "strides" not in weight.path] for model in models]
    for of_others in weights[1:]:
        for weight, other in zip(weights[0], of_others, strict=True):
            np.testing.assert_array_equal(weight, other)
    assert [len(diffstride_layers(model)) for model in models] == [0, 0, 3, 0]
    for method, model in zip(network.METHODS, models):
        classes = [type(layer).__name__ for layer in model.layers]
        assert classes.count("SpectralResizing") == (3 if method in ("spectral", "diffstride") else 0)
        assert classes.count("SpectralPooling") == (3 if method == "spectral" else 0)


@pytest.mark.parametrize("method", ["max", "spectral", "diffstride"])
def test_a_step_reaches_every_weight_and_every_stride(method: str, data: camvid.CamVid):
    model = network.network(method, SIZE, WIDTHS)
    with tf.GradientTape() as tape:
        logits = model(data.train.images[:2].astype(np.float32), training=True)
        loss = keras.losses.sparse_categorical_crossentropy(
            data.train.labels[:2].astype(np.int32), logits, from_logits=True, ignore_class=VOID
        )
        loss = tf.reduce_mean(loss)
    assert logits.shape == (2, *SIZE, len(CLASSES))
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    for weight, gradient in zip(model.trainable_weights, gradients):
        assert np.all(np.isfinite(gradient)), weight.path
        assert np.any(gradient), weight.path


def test_the_macs_are_those_of_the_convolutions():
    areas = [math.prod(SIZE) // 4**i for i in range(4)]
    down = sum(9 * area * before * after for area, before, after in zip(areas, (3, *WIDTHS), WIDTHS))
    bottom = areas[3] * (9 * WIDTHS[3] ** 2 + WIDTHS[3] * WIDTHS[2])
    up = sum(9 * area * 2 * width * width for area, width in zip(areas, WIDTHS[:3]))
    narrowed = sum(areas[i] * WIDTHS[i] * WIDTHS[i - 1] for i in (1, 2))
    logits = areas[0] * WIDTHS[0] * len(CLASSES)
    cost = macs(network.network("max", SIZE, WIDTHS))
    assert (cost.macs, cost.pooling_macs) == (down + bottom + up + narrowed + logits, 0)
    spectral = macs(network.network("spectral", SIZE, WIDTHS))
    assert spectral.macs == cost.macs
    assert spectral.pooling_macs > 0


def test_widths_are_matched_as_nearly_as_they_can_be(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(network, "WIDTHS", WIDTHS)

    def cost(widths: tuple[int, ...]) -> int:
        return macs(network.network("max", SIZE, widths)).macs

    assert network.matched_widths("max", SIZE, cost((3, 4, 6, 7)) + 10) == (3, 4, 6, 7)
    assert network.matched_widths("max", SIZE, 10**12) == tuple(6 * width for width in WIDTHS)


def test_images_are_mirrored_with_their_labels(data: camvid.CamVid):
    columns = np.arange(SIZE[1], dtype=np.uint8) // 2
    numbered = np.broadcast_to(columns, (9, *SIZE))
    split = camvid.Split(np.repeat(numbered[..., None], 3, -1), numbered)
    seen = set()
    for images, labels, _ in network.batches(split, 1).take(4).as_numpy_iterator():
        assert images.dtype == np.float32
        np.testing.assert_array_equal(images, np.repeat(labels[..., None], 3, -1))
        seen |= {tuple(row) for row in labels[:, 0]}
    assert seen == {tuple(columns), tuple(columns[::-1])}


def test_rare_classes_weigh_more_and_void_nothing(data: camvid.CamVid):
    weights = network.class_weights(np.repeat(np.arange(VOID + 1), [16] * 9 + [4, 64, 1000]))
    np.testing.assert_allclose(weights, [1] * 9 + [2, 0.5, 0])
    weights = network.class_weights(data.train.labels)
    for _, labels, of_labels in network.batches(data.train, 1).take(2).as_numpy_iterator():
        np.testing.assert_array_equal(of_labels, weights[labels])


def test_a_seed_gives_the_same_batches_again_and_each_epoch_another_order(data: camvid.CamVid):
    first, again, other = (
        np.concatenate([labels for _, labels, _ in network.batches(data.train, seed).take(9).as_numpy_iterator()])
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    epochs = np.sort(first.reshape(8, 9, *SIZE), -1)  # A mirrored row has the same numbers.
    known = np.sort(data.train.labels, -1)
    orders = [[int((known == image).all((1, 2)).argmax()) for image in epoch] for epoch in epochs]
    assert all(sorted(order) == list(range(9)) for order in orders)
    assert orders[0] != orders[1]


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`:UserWarning")
@pytest.mark.parametrize("method", ["max", "diffstride"])
def test_a_run_is_told_in_a_row(data: camvid.CamVid, method: str):
    tf.config.run_functions_eagerly(True)  # Tracing takes longer than a step.
    try:
        row, model = network.run(method, 1, data, 1, WIDTHS)
        predicted = network.predicted(model, data.test.images)
    finally:
        tf.config.run_functions_eagerly(False)
    assert (row["method"], row["seed"], row["epochs"], row["steps"], row["widths"]) == (method, 1, 1, 1, "2 3 4 5")
    counted = data.test.labels != VOID
    assert float(row["pixel_accuracy"]) == pytest.approx((predicted == data.test.labels)[counted].mean(), abs=1e-5)
    names, of_classes = zip(*(part.split() for part in row["ious"].split("; ")))
    assert names == CLASSES
    assert float(row["mean_iou"]) == pytest.approx(np.mean([float(iou) for iou in of_classes]), abs=1e-4)
    assert all(0 < float(row[f"consistency_{shift}"]) <= 1 for shift in (1, 2, 3))
    pairs = [[float(stride) for stride in pair.split("x")] for pair in row["strides_at_end"].split()]
    if method == "max":
        assert (pairs, row["sizes_at_end"]) == ([[2.0, 2.0]] * 3, "8x12 4x6 2x3")
    else:
        assert np.all(np.abs(np.array(pairs) - 2) < 0.1) and np.any(np.array(pairs) != 2)
        sizes = [after for path, (_, after) in macs(model).pooling_sizes().items() if "pooling_" in path]
        assert row["sizes_at_end"] == " ".join("{}x{}".format(*size) for size in sizes)


# --- The tables and the picture --------------------------------------------------------------------------------------
ROW = {"macs": 200_000_000, "pooling_macs": 0, "strides_at_end": "2.000x2.000", "sizes_at_end": "48x64"}
ROW |= {"method": "max", "seed": 1, "mean_iou": "0.40000", "pixel_accuracy": "0.8", "parameters": 1000, "epochs": 3}
ROW |= {"consistency_1": "0.96", "consistency_2": "0.96", "consistency_3": "0.9", "training_seconds": "9"}


def test_the_tables_have_means_and_compare_runs_of_the_same_seed():
    learned = {**ROW, "method": "diffstride", "pooling_macs": 50_000_000, "strides_at_end": "2.500x1.750"}
    learned |= {"mean_iou": "0.41000", "consistency_1": "0.98", "sizes_at_end": "51x79"}
    second = {**ROW, "seed": "2", "mean_iou": "0.42000", "sizes_at_end": "50x64"}
    first_table, second_table = segmentation_report.table([ROW, learned, second]).split("\n\n")
    assert first_table.splitlines()[2:] == [
        "| `max` | 41.00 ± 1.41 % | 80.00 ± 0.00 % | 96.00 ± 0.00 % | 96.00 ± 0.00 % | 90.00 ± 0.00 % | 200 M | "
        "2.00x2.00 | 49x64 | 1,000 | 2 |",
        "| `diffstride` | 41.00 % | 80.00 % | 98.00 % | 96.00 % | 90.00 % | 200 M + 50 M | 2.50x1.75 | 51x79 | 1,000 | "
        "1 |",
    ]
    assert second_table.splitlines()[2:] == ["| `diffstride` and `max` | +1.00 | 0.50 | 1.00 | 1.00 | 1 |"]


def test_the_images_of_the_picture_are_those_with_the_most_classes():
    labels = np.full((5, 2, 4), VOID)
    for place, classes in ((0, 1), (1, 7), (2, 8), (3, 4), (4, 4)):
        labels[place].flat[:classes] = range(classes)
    assert drawing.most_classes(labels, 2) == [2, 3]


def test_the_picture_shows_what_changes_under_a_shift(data: camvid.CamVid, tmp_path: Path):
    predictions = {
        "brightness": lambda images: (images.mean(-1) // 32).astype(np.uint8),
        "column": lambda images: np.broadcast_to(np.arange(images.shape[2]) // 3, images.shape[:3]),
    }
    drawn = drawing.panels(data, predictions)
    assert len(drawn) == 2
    for image in drawn:
        assert image.changed["brightness"].mean() == 0
        assert image.changed["column"].mean() == pytest.approx(2 / 3, abs=0.05)
        (place,) = np.flatnonzero((data.test.images == image.image).all((1, 2, 3)))
        np.testing.assert_array_equal(image.labels, data.test.labels[place])
        np.testing.assert_array_equal(image.predicted["brightness"], image.image.mean(-1) // 32)
    figure = drawing.picture(drawn)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:6] == ["image", "brightness: prediction", "column: prediction", "truth", *titles[4:6]]
    assert titles[4] == "0.0 % change if shifted"
    drawing.write(figure, tmp_path / "new" / "picture.png")
    assert matplotlib.image.imread(tmp_path / "new" / "picture.png").shape[1] == 9 * 160


# --- The command -----------------------------------------------------------------------------------------------------
def run_command(tmp_path: Path, source: Path, **values: Any) -> None:
    verbosity = logging.get_verbosity()
    flags.FLAGS.mark_as_parsed()
    values = {"seeds": 2, "epochs": 3, **values}
    places = {"csv": "rows.csv", "picture": "picture.png", "workdir": "networks"}
    values |= {name: str(tmp_path / place) for name, place in places.items()}
    try:
        with defined_flags(__main__.define_flags, command_line.traceback_flag), flagsaver.flagsaver(**values):
            flags.FLAGS.source = str(source)
            command_line.reporting_errors(__main__.main)(["segmentation"])
    finally:
        logging.set_verbosity(verbosity)


@pytest.fixture
def runs(data: camvid.CamVid, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The runs that a command starts, in place of trainings."""
    started = []

    def run(method: str, seed: int, of: camvid.CamVid, epochs: int, widths: Any) -> Any:
        assert of is data
        started.append((method, seed))
        assert widths == ((9, 10 * seed) if method == "max_wide" else network.WIDTHS)
        row = {**ROW, "method": method, "seed": seed, "epochs": epochs, **network.settings(of.train, epochs, widths)}
        if method == "diffstride":
            row |= {"macs": 10 * seed - 3, "pooling_macs": 3}
        return row, keras.Sequential([keras.Input((*SIZE, 3)), keras.layers.Conv2D(len(CLASSES), 1)])

    def matched(method: str, size: Any, target: int) -> tuple[int, ...]:
        assert (method, tuple(size)) == ("max_wide", SIZE)
        return 9, target

    monkeypatch.setattr(network, "run", run)
    monkeypatch.setattr(network, "matched_widths", matched)
    # Without the tracing of Model.predict.
    monkeypatch.setattr(network, "predicted", lambda model, images: np.argmax(model(images.astype(np.float32)), -1))
    monkeypatch.setattr(drawing, "write", lambda figure, path: path.write_bytes(b""))
    monkeypatch.setattr(camvid, "load", lambda source: data)
    return started


def test_a_command_goes_on_where_it_was_stopped(
    runs: list[tuple[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    every = [(method, seed) for seed in (1, 2) for method in network.METHODS]
    run_command(tmp_path, tmp_path, seeds=1)
    assert runs == every[:4]
    assert (tmp_path / "picture.png").is_file()
    run_command(tmp_path, tmp_path)
    assert runs == every
    rows = read_rows(tmp_path / "rows.csv")
    assert [(row["method"], int(row["seed"])) for row in rows] == every
    assert capsys.readouterr().out.endswith(segmentation_report.table(rows) + "\n")
    run_command(tmp_path, tmp_path, seeds=1, fresh=True)
    assert runs == every + every[:4]
    with pytest.raises(SystemExit):
        run_command(tmp_path, tmp_path, epochs=4)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("rows.csv has runs of 3 epochs, not 4: give --epochs=3 or --fresh.")


def test_without_the_networks_there_is_no_picture(
    runs: list[tuple[str, int]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run_command(tmp_path, tmp_path, seeds=1)
    for name in ("picture.png", "networks/spectral-seed1.keras"):
        (tmp_path / name).unlink()
    run_command(tmp_path, tmp_path, seeds=1)
    assert "No picture: there is no" in (line := capsys.readouterr().out.splitlines()[-1])
    assert "spectral-seed1.keras" in line
    assert not (tmp_path / "picture.png").exists()


def no_folder(source: Path) -> None:
    shutil.rmtree(source)


def no_split(source: Path) -> None:
    shutil.rmtree(source / "test")


def no_labels(source: Path) -> None:
    (source / "trainannot" / "3.png").unlink()


def no_image(source: Path) -> None:
    (source / "train" / "3.png").write_bytes(b"\x89PNG, but no more")


def cut_off(source: Path) -> None:
    content = (source / "testannot" / "1.png").read_bytes()
    (source / "testannot" / "1.png").write_bytes(content[: len(content) // 2])


def of_another_size(source: Path) -> None:
    Image.new("L", (10, 20)).save(source / "testannot" / "2.png")


def in_colors(source: Path) -> None:
    shutil.copy(source / "train" / "0.png", source / "trainannot" / "0.png")


def of_many_classes(source: Path) -> None:
    Image.new("L", (48, 32), 31).save(source / "trainannot" / "0.png")


@pytest.mark.parametrize(
    ("spoil", "culprits"),
    [
        (no_folder, ["There is no folder", "CamVid: --source must be the folder CamVid of https://github.com/"]),
        (no_split, ["There are no PNG files in", "CamVid/test: --source"]),
        (no_labels, ["There is no", "trainannot/3.png, the labels of an image: --source"]),
        (no_image, ["train/3.png is not an image that can be read", "take it anew"]),
        (cut_off, ["testannot/1.png is not an image that can be read", "take it anew"]),
        (of_another_size, ["test/2.png is 32x48 pixels large and its labels are 20x10: take both anew"]),
        (in_colors, ["trainannot/0.png must have one number from 0 to 11 for each pixel", "RGB"]),
        (of_many_classes, ["trainannot/0.png has the label 31", "0 to 10, void 11"]),
    ],
)
def test_a_mistake_ends_in_one_clear_line(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Any,
    culprits: list[str],
):
    monkeypatch.setattr(network, "run", None)  # Nothing is trained.
    spoil(source)
    with pytest.raises(SystemExit):
        run_command(tmp_path, source)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for culprit in culprits:
        assert culprit in line
    assert not (tmp_path / "rows.csv").exists()


@pytest.mark.slow
def test_the_command_trains_measures_and_draws(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(network, "WIDTHS", WIDTHS)
    monkeypatch.setattr(network.run, "__defaults__", (WIDTHS,))
    run_command(tmp_path, source, seeds=1, epochs=1)
    rows = read_rows(tmp_path / "rows.csv")
    assert [row["method"] for row in rows] == list(network.METHODS)
    assert (tmp_path / "picture.png").is_file()
    diffstride, wide = (int(row["macs"]) + int(row["pooling_macs"]) for row in rows[2:])
    assert wide == pytest.approx(diffstride, rel=0.2)
