"""The results of a study as two CSV files: a row for each run, and a row for each epoch of each run.

They are made from the folders of the runs. Rows of runs whose folders are not here, because another machine has them,
stay as they are.
"""

from __future__ import annotations

import csv
import io
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.study import Cell, Study, format_strides

RESULTS = pathlib.Path(__file__).parent / "results"

KEY = ("data", "method", "variant", "strides", "seed")
"""The columns that tell one run from another, in both files."""

TIMES = ("training_seconds",)
"""The columns of `runs_path` that differ when a study is run again."""

Row = dict[str, str]


def runs_path(study: Study, results: pathlib.Path) -> pathlib.Path:
    """The file with a row for each run."""
    return results / f"{study.name}.csv"


def epochs_path(study: Study, results: pathlib.Path) -> pathlib.Path:
    """The file with a row for each epoch of each run."""
    return results / f"{study.name}_epochs.csv"


def record(study: Study, runs: str, results: pathlib.Path) -> tuple[list[Row], list[Row]]:
    """Brings both files up to date with the folders of the finished runs.

    Args:
        study: which study.
        runs: where the folders of all studies are. They need not exist.
        results: the folder of the files.

    Returns:
        The rows of both files.

    Raises:
        ValueError: a run was made by another version of the study.
        OSError: a file cannot be read or written.
    """
    cells = study.cells()
    finished = [cell for cell in cells if cell.is_finished(runs)]
    for cell in finished:
        cell.check_unchanged(runs)
    places = {_key(cell): place for place, cell in enumerate(cells)}
    here = {_key(cell) for cell in finished}
    files = []
    for path, rows_of in ((runs_path(study, results), _run_rows), (epochs_path(study, results), _epoch_rows)):
        rows = [row for row in read_rows(path) if places.get(_row_key(row)) is not None and _row_key(row) not in here]
        rows += [row for cell in finished for row in rows_of(cell, runs)]
        rows.sort(key=lambda row: (places[_row_key(row)], int(row.get("epoch", 0))))
        if finished:
            _write_rows(path, rows)
        files.append(read_rows(path))
    return files[0], files[1]


def read_rows(path: pathlib.Path) -> list[Row]:
    """The rows of a CSV file, none where it does not exist."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write_rows(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial.{path.name}")
    with open(partial, "w", encoding="utf-8", newline="") as file:
        file.write(text.getvalue())
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def _key(cell: Cell) -> tuple[str, ...]:
    return cell.data, cell.method.name, cell.variant.name, format_strides(cell.strides), str(cell.seed)


def _row_key(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in KEY)


def _run_rows(cell: Cell, runs: str) -> Iterable[Row]:
    folder = cell.folder(runs)
    summary, run = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("summary.json", "run.json"))
    epochs, (start, *_) = read_rows(folder / "metrics.csv"), read_rows(folder / "strides.csv")
    values = {
        "test_accuracy": f"{summary['test_accuracy']:.4f}",
        "test_loss": f"{summary['test_loss']:.4f}",
        "validation_accuracy": _rounded(epochs[-1].get("val_accuracy", "")),
        "validation_loss": _rounded(epochs[-1].get("val_loss", "")),
        "epochs": summary["epochs"],
        "steps": summary["steps"],
        "macs_at_start": start["macs"],
        "macs": summary["macs"],
        "pooling_macs": summary["pooling_macs"],
        "parameters": summary["parameters"],
        "strides_at_start": "; ".join(_strides_at_start(start)),
        "strides_at_end": "; ".join(
            f"{pooling['layer']} {_pair(pooling['strides'])}" for pooling in summary["poolings"] if pooling["strides"]
        ),
        "sizes_at_end": "; ".join(
            f"{pooling['layer']} {_size(pooling['input_size'])} to {_size(pooling['output_size'])}"
            for pooling in summary["poolings"]
        ),
        "training_seconds": summary["training_seconds"],
        "training_images": run["data"]["split_sizes"]["train"],
        "dtype_policy": run["dtype_policy"],
        "versions": "; ".join(f"{package} {version}" for package, version in run["versions"].items()),
        "commit": run["commit"],
    }
    yield {**dict(zip(KEY, _key(cell))), **{name: str(value) for name, value in values.items()}}


def _epoch_rows(cell: Cell, runs: str) -> Iterable[Row]:
    folder = cell.folder(runs)
    metrics = {row["epoch"]: row for row in read_rows(folder / "metrics.csv")}
    for sizes in read_rows(folder / "strides.csv"):
        measured = metrics.get(sizes["epoch"], {})
        figures = {name: _rounded(measured.get(name, "")) for name in ("loss", "accuracy", "val_loss", "val_accuracy")}
        sizes = {name: _rounded(value) for name, value in sizes.items()}
        yield {**dict(zip(KEY, _key(cell))), "epoch": sizes["epoch"], **figures, **sizes}


def _rounded(text: str) -> str:
    """A number to five decimals, other text as it is."""
    return f"{float(text):.5f}" if "." in text or "e" in text else text


def _strides_at_start(row: Mapping[str, str]) -> Iterable[str]:
    for column, vertical in row.items():
        layer, _, part = column.rpartition("/")
        if part == "vertical_stride":
            yield f"{layer} {_pair([float(vertical), float(row[f'{layer}/horizontal_stride'])])}"


def _pair(strides: Sequence[float]) -> str:
    return ",".join(f"{stride:.4f}" for stride in strides)


def _size(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
