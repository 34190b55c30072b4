r"""Trains a small Keras network with max pooling, swaps its poolings, and trains it on, beside the network as it was.

python -m experiments.transfer --data=fashion_mnist --epochs=3 --seeds=3

The results are `experiments/results/transfer.csv`, and a Markdown table.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import keras
import tensorflow as tf
from absl import app, flags

from diffstride_hybrid import command_line, data
from diffstride_hybrid.run_folder import rows_as_text, write_whole
from experiments import transfer_report

_DATA = flags.DEFINE_string("data", "fashion_mnist", "Name of the data set, as for data.load_datasets.name.")
_EPOCHS = flags.DEFINE_integer("epochs", 3, "Epochs of the first training, and again of the second.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 3, "How many seeds.", lower_bound=1)
_CSV = flags.DEFINE_string("csv", str(transfer_report.RESULTS), "The CSV file to write.")


def main(argv: Sequence[str]) -> None:
    """Trains for each seed, and writes what is there after each model."""
    del argv
    command_line.keep_freed_memory()
    tf.get_logger().setLevel("ERROR")  # It takes the graphs of many networks for those of one, traced again and again.
    versions, rows = f"tensorflow {tf.__version__}; keras {keras.__version__}", []
    for seed in range(1, _SEEDS.value + 1):
        datasets = data.load_datasets(_DATA.value, batch_size=64, seed=seed)
        for row in transfer_report.transfer(datasets, _EPOCHS.value, seed):
            rows.append({**row, "versions": versions})
            write_whole(pathlib.Path(_CSV.value), rows_as_text(transfer_report.COLUMNS, rows))
            print("seed {seed}  {model:<32}  {stage:<8}  {test_accuracy}".format(**row), flush=True)
    print(transfer_report.table(rows))


if __name__ == "__main__":
    app.run(command_line.reporting_errors(main))
