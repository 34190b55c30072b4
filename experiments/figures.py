"""Draws the figures of a study.

python -m experiments.figures --study=fashion_mnist_small

The figures are `experiments/results/<study>_*.png`. Curves, strides and MACs are drawn from the CSV files. The windows
and the poolings need the folder of a run with learned strides and its data set, and are left out without it.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags
from matplotlib.figure import Figure

from diffstride_hybrid import command_line
from diffstride_hybrid.common.files import read_rows
from diffstride_hybrid.config import saved_runs
from diffstride_hybrid.runs.folder import FINAL_MODEL
from experiments.studies import drawings, fingerprint, records
from experiments.studies.flags import chosen_study, define_study_flags
from experiments.studies.study import Cell, Study

IN_CURVES = ("strided", "diffstride", "hybrid")
"""The methods whose curves are drawn, if the study has them: DiffStride and the hybrid as in figures 4 and 5 of arXiv
2401.09008, and strided convolution. The first two methods stand in if it has none of them."""

IMAGES = 64
"""How many test images the spectra are averaged over."""

IMAGES_SHOWN = 3
"""How many images the figure of the poolings shows, each of another class."""

FLAGS = flags.FLAGS


def figures_of_rows(study: Study, results: pathlib.Path) -> Iterator[tuple[str, Figure]]:
    """Draws the figures that need only the CSV files.

    Args:
        study: the study to draw.
        results: the folder of the CSV files.

    Yields:
        The name and the figure.

    Raises:
        ValueError: there is no CSV file of the study, or it has no row of the present version of the study.
    """
    paths = records.runs_path(study, results), records.epochs_path(study, results)
    runs, epochs = (records.present_rows(study, records.read_whole_rows(path)) for path in paths)
    if not runs or not epochs:
        raise ValueError(
            f"There is no {paths[bool(runs)]}, or it has no run of the present study: start "
            f"python -m experiments.sweep and then python -m experiments.tables, both with --study={study.name}."
        )
    for data in study.data:
        suffix = f"_{data}" if len(study.data) > 1 else ""
        of_data = [row for row in runs if row["data"] == data]
        epochs_of_data = [row for row in epochs if row["data"] == data]
        methods = list(dict.fromkeys(row["method"] for row in of_data))
        shown = [name for name in IN_CURVES if name in methods] or methods[:2]
        yield f"curves{suffix}", drawings.curves(study, epochs_of_data, shown)
        for method in methods:
            if any(row["method"] == method and row["strides_at_end"] for row in of_data):
                yield f"strides_{method}{suffix}", drawings.learned_strides(study, epochs_of_data, method)
        yield f"macs{suffix}", drawings.accuracy_against_macs(study, of_data)


def figures_of_run(cell: Cell, runs: str) -> Iterator[tuple[str, Figure]]:
    """Draws the figures that need a trained network with learned strides and its test images.

    Args:
        cell: a finished cell.
        runs: the folder that holds a folder for each study.

    Yields:
        The name and the figure.
    """
    folder = cell.folder(runs)
    model, datasets, _ = saved_runs.load_run(folder, FINAL_MODEL)
    images, labels = datasets.first_images("test", IMAGES)
    (start, *_) = read_rows(folder / "strides.csv")
    yield "windows", drawings.windows(model, images, records.strides_at_start(start))
    _, of_each_class = np.unique(labels.argmax(-1), return_index=True)
    shown = images[np.sort(of_each_class)[:IMAGES_SHOWN]] * np.asarray(datasets.std) + np.asarray(datasets.mean)
    yield "poolings", drawings.poolings(np.clip(shown, 0, 1).astype("float32"))


def main(argv: Sequence[str]) -> None:
    """Draws the figures and prints their paths."""
    del argv
    study, results = chosen_study(), pathlib.Path(FLAGS.results)
    _write(study, results, figures_of_rows(study, results))
    finished = (cell for cell in study.cells() if cell.is_finished(FLAGS.runs))
    cell = next((cell for cell in finished if _learns_strides(cell, FLAGS.runs)), None)
    if cell is None:
        print(f"no run with learned strides is in {FLAGS.runs}: its windows and the poolings are not drawn")
        return
    fingerprint.check_unchanged(cell, FLAGS.runs)
    _write(study, results, figures_of_run(cell, FLAGS.runs))


def _learns_strides(cell: Cell, runs: str) -> bool:
    rows = read_rows(cell.folder(runs) / "strides.csv")
    return bool(rows and records.strides_at_start(rows[0]))


def _write(study: Study, results: pathlib.Path, figures: Iterator[tuple[str, Figure]]) -> None:
    results.mkdir(parents=True, exist_ok=True)
    for name, figure in figures:
        path = results / f"{study.name}_{name}.png"
        figure.savefig(path, dpi=130)
        print(os.path.relpath(path))


if __name__ == "__main__":
    command_line.run(main, define_study_flags)
