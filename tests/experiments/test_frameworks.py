import json
import subprocess
import sys

import numpy as np
import pytest
from support.paths import ROOT

from diffstride_hybrid import SpectralPooling
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


@pytest.mark.slow
def test_the_command_times_what_is_installed(tmp_path):
    file = tmp_path / "frameworks.csv"
    command = [sys.executable, "-m", "experiments.frameworks", "--repeats=1", f"--csv={file}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "TensorFlow" in done.stdout and len(file.read_text().splitlines()) > len(timing.MAPS) * len(timing.POOLINGS)
