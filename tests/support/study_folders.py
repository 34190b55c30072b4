"""Folders as finished runs leave them, for the tests of what reads them."""

import json
from pathlib import Path
from typing import Any

from experiments.studies import fingerprint
from experiments.studies.study import Cell

POOLING = {"layer": "pooling", "strides": [2.5, 1.5], "input_size": [32, 32], "output_size": [20, 26]}


def finish(cell: Cell, runs: Path | str, accuracy: float = 0.9, **values: Any) -> Path:
    """Writes what `experiments` reads of a run of two epochs, with `values` in place of those of its summary."""
    folder = cell.folder(runs)
    folder.mkdir(parents=True, exist_ok=True)
    learned = cell.method.name == "learned"
    summary = {
        "test_accuracy": accuracy,
        "test_loss": 1 - accuracy,
        "epochs": 2,
        "steps": 80,
        "training_seconds": 3.5,
        "macs": 1_500_000,
        "pooling_macs": 1_000,
        "parameters": 44_926,
        "poolings": [POOLING] if learned else [],
    }
    run = {
        "versions": {"python": "3.11.0", "keras": "3.15.1"},
        "commit": "abc",
        "dtype_policy": "float32",
        "data": {"split_sizes": {"train": 1293}},
    }
    sizes = "pooling/vertical_stride,pooling/horizontal_stride,pooling/height,pooling/width," if learned else ""
    start, end = ("2.0,2.0,22,22,", "2.5,1.5,20,26,") if learned else ("", "")
    files = {
        fingerprint.CELL_FILE: json.dumps(fingerprint.description(cell)),
        "run.json": json.dumps(run),
        "metrics.csv": "epoch,loss,accuracy,val_loss,val_accuracy\n"
        f"1,2.0,0.3,2.1,0.2\n2,1.0,{accuracy},1.1,{accuracy - 0.1}\n",
        "strides.csv": f"epoch,{sizes}macs\n0,{start}1600000\n1,{end}1550000\n2,{end}1500000\n",
        "summary.json": json.dumps(summary | values),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder
