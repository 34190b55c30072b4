"""The experiment on exports: its command, its table and the script that runs an export alone."""

import ast
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from diffstride_hybrid.common.files import read_rows
from experiments.exports import __main__, comparison, report, run_export

KERAS = {
    **{"run": "run", "images": 10, "format": "keras", "precision": "float32", "runtime": "tensorflow 2.21.0"},
    **{"largest_difference": "", "accuracy": "0.91250", "size_bytes": 2_000_000, "milliseconds": "5.000"},
}
ONNX = {**KERAS, "format": "onnx", "runtime": "onnxruntime 1.32.0", "largest_difference": "1.500e-06"}


def test_each_export_is_a_row_of_the_table():
    assert report.table([KERAS, ONNX]).splitlines() == [
        "| format | precision | runtime | largest difference | accuracy | size | time for an image |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| `keras` | float32 | tensorflow 2.21.0 |  | 91.2% | 2.00 MB | 5.00 ms |",
        "| `onnx` | float32 | onnxruntime 1.32.0 | 1.5e-06 | 91.2% | 2.00 MB | 5.00 ms |",
    ]


def test_the_command_writes_the_rows_and_prints_their_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked: list[Any] = []
    monkeypatch.setattr(__main__.saved_runs, "load_run", lambda workdir, model: (workdir, model))
    monkeypatch.setattr(comparison, "compared", lambda *given: asked.append(given) or [KERAS, ONNX])
    csv = tmp_path / "new" / "rows.csv"
    monkeypatch.setattr(__main__, "FLAGS", SimpleNamespace(workdir="runs/digits", images=7, csv=str(csv)))
    __main__.main(["exports"])
    workdir = Path("runs/digits")
    assert asked == [((workdir, "final.keras"), workdir / "final.keras", 7)]
    rows = read_rows(csv)
    assert list(rows[0]) == list(report.COLUMNS)
    assert capsys.readouterr().out == report.table(rows) + "\n"


def test_an_environment_that_has_more_than_the_runtime_is_refused():
    comparison._check_isolation("tensorflow", {"installed": False, "loaded": ["keras", "tensorflow"]})
    comparison._check_isolation("onnxruntime", {"installed": False, "loaded": []})
    for record in ({"installed": True, "loaded": []}, {"installed": False, "loaded": ["keras"]}):
        with pytest.raises(RuntimeError, match="The environment of onnxruntime is not isolated: "):
            comparison._check_isolation("onnxruntime", record)


def test_a_package_that_cannot_be_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def create(folder: Path, **options: bool) -> None:
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "python").write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
        (folder / "bin" / "python").chmod(0o755)

    monkeypatch.setattr(comparison.venv, "create", create)
    with pytest.raises(RuntimeError, match="onnxruntime cannot be installed into a fresh environment: no network"):
        comparison.fresh_environment(tmp_path / "onnxruntime", "onnxruntime")


# --- The script ------------------------------------------------------------------------------------------------------


def test_the_script_stands_alone():
    tree = ast.parse(Path(run_export.__file__).read_text(encoding="utf-8"))
    imported = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names == {"numpy"}


def test_the_script_writes_the_outputs_and_prints_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    module = tf.Module()
    module.serve = tf.function(lambda images: 2 * images, [tf.TensorSpec([None, 2, 2, 1])])
    tf.saved_model.save(module, str(tmp_path / "model"))
    images = np.random.default_rng(1).normal(size=(run_export.BATCH + 3, 2, 2, 1)).astype("float32")
    np.save(tmp_path / "images.npy", images)
    run_export.main(*map(str, (tmp_path / "model", "saved_model", tmp_path / "images.npy", tmp_path / "outputs.npy")))
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npy"), 2 * images)
    record = json.loads(capsys.readouterr().out)
    assert record["runtime"] == f"tensorflow {tf.__version__}"
    assert record["milliseconds"] > 0
    assert record["installed"]  # Here this package is at hand; `comparison` refuses such an environment.


def test_litert_takes_as_many_threads_as_there_are_cores(monkeypatch: pytest.MonkeyPatch):
    """Its default is one, and the times stand beside those of runtimes that take every core."""
    asked: list[Any] = []

    class Interpreter:
        def __init__(self, *model: str, **options: Any):
            asked.append((model, options))

        def get_input_details(self) -> list[dict[str, int]]:
            return [{"index": 0}]

        get_output_details = get_input_details

        def allocate_tensors(self) -> None:
            pass

    monkeypatch.setitem(sys.modules, "ai_edge_litert", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", SimpleNamespace(Interpreter=Interpreter))
    monkeypatch.setattr("os.cpu_count", lambda: 7)
    run_export.load("model.tflite", "litert")
    assert asked == [(("model.tflite",), {"num_threads": 7})]
