import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from tensorflow.core.protobuf import saved_model_pb2

from diffstride_hybrid import DiffStride, Resnet, SpectralPooling, SpectralResizing
from diffstride_hybrid.config import saved_runs
from diffstride_hybrid.data.loading import load_datasets
from diffstride_hybrid.model_tools import exporting
from diffstride_hybrid.model_tools.inspection import diffstride_layers, leaf_layers
from experiments.exports import comparison as export_comparison
from experiments.exports import report as export_report

SHAPE = (16, 20, 1)

EXPORTS = {
    "saved_model": ("saved_model", "float32", 1e-5),
    "litert": ("litert", "float32", 1e-5),
    "litert float16": ("litert", "float16", 1e-2),
    "litert int8": ("litert", "int8", 0.2),
    "onnx": ("onnx", "float32", 1e-5),
}


@pytest.fixture(scope="module")
def model() -> keras.Model:
    """A hybrid whose strides and statistics have moved."""
    keras.utils.set_random_seed(5)
    model = Resnet(
        [4, 6, 8],
        [1, 1, 2],
        10,
        output_activation="softmax",
        id_only=[],
        num_layers=1,
        pooling_cls=DiffStride,
        head_pooling_cls=SpectralPooling,
        head_placement="before_activation",
    )
    model.build((None, *SHAPE))
    for layer in diffstride_layers(model):
        layer.strides.assign(layer.strides.numpy() * [1.3, 1.7])
    for weight in model.non_trainable_weights:
        if "moving" in weight.name:
            weight.assign(weight.numpy() * 0.5 + 0.4)
    return model


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(8, *SHAPE)).astype("float32")


@pytest.mark.parametrize(("format", "quantization", "tolerance"), EXPORTS.values(), ids=EXPORTS.keys())
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_an_export_gives_what_the_model_gives_without_this_package(
    model: keras.Model, images: np.ndarray, tmp_path: Path, format: str, quantization: str, tolerance: float
):
    path = tmp_path / "folder" / "export"
    exporting.export(model, path, format, SHAPE, quantization, images)
    assert [entry.name for entry in path.parent.iterdir()] == ["export"]
    outputs, record = export_comparison.run_alone(Path(sys.executable), path, format, images)
    assert record["loaded"] == {"saved_model": ["keras", "tensorflow"]}.get(format, [])
    assert record["milliseconds"] > 0
    expected = model(images, training=False).numpy()
    np.testing.assert_allclose(outputs, expected, atol=tolerance)

    labels = np.eye(10, dtype="float32")[expected.argmax(-1)]
    comparison = exporting.compare(model, path, format, images, labels)
    assert comparison.images == 8
    assert comparison.keras_accuracy == 1.0
    assert comparison.largest_difference == pytest.approx(np.abs(outputs - expected).max(), abs=1e-5)
    assert comparison.accuracy == np.mean(outputs.argmax(-1) == expected.argmax(-1))
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    assert comparison.size_bytes == sum(file.stat().st_size for file in files)


@pytest.mark.parametrize("format", exporting.FORMATS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_no_export_transforms_or_asks_for_a_size(tmp_path: Path, format: str):
    """At this size the layers transform if they are not frozen; a resizing asks for the size of a map."""
    inputs = keras.Input((72, 72, 1))
    pooled = DiffStride(3.7)(DiffStride(2.4)(inputs))
    outputs = keras.layers.Concatenate()([SpectralResizing()(pooled, like=inputs), inputs])
    network = keras.Model(inputs, outputs)
    exporting.export(network, tmp_path / "export", format, (72, 72, 1))
    pixels = np.random.default_rng(0).normal(size=(2, 72, 72, 1)).astype("float32")
    outputs = exporting.load_export(tmp_path / "export", format)(pixels)
    np.testing.assert_allclose(outputs, network(pixels), atol=1e-4)
    if format == "saved_model":
        saved = saved_model_pb2.SavedModel.FromString((tmp_path / "export" / "saved_model.pb").read_bytes())
        functions = saved.meta_graphs[0].graph_def.library.function
        assert functions
        kinds = {node.op for function in functions for node in function.node_def}
        assert not [kind for kind in kinds if "FFT" in kind or kind in ("If", "StatelessIf", "Shape")]


@pytest.mark.parametrize("format", exporting.FORMATS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_folder_whose_name_tensorflow_takes_for_a_pattern(tmp_path: Path, format: str):
    small = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    path = tmp_path / "strides=[1,2]" / "export"
    exporting.export(small, path, format, (4, 4, 1))
    pixels = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype("float32")
    np.testing.assert_allclose(exporting.load_export(path, format)(pixels), small(pixels), atol=1e-5)
    assert [entry.name for entry in path.parent.iterdir()] == ["export"]


@pytest.mark.parametrize("format", ["litert", "onnx"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_a_model_trained_in_half_precision_computes_in_float32(tmp_path: Path, format: str):
    def network(policy: str) -> keras.Model:
        layers = keras.layers
        return keras.Sequential(
            [
                keras.Input((12, 12, 1)),
                layers.Conv2D(4, 3, dtype=policy),
                layers.BatchNormalization(dtype=policy),
                DiffStride(2.0, dtype=policy),
                keras.Sequential([layers.GlobalAveragePooling2D(dtype=policy), layers.Dense(3, dtype=policy)]),
            ]
        )

    half, single = network("mixed_bfloat16"), network("float32")
    single.set_weights(half.get_weights())
    exporting.export(half, tmp_path / "export", format, (12, 12, 1))
    pixels = np.random.default_rng(0).normal(size=(2, 12, 12, 1)).astype("float32")
    outputs = exporting.load_export(tmp_path / "export", format)(pixels)
    np.testing.assert_allclose(outputs, single(pixels), atol=1e-5)
    assert half(pixels).dtype == "bfloat16"
    with pytest.raises(ValueError, match=r"kernel is float64, and must be float32: choose the format saved_model\.$"):
        exporting.export(network("float64"), tmp_path / "double", format, (12, 12, 1))
    assert not (tmp_path / "double").exists()


def test_the_model_is_as_before_after_an_export(model: keras.Model, images: np.ndarray, tmp_path: Path):
    before = model(images).numpy()
    exporting.export(model, tmp_path / "export", "saved_model", SHAPE)
    assert all("call" not in vars(layer) for layer in leaf_layers(model))
    np.testing.assert_array_equal(model(images), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "h5"}, "format must be one of saved_model, litert, onnx, got 'h5'"),
        ({"format": "litert", "quantization": "int4"}, "quantization must be one of .*, got 'int4'"),
        ({"format": "onnx", "quantization": "float16"}, "quantization float16 needs the format litert, got onnx"),
        ({"format": "litert", "quantization": "int8"}, "int8 needs images to calibrate with"),
    ],
)
def test_wrong_arguments_are_named(model: keras.Model, tmp_path: Path, arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        exporting.export(model, tmp_path / "export", image_shape=SHAPE, **arguments)
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_kept(model: keras.Model, tmp_path: Path):
    (tmp_path / "export").write_text("mine")
    with pytest.raises(FileExistsError, match="choose another name"):
        exporting.export(model, tmp_path / "export", "litert", SHAPE)
    assert (tmp_path / "export").read_text() == "mine"


def test_the_table_of_exports_has_a_line_for_each_format():
    row = {"format": "onnx", "precision": "float32", "runtime": "onnxruntime 1", "accuracy": "0.9", "size_bytes": "2e6"}
    rows = [{**row, "milliseconds": "1.25", "largest_difference": difference} for difference in ("", "3.1e-06")]
    assert export_report.table(rows).splitlines()[2:] == [
        "| `onnx` | float32 | onnxruntime 1 |  | 90.0% | 2.00 MB | 1.25 ms |",
        "| `onnx` | float32 | onnxruntime 1 | 3.1e-06 | 90.0% | 2.00 MB | 1.25 ms |",
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_exports_run_in_fresh_environments(model: keras.Model, tmp_path: Path):
    """Installs each runtime from the package registry."""
    model.save(tmp_path / "final.keras")
    datasets = load_datasets("digits", image_size=16)
    inputs = keras.Input((16, 16, 1))
    square = keras.Model(inputs, keras.layers.ZeroPadding2D((0, 2))(inputs))
    run = saved_runs.Run(keras.Sequential([square, model]), datasets, keras.losses.CategoricalCrossentropy())
    keras_row, *rows = export_comparison.compared(run, tmp_path / "final.keras", 100)
    assert [(row["format"], row["precision"]) for row in rows] == list(export_comparison.EXPORTS)
    assert [row["runtime"].split()[0] for row in rows] == [export_comparison.RUNTIMES[row["format"]] for row in rows]
    for row in rows:
        bound = {"float32": 1e-5, "float16": 1e-2, "int8": 0.2}[row["precision"]]
        assert float(row["largest_difference"]) < bound
        assert row["images"] == keras_row["images"] == 100


def test_a_format_whose_packages_are_missing_is_refused(monkeypatch: pytest.MonkeyPatch):
    exporting.check_installed("saved_model")
    exporting.check_installed("onnx")
    for module in ("ai_edge_litert", "tf2onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"litert needs ai-edge-litert, .* pip install 'diffstride_hybrid\[export\]'"):
        exporting.check_installed("litert")
    with pytest.raises(ImportError, match="onnx needs tf2onnx and onnxruntime, "):
        exporting.check_installed("onnx")
    exporting.check_installed("saved_model")
