"""The benchmark: its cases, its worker processes and its tables."""

import contextlib
import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.paths import ROOT

from diffstride_hybrid import DiffStride
from experiments.benchmark import cases, driver, ours, worker
from experiments.benchmark import report as benchmark_report

CASE = cases.Case("layer", "stem", "released", "float32", 8, 32, 64, 1.0)


def row(case: cases.Case, milliseconds: float, megabytes: float | None, **more: Any) -> dict[str, Any]:
    fields = {**vars(case), "macs": 11_000_000, "milliseconds": milliseconds, "least": milliseconds - 1.0}
    fields |= {"most": milliseconds + 2.0, "megabytes": megabytes, "times_faster": None, "memory_ratio": None}
    return {**fields, **more}


def test_each_place_has_one_counterpart_in_the_release():
    listed = cases.cases(["layer", "small", "sizes", "step"], batch=64)
    assert len(set(listed)) == len(listed)
    counterparts = [other for case in listed if (other := cases.release_case(case))]
    assert {case.place for case in counterparts} == {case.place for case in listed if case.part != "machine"}
    assert len(counterparts) == len({case.place for case in counterparts})
    assert {case.dtype for case in counterparts} == {"float32"}


def test_only_the_parts_that_were_asked_for_are_measured():
    assert {case.part for case in cases.cases(["step"], batch=2)} == {"machine", "step"}


def test_the_table_compares_with_the_release():
    rows = [
        row(CASE, 20.0, 60.0, times_faster=4.0, memory_ratio=0.5),
        row(cases.Case(**{**vars(CASE), "variant": "release"}), 80.0, 120.0, macs=None, times_faster=1.0),
        row(cases.Case(**{**vars(CASE), "place": "block 2"}), 30.0, 60.0, times_faster=9.0, memory_ratio=0.125),
    ]
    lines = benchmark_report.tables(rows).splitlines()
    assert lines[2] == "| stem | released | 8 | 11.0 M | 20 ms, 4.00x, 0.50 of the memory |"
    assert lines[3] == "| stem | release | 8 |  | 80 ms, 120 MB |"
    assert lines[-1] == "| geometric mean | released | 8 |  | 6.00x, 0.25 of the memory |"


def test_without_a_release_its_columns_are_absent():
    table = benchmark_report.tables([row(CASE, 20.0, None)])
    assert table.splitlines()[2:] == ["| stem | released | 8 | 11.0 M | 20 ms |"]
    assert benchmark_report.line(row(CASE, 20.0, None)).endswith("20.00 ms (19.00 to 22.00)")


def test_the_table_of_engines_compares_auto_with_the_better_one():
    def of(place: str, variant: str, milliseconds: float) -> dict[str, Any]:
        return row(cases.Case("engines", place, variant, "float32", 2, 100, 4, 2.0), milliseconds, None)

    rows = [of("map", "matmul", 3.0), of("map", "fft", 5.0), of("map", "auto", 3.5), of("map", "auto, size unknown", 4)]
    rows += [of("signal", "fft", 5.0), of("signal", "auto", 6.0), of("signal", "auto, size unknown", 7.0)]
    lines = benchmark_report.tables(rows).splitlines()
    assert lines[2] == "| map | 2 | 2.00 ms | 4.00 ms | 1.25 | 1.50 |"
    assert lines[3] == "| signal | 2 |  | 4.00 ms | 1.25 | 1.50 |"
    assert benchmark_report.draw(rows) is None


def test_rows_and_figure_are_written(tmp_path: Path):
    rows = [row(CASE, 20.0, 60.0), row(cases.Case(**{**vars(CASE), "part": "step", "place": "net"}), 40.0, None)]
    benchmark_report.write(tmp_path / "rows.csv", rows)
    with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
        assert [read["milliseconds"] for read in csv.DictReader(file)] == ["20.0", "40.0"]
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")
    for panel, milliseconds in zip(benchmark_report.draw(rows).axes, (20.0, 40.0)):
        (bar,) = panel.patches
        assert milliseconds in (bar.get_width(), bar.get_height())


def test_the_figure_has_a_panel_for_each_place_and_no_other():
    places = [row(cases.Case(**{**vars(CASE), "place": f"place {i}"}), 20.0, None) for i in range(7)]
    panels = benchmark_report.draw(places).axes
    assert [panel.get_title() for panel in panels if panel.get_visible()] == [f"place {i}, batch 8" for i in range(7)]


def test_a_part_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"--parts must name some of layer, small, sizes, engines, step, got layers\."):
        cases.cases(["layers", "step"], batch=1)


# --- Workers ---------------------------------------------------------------------------------------------------------


def test_a_worker_answers_each_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    ran: list[cases.Case] = []
    requests = [{"do": do, "case": vars(CASE)} for do in ("build", "run", "memory")]
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{json.dumps(request)}\n" for request in requests)))
    worker.work(lambda case: worker.Built(lambda: ran.append(case), macs=7))
    built, timed, memory = map(json.loads, capsys.readouterr().out.splitlines())
    assert built == {"macs": 7}
    assert timed["seconds"] >= 0
    assert list(memory) == ["megabytes"]
    assert set(ran) == {CASE}


@pytest.mark.parametrize("case", [case for case in cases.cases(["layer"], batch=1) if case.place == "block 4"])
def test_each_layer_can_be_built(case: cases.Case):
    small = cases.Case(**{**vars(case), "height": 8, "channels": 2})
    built = ours.build(small)
    built.run()
    assert (built.macs is None) == (case.variant == "fft")


@pytest.mark.parametrize("variant", cases.ENGINE_VARIANTS)
@pytest.mark.parametrize("place", ["map of 8x8x4", "signal of 100x4"])
def test_each_engine_can_be_built(place: str, variant: str):
    (case,) = [case for case in cases.cases(["engines"], 1) if (case.place, case.variant) == (place, variant)]
    ours.build(case).run()


def test_no_signal_is_multiplied_by_a_matrix_that_does_not_fit():
    signals = [case for case in cases.cases(["engines"], 1) if case.part == "engines" and not cases.is_map(case.place)]
    assert max(case.height for case in signals) == 200_000
    assert max(case.height for case in signals if case.variant == "matmul") == cases.LONGEST_PRODUCT


@pytest.mark.parametrize("size_is_known", [True, False])
def test_a_timed_layer_runs_forward_and_backward_each_time(size_is_known: bool):
    passes = {name: tf.Variable(0) for name in ("forward", "backward")}

    @tf.custom_gradient
    def counted(images: tf.Tensor) -> Any:
        passes["forward"].assign_add(1)

        def backward(upstream: tf.Tensor, variables: Any = None) -> Any:
            passes["backward"].assign_add(1)
            return upstream, [None] * len(variables or [])

        return tf.identity(images), backward

    run = worker.forward_and_backward(counted, CASE, [], size_is_known=size_is_known)
    before = int(passes["forward"])
    run(3)
    assert (int(passes["forward"]) - before, int(passes["backward"])) == (3, 3)


def test_a_timed_training_step_trains():
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(10)])
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)
    before = [weight.numpy() for weight in model.weights]
    case = cases.Case("step", "net", "hybrid", "float32", 10, 4, 2, 2.0)
    worker.training_step(model, optimizer, keras.losses.CategoricalCrossentropy(from_logits=True), case)(2)
    assert all(np.abs(weight - old).max() > 1e-4 for weight, old in zip(model.weights, before))
    assert int(optimizer.iterations) == 2


def test_the_memory_is_that_of_the_median_run():
    sizes = iter([5_000_000, *[1_000_000] * (worker.MEMORY_RUNS - 1)])
    measured = worker.peak_megabytes(lambda: tf.random.uniform([next(sizes)]))
    assert 3.9 < measured < 10.0


@pytest.mark.parametrize("variant", cases.STEP_VARIANTS)
def test_each_training_step_can_be_built(variant: str):
    built = ours.build(cases.Case("step", "ResNet-18", variant, "float32", 1, 32, 2, 2.0))
    assert built.macs > 0


def test_the_slice_cuts_to_the_size_that_diffstride_starts_with():
    for (size, stride), cut in ours.DIFFSTRIDE_SIZES.items():
        images = np.zeros([1, size, size, 1], "float32")
        layer = ours.Slice(stride, "channels_last")
        assert layer(images).shape == DiffStride(stride)(images).shape == (1, cut, cut, 1)
        assert layer.compute_output_shape(images.shape) == (1, cut, cut, 1)


def test_the_process_of_the_release_has_neither_keras_3_nor_this_package(tmp_path: Path):
    for stub in ("tf_keras/__init__.py", "diffstride/__init__.py", "diffstride/pooling.py", "diffstride/resnet.py"):
        (tmp_path / stub).parent.mkdir(exist_ok=True)
        (tmp_path / stub).touch()
    code = "import importlib, sys; importlib.import_module(sys.argv[1]); print(*sys.modules)"
    command = [sys.executable, "-c", code, "experiments.benchmark.release"]
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    modules = ended.stdout.split()
    assert "tensorflow" in modules
    assert not {"keras", "diffstride_hybrid"} & set(modules)


def test_a_release_that_does_not_start_is_told_in_one_line(tmp_path: Path):
    (tmp_path / "tf_keras.py").write_text("raise ImportError('none here')")
    with (
        contextlib.closing(driver.Worker("release", {"PYTHONPATH": str(tmp_path)})) as process,
        pytest.raises(RuntimeError, match=r"benchmark.release ended at Case.*needs tf-keras, and --against must be"),
    ):
        process.ask("build", CASE)


@pytest.mark.slow
def test_the_benchmark_measures_every_layer(tmp_path: Path):
    command = [sys.executable, "-m", "experiments.benchmark", "--parts=layer", "--batch=1", "--repeats=1"]
    subprocess.run([*command, f"--output={tmp_path}/rows.csv"], check=True, capture_output=True)
    with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(cases.cases(["layer"], batch=1))
    assert all(float(read["least"]) <= float(read["milliseconds"]) <= float(read["most"]) for read in rows)
    assert all(float(read["megabytes"]) > 0 for read in rows if read["variant"] in ("released", "symmetric"))
