"""The poolings on every backend, timed: the command, its worker processes and its table."""

import csv
import itertools
import json
import os
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from absl import flags
from support.command_flags import defined_flags
from support.paths import ROOT

from diffstride_hybrid import SpectralPooling
from experiments import devices
from experiments.frameworks import __main__ as command
from experiments.frameworks import report, timing


def test_the_transforms_pool_as_the_layer_does():
    """But for the Nyquist frequency, which only the layer folds: a smooth map has none."""
    rows, columns = np.mgrid[:16, :24]
    maps = np.stack([np.sin(2 * np.pi * rows / 16), np.cos(2 * np.pi * (rows / 8 + columns / 12))], -1)[None]
    maps = maps.astype("float32")
    expected = SpectralPooling(2.0, norm="forward")(maps)
    np.testing.assert_allclose(timing.ByTransform()(maps), expected, atol=1e-6)
    assert timing.ByTransform().compute_output_shape(maps.shape) == expected.shape


def test_each_pooling_is_timed_and_stands_in_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(timing, "MAPS", ((8, 8, 2), (16, 8, 2)))
    monkeypatch.setattr(timing, "BATCH", 2)
    timing.main(repeats=1)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 2 * len(timing.POOLINGS)
    assert all(row["backend"] == "tensorflow" and float(row["milliseconds"]) > 0 for row in rows)
    other = [{**row, "backend": "jax", "milliseconds": "12.345"} for row in rows]
    head, _, *lines = report.table([*other, *rows]).splitlines()
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["map", "backend", *timing.POOLINGS]
    assert [line.split("|")[1:3] for line in lines] == [
        [f" {place} ", f" {name} "] for place in ("8x8x2", "16x8x2") for name in ("TensorFlow", "JAX")
    ]
    assert lines[1].count("12.3 ms") == len(timing.POOLINGS)


# --- With a card that is pretended -----------------------------------------------------------------------------------


@pytest.fixture
def parsed() -> Iterator[Any]:
    with defined_flags(command.define_flags):
        yield lambda *options: flags.FLAGS(["command", *options])


def answers_of(backend: str, **times: float) -> list[dict[str, Any]]:
    """Rows of one map: all poolings take a millisecond but for those in `times`."""
    poolings = dict.fromkeys([*timing.POOLINGS, *timing.ON_GPU], 1.0) | times
    size = {"backend": backend, "map": "8x8x2", "device": "Card 9", "iterations": 20}
    return [{**size, "pooling": pooling, "milliseconds": f"{taken:.3f}"} for pooling, taken in poolings.items()]


def test_a_card_is_named_and_runs_both_data_formats(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(timing, "MAPS_ON_GPU", ((8, 12, 2),))
    monkeypatch.setattr(timing, "BATCH", 2)
    monkeypatch.setattr(devices, "LEAST_SECONDS", 1e9)
    monkeypatch.setattr(devices, "MOST_PASSES", 3)
    monkeypatch.setattr(timing, "card", lambda: ("Card 9", []))
    seconds = itertools.count()
    monkeypatch.setattr(timing, "time", types.SimpleNamespace(perf_counter=lambda: next(seconds)))
    step_of, shapes = timing.step_of, {}

    def recorded(layer: keras.layers.Layer, maps: np.ndarray) -> Any:
        shapes.setdefault(maps.shape, []).append(getattr(layer, "data_format", "channels_last"))
        return step_of(layer, maps)

    monkeypatch.setattr(timing, "step_of", recorded)
    timing.main(1, "gpu")
    assert shapes == {(2, 8, 12, 2): ["channels_last"] * 5, (2, 2, 8, 12): ["channels_first"] * 2}
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["pooling"] for row in rows] == [*timing.POOLINGS, *timing.ON_GPU]
    assert {(row["device"], row["iterations"], row["map"]) for row in rows} == {("Card 9", 3, "8x12x2")}
    assert {row["milliseconds"] for row in rows} == {"333.333"}  # Three passes in a second.


def test_a_pooling_that_fails_on_a_card_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def step_of(layer: keras.layers.Layer, maps: np.ndarray) -> Any:
        if isinstance(layer, timing.ByTransform):
            raise ValueError("out of memory")
        return lambda times: None

    monkeypatch.setattr(timing, "step_of", step_of)
    monkeypatch.setattr(timing, "_iterations", lambda step: 1)
    monkeypatch.setattr(timing, "MAPS_ON_GPU", ((8, 8, 2), (8, 12, 2)))
    monkeypatch.setattr(timing, "card", lambda: ("Card 9", []))
    timing.main(1, "gpu")
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer for answer in answers if "left_out" in answer] == [
        {"left_out": f"transforms at {place}", "error": "out of memory"} for place in ("8x8x2", "8x12x2")
    ]
    others = [name for name in (*timing.POOLINGS, *timing.ON_GPU) if name != "transforms"]
    assert [answer["pooling"] for answer in answers if "pooling" in answer] == 2 * others
    monkeypatch.setattr(timing, "MAPS", ((8, 8, 2),))
    with pytest.raises(ValueError, match="out of memory"):
        timing.main(1)


def test_what_was_left_out_is_told_and_its_place_in_the_table_is_empty(
    parsed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    left_out = {"left_out": "transforms at 8x8x2", "error": "out of memory"}
    timed = [answer for answer in answers_of("jax") if answer["pooling"] != "transforms"]
    of_backend = {"jax": [left_out, *timed], "torch": answers_of("torch"), "tensorflow": [left_out]}
    monkeypatch.setattr(command, "_timed", lambda backend, seconds: (of_backend[backend], None))
    parsed("--device=gpu", f"--csv={tmp_path / 'rows.csv'}")
    command.main(["command"])
    printed = capsys.readouterr().out
    assert "JAX: transforms at 8x8x2 is left out: out of memory.\n" in printed
    assert "TensorFlow: transforms at 8x8x2 is left out: out of memory.\n" in printed
    assert "| 8x8x2 | JAX | 1.000 ms | 1.000 ms |  | 1.000 ms |" in printed
    assert "JAX: transforms take less time than `SpectralPooling` at 0 of 0 maps." in printed
    assert "left_out" not in (tmp_path / "rows.csv").read_text()


def test_the_table_of_a_card_names_it_and_says_what_is_faster():
    rows = answers_of("jax", transforms=0.5, **{"DiffStride, symmetric, channels_first": 0.25})
    assert report.table(rows).startswith("| map, Card 9 | backend | average pooling |")
    assert "| 8x8x2 | JAX | 1.000 ms | 1.000 ms | 0.500 ms |" in report.table(rows)
    assert report.comparisons(rows) == [
        "JAX: transforms take less time than `SpectralPooling` at 1 of 1 maps: 8x8x2.",
        "JAX: `SpectralPooling` is faster in channels_first at 0 of 1 maps.",
        "JAX: `DiffStride, symmetric` is faster in channels_first at 1 of 1 maps: 8x8x2.",
    ]
    del rows[0]["device"]
    assert report.comparisons(rows) == []


def test_backends_without_a_card_are_named_and_the_others_are_kept(
    parsed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    asked = []

    def timed(backend: str, seconds: float | None) -> tuple[list[dict[str, Any]], str | None]:
        asked.append(seconds)
        if backend == "torch":
            return [{"found": ["the CPU"]}], None
        return answers_of(backend), "the time was over" if backend == "jax" else None

    monkeypatch.setattr(command, "_timed", timed)
    parsed("--device=gpu", "--minutes=2", f"--csv={tmp_path / 'rows.csv'}")
    command.main(["command"])
    with open(tmp_path / "rows.csv", encoding="utf-8", newline="") as file:
        assert {(row["backend"], row["device"]) for row in csv.DictReader(file)} == {
            ("tensorflow", "Card 9"),
            ("jax", "Card 9"),
        }
    printed = capsys.readouterr().out
    assert "JAX: the time was over." in printed and "PyTorch found only the CPU" in printed
    assert asked == pytest.approx([30.0, 45.0, 90.0], abs=1.0)  # Those before needed no time here.


def test_without_any_card_nothing_is_written(parsed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(command, "_timed", lambda backend, seconds: ([{"found": ["cpu:0"]}], None))
    parsed("--device=gpu", "--backends=jax,torch", f"--csv={tmp_path / 'rows.csv'}")
    with pytest.raises(RuntimeError, match=r"^--device=gpu looked for a GPU, and JAX found only cpu:0, PyTorch found"):
        command.main(["command"])
    assert not list(tmp_path.iterdir())


def test_on_a_cpu_a_backend_that_fails_ends_the_command(parsed: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(command, "_timed", lambda backend, seconds: (answers_of(backend), "its process ended early"))
    parsed(f"--csv={tmp_path / 'rows.csv'}")
    with pytest.raises(RuntimeError, match=r"^TensorFlow: its process ended early\.$"):
        command.main(["command"])


# --- Processes -------------------------------------------------------------------------------------------------------


def test_a_backend_says_what_it_found_in_place_of_a_card(parsed: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # This machine may have a card.
    parsed("--device=gpu")
    assert command._timed("torch", None) == ([{"found": ["the CPU"]}], None)


def test_a_backend_that_is_too_slow_is_ended(parsed: Any):
    parsed("--device=cpu")
    assert command._timed("jax", 0.05) == ([], "the time was over before all maps were timed")


def test_a_backend_that_does_not_exist_is_refused_even_where_there_is_no_tensorflow():
    code = "import runpy, sys; sys.modules['tensorflow'] = None; sys.argv = ['command', '--backends=mxnet']; "
    code += "runpy.run_module('experiments.frameworks', run_name='__main__', alter_sys=True)"
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ended.returncode == 1
    assert ended.stderr == "error: --backends must name some of tensorflow, jax, torch, got mxnet.\n"


@pytest.mark.slow
def test_the_command_times_what_is_installed(tmp_path):
    file = tmp_path / "frameworks.csv"
    words = [sys.executable, "-m", "experiments.frameworks", "--repeats=1", f"--csv={file}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "TensorFlow" in done.stdout and len(file.read_text().splitlines()) > len(timing.MAPS) * len(timing.POOLINGS)
