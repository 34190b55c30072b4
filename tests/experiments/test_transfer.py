"""The transfer experiment: its trainings, its command and its table."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest

from diffstride_hybrid import DiffStride, replace_downsampling
from diffstride_hybrid.common.files import read_rows
from diffstride_hybrid.data.loading import load_datasets
from experiments.transfer import __main__, experiment
from experiments.transfer import report as transfer_report
from experiments.transfer.experiment import ORIGINAL

ROW = {"stage": "after", "macs": "2000000", "pooling_macs": "0"}


def test_the_table_compares_runs_of_the_same_seed():
    accuracies = {(ORIGINAL, 1): "0.80", (ORIGINAL, 2): "0.90", ("DiffStride", 1): "0.82", ("DiffStride", 2): "0.91"}
    rows: list[dict[str, Any]] = []
    for (model, seed), accuracy in accuracies.items():
        of_model = {**ROW, "model": model, "seed": seed, "pooling_macs": "0" if model == ORIGINAL else "250000"}
        early = {"before": ""} if model == ORIGINAL else dict.fromkeys(experiment.MEASURES, "swapped")
        for at, (measure, stage) in enumerate(early.items()):
            stage, measure = (measure, stage) if model == ORIGINAL else (stage, measure)
            rows.append({**of_model, "stage": stage, "measure": measure, "test_accuracy": f"0.{5 + at}"})
        rows.append({**of_model, "measure": "both", "test_accuracy": accuracy})
    assert transfer_report.table(rows).splitlines()[2:] == [
        "| max pooling | 50.00 ± 0.00 % before |  |  |  | 85.00 ± 7.07 % |  | 2.0 M | 2 |",
        "| DiffStride | 50.00 ± 0.00 % | 60.00 ± 0.00 % | 70.00 ± 0.00 % | 80.00 ± 0.00 % | 86.50 ± 6.36 % | "
        "+1.50 ± 0.71 | 2.0 M + 0.2 M | 2 |",
    ]
    assert transfer_report.table(rows[::-1]).splitlines()[2] == transfer_report.table(rows).splitlines()[3]
    for at in range(len(rows)):
        with pytest.raises(ValueError, match="does not have one row of the stage"):
            transfer_report.table([*rows[:at], *rows[at + 1 :]])


def test_the_command_writes_a_row_for_each_stage_and_prints_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def transfer(datasets: str, epochs: int, seed: int) -> Iterator[dict[str, Any]]:
        assert (datasets, epochs) == (f"digits at seed {seed}", 2)
        for stage, accuracy in (("before", "0.50000"), ("after", f"0.{seed}0000")):
            row = dict.fromkeys(experiment.COLUMNS[:-1], "")
            yield row | {**ROW, "seed": seed, "model": ORIGINAL, "stage": stage, "test_accuracy": accuracy}

    monkeypatch.setattr(experiment, "transfer", transfer)
    monkeypatch.setattr(__main__, "load_datasets", lambda name, batch_size, seed: f"{name} at seed {seed}")
    csv = tmp_path / "rows.csv"
    monkeypatch.setattr(__main__, "FLAGS", SimpleNamespace(data="digits", epochs=2, seeds=2, csv=str(csv)))
    __main__.main(["transfer"])
    rows = read_rows(csv)
    assert list(rows[0]) == list(experiment.COLUMNS)
    assert [(row["seed"], row["stage"]) for row in rows] == [
        (seed, stage) for seed in "12" for stage in ("before", "after")
    ]
    assert all(row["versions"].startswith("tensorflow 2.") and "; keras 3." in row["versions"] for row in rows)
    assert capsys.readouterr().out.endswith(transfer_report.table(rows) + "\n")


@pytest.mark.slow
def test_every_swap_trains_on_from_the_weights_of_the_original(monkeypatch: pytest.MonkeyPatch):
    swapped: list[keras.Model] = []

    def swap(model: keras.Model, keep_max: bool, calibrate: np.ndarray | None) -> keras.Model:
        swapped.append(replace_downsampling(model, DiffStride, keep_max=keep_max, calibrate=calibrate))
        for new, old in zip(swapped[-1].layers[0].get_weights(), model.layers[0].get_weights(), strict=True):
            assert (new == old).all()
        return swapped[-1]

    monkeypatch.setattr(experiment, "SWAPS", {"swap": swap})
    network = experiment.convolutional_network
    monkeypatch.setattr(experiment, "convolutional_network", lambda *shape: network(*shape, width=2))
    datasets = load_datasets("digits", batch_size=256, image_size=16)
    rows = list(experiment.transfer(datasets, epochs=1, seed=1))
    assert [(row["model"], row["stage"], row["measure"], row["epochs"]) for row in rows] == [
        (ORIGINAL, "before", "", 1),
        (ORIGINAL, "after", "", 2),
        *(("swap", "swapped", measure, 1) for measure in ("alone", "maximum", "statistics", "both")),
        ("swap", "after", "both", 2),
    ]
    assert rows[5]["sizes"] == "15x15; 15x15"
    assert rows[5]["strides"] == "2.000,2.000; 2.000,2.000" != rows[6]["strides"]
    assert len(swapped) == 4
