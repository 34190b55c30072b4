"""Trains a small Keras network with max pooling, replaces its poolings and trains on, with and without new poolings.

python -m experiments.transfer --data=fashion_mnist --epochs=3 --seeds=3

The results are a Markdown table and `experiments/results/transfer.csv`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import tensorflow as tf
from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.common.files import rows_as_text, write_whole
from diffstride_hybrid.common.versions import versions_as_text
from diffstride_hybrid.data.loading import load_datasets
from experiments.transfer import experiment, report

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    flags.DEFINE_string("data", "fashion_mnist", "Name of the data set, as for data.load_datasets.name.")
    flags.DEFINE_integer("epochs", 3, "Epochs of each of the two trainings.", lower_bound=1)
    flags.DEFINE_integer("seeds", 3, "How many seeds.", lower_bound=1)
    command_line.path_flag("csv", "The CSV file to write.", str(report.CSV))


def main(argv: Sequence[str]) -> None:
    """Trains all networks with each seed, writes the CSV file after each row and prints the table."""
    del argv
    command_line.keep_freed_memory()
    # TensorFlow would warn of retracing, because each network has a graph of its own.
    tf.get_logger().setLevel("ERROR")
    versions = versions_as_text(("tensorflow", "keras"), separator="; ")
    rows = []
    for seed in range(1, FLAGS.seeds + 1):
        datasets = load_datasets(FLAGS.data, batch_size=64, seed=seed)
        for row in experiment.transfer(datasets, FLAGS.epochs, seed):
            rows.append({**row, "versions": versions})
            write_whole(pathlib.Path(FLAGS.csv), rows_as_text(experiment.COLUMNS, rows))
            print("seed {seed}  {model:<32}  {stage:<8}  {measure:<10}  {test_accuracy}".format(**row), flush=True)
    print(report.table(rows))


if __name__ == "__main__":
    command_line.run(main, define_flags)
