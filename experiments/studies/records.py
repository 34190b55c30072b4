"""The results of a study as two CSV files: a row for each run, and a row for each epoch of each run.

The rows are made from the folders of the runs. If a folder is missing because the run is on another machine, its rows
stay as they are, unless the study, the config or the run that it is matched to has changed since.
"""

from __future__ import annotations

import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from diffstride_hybrid.common.files import read_rows, rows_as_text, write_whole
from diffstride_hybrid.runs.folder import read_json
from experiments.studies import fingerprint
from experiments.studies.costs import Cost, cell_cost
from experiments.studies.study import Cell, Study, format_strides

KEY = ("data", "method", "variant", "strides", "seed")
"""The columns that identify a run, in both files."""

Row = dict[str, str]


def runs_path(study: Study, results: pathlib.Path) -> pathlib.Path:
    """Returns the path of the CSV file with a row for each run, in the folder `results`."""
    return results / f"{study.name}.csv"


def epochs_path(study: Study, results: pathlib.Path) -> pathlib.Path:
    """Returns the path of the CSV file with a row for each epoch of each run, in the folder `results`."""
    return results / f"{study.name}_epochs.csv"


def record(study: Study, runs: str, results: pathlib.Path) -> tuple[list[Row], list[Row]]:
    """Brings both files up to date with the folders of the finished runs.

    Args:
        study: the study whose cells the runs are.
        runs: the folder that holds a folder for each study. It need not exist.
        results: the folder of the CSV files.

    Returns:
        The rows of the runs and the rows of the epochs.

    Raises:
        ValueError: a run was made by another version of the study, or matched to another run than the present one; or
            the study compares validation images and a run has none.
        OSError: a file of a run or a CSV file is damaged, or a CSV file cannot be written.
    """
    cells = study.cells()
    finished = [cell for cell in cells if cell.is_finished(runs)]
    recorded = recorded_costs(study, results)
    for cell in finished:
        fingerprint.check_unchanged(cell, runs, recorded)
    places = {key_of(cell): place for place, cell in enumerate(cells)}
    trained_anew = {cell for cell in finished if recorded.get(cell) != cell_cost(cell, runs)}
    replaced = {key_of(cell) for cell in [*finished, *_outliving(cells, {*recorded} - trained_anew)]}
    files = []
    for path, rows_of in (
        (runs_path(study, results), lambda cell: [_run_row(study, cell, runs)]),
        (epochs_path(study, results), lambda cell: _epoch_rows(cell, runs)),
    ):
        kept = [row for row in present_rows(study, read_whole_rows(path)) if key_of_row(row) not in replaced]
        rows = [*kept, *(row for cell in finished for row in rows_of(cell))]
        rows.sort(key=lambda row: (places[key_of_row(row)], int(row.get("epoch", 0))))
        if finished:
            columns = dict.fromkeys(name for row in rows for name in row)
            write_whole(path, rows_as_text(list(columns), rows))
        files.append(rows)
    return files[0], files[1]


def recorded_costs(study: Study, results: pathlib.Path) -> dict[Cell, Cost]:
    """Finds the cells whose rows are in the CSV file and were made by this version of the study and of its config.

    Args:
        study: of the cells.
        results: the folder of the CSV files.

    Returns:
        The cost after training of each such cell, to which other cells may be matched. A cell that is matched to one
        without a row is left out, because the run that it was matched to is not known.
    """
    rows = {key_of_row(row): row for row in present_rows(study, read_whole_rows(runs_path(study, results)))}
    cells = [cell for cell in study.cells() if key_of(cell) in rows]
    return {
        cell: Cost(int(rows[key_of(cell)]["macs"]), _sizes_of(rows[key_of(cell)]["sizes_at_end"]))
        for cell in cells
        if cell not in _outliving(cells, cells)
    }


def present_rows(study: Study, rows: Sequence[Row]) -> list[Row]:
    """Leaves out the rows that another version of the study or of its config has made.

    Args:
        study: of the rows.
        rows: with the columns `KEY` and `config`.

    Returns:
        The rows of the study's cells with their present configs, and without those matched to a row left out.
    """
    cells = {key_of(cell): cell for cell in study.cells()}
    configs = {key: config_of(cell) for key, cell in cells.items()}
    changed = {key_of_row(row) for row in rows if configs.get(key_of_row(row)) != row["config"]}
    changed |= {key for key, cell in cells.items() if cell.reference and key_of(cell.reference) in changed}
    return [row for row in rows if key_of_row(row) not in changed]


def strides_at_start(row: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    """Reads the (vertical, horizontal) strides of each layer, by its path, from a row of a run's `strides.csv`."""
    layers = [name.removesuffix("/vertical_stride") for name in row if name.endswith("/vertical_stride")]
    return {
        layer: (float(row[f"{layer}/vertical_stride"]), float(row[f"{layer}/horizontal_stride"])) for layer in layers
    }


def config_of(cell: Cell) -> str:
    """Returns the fingerprint of all that the config of a cell binds, as the column `config` holds it."""
    return fingerprint.config_fingerprint(cell.gin_file, cell.gin_bindings)


def commit_of(cell: Cell, runs: str) -> str:
    """Reads from the folder of a run which commit trained it, as the column `commit` holds it."""
    return str(read_json(cell.folder(runs) / "run.json")["commit"])


def key_of(cell: Cell) -> tuple[str, ...]:
    """Returns the values of the columns `KEY` for a cell."""
    return cell.data, cell.method.name, cell.variant.name, format_strides(cell.strides), str(cell.seed)


def key_of_row(row: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the values of the columns `KEY` in a row."""
    return tuple(row[name] for name in KEY)


def read_whole_rows(path: pathlib.Path) -> list[Row]:
    """Reads the rows of a CSV file that has the columns `KEY` and `config`.

    Args:
        path: of the file.

    Returns:
        The rows; none if the file does not exist.

    Raises:
        OSError: a line is cut off, or is no row.
    """
    rows = read_rows(path)
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values() or not {*KEY, "config"} <= row.keys():
            raise OSError(f"{path} is damaged: line {number} is no row of it. Restore the file, or take the line out.")
    return rows


def _outliving(cells: Iterable[Cell], known: Collection[Cell]) -> list[Cell]:
    """The cells that are matched to a cell that is not known."""
    return [cell for cell in cells if cell.reference is not None and cell.reference not in known]


def _run_row(study: Study, cell: Cell, runs: str) -> Row:
    folder = cell.folder(runs)
    summary, run = cell.summary(runs), read_json(folder / "run.json")
    (*_, last_epoch), (start, *_) = read_rows(folder / "metrics.csv"), read_rows(folder / "strides.csv")
    values = {
        "validation_accuracy": _rounded(last_epoch.get("val_accuracy", "")),
        "validation_loss": _rounded(last_epoch.get("val_loss", "")),
    }
    # A study that chooses settings by validation images must not see the test images.
    if study.measure == "test":
        values |= {name: _rounded(str(summary[name])) for name in ("test_accuracy", "test_loss")}
    elif not values["validation_accuracy"]:
        raise ValueError(f"{folder} has no validation images, which study {study.name} compares.")
    values |= {
        "epochs": summary["epochs"],
        "steps": summary["steps"],
        "macs_at_start": start["macs"],
        "macs": summary["macs"],
        "pooling_macs": summary["pooling_macs"],
        "parameters": summary["parameters"],
        "strides_at_start": "; ".join(f"{layer} {_pair(pair)}" for layer, pair in strides_at_start(start).items()),
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
        "config": config_of(cell),
    }
    return {**dict(zip(KEY, key_of(cell))), **{name: str(value) for name, value in values.items()}}


def _epoch_rows(cell: Cell, runs: str) -> Iterator[Row]:
    folder = cell.folder(runs)
    metrics = {row["epoch"]: row for row in read_rows(folder / "metrics.csv")}
    for sizes in read_rows(folder / "strides.csv"):
        measured = metrics.get(sizes["epoch"], {})
        figures = {name: _rounded(measured.get(name, "")) for name in ("loss", "accuracy", "val_loss", "val_accuracy")}
        sizes = {name: _rounded(value) for name, value in sizes.items()}
        yield {**dict(zip(KEY, key_of(cell))), "config": config_of(cell), "epoch": sizes["epoch"], **figures, **sizes}


def _rounded(text: str) -> str:
    """Rounds a number that is not whole to five decimals; other text stays as it is."""
    return f"{float(text):.5f}" if "." in text or "e" in text else text


def _sizes_of(text: str) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Reads what `sizes_at_end` says of each pooling, such as 'pooling 32x32 to 24x24'."""
    sizes = {}
    for part in text.split("; ") if text else ():
        layer, before, _, after = part.split(" ")
        sizes[layer] = tuple(tuple(map(int, size.split("x"))) for size in (before, after))
    return sizes


def _pair(strides: Sequence[float]) -> str:
    return ",".join(f"{stride:.4f}" for stride in strides)


def _size(size: Sequence[int]) -> str:
    return "x".join(map(str, size))
