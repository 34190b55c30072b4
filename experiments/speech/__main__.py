"""Tells voices apart in recorded speech: one small network for signals, trained with three poolings.

apt-get install --no-install-recommends asterisk-core-sounds-{en,es,fr,it,ru}-wav
python -m experiments.speech --source=/usr/share/asterisk/sounds

The results are a Markdown table and `experiments/results/speech.csv`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.common.files import rows_as_text, write_whole
from experiments.speech import network, recordings, report

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    command_line.path_flag("source", "Folder with a folder of wav files for each voice.", "/usr/share/asterisk/sounds")
    flags.DEFINE_integer("seeds", 3, "How many runs of each pooling.", lower_bound=1)
    flags.DEFINE_integer("epochs", 6, "Epochs of a run.", lower_bound=1)
    command_line.path_flag("csv", "The CSV file to write.", str(report.CSV))


def main(argv: Sequence[str]) -> None:
    """Trains each pooling with each seed, writes the CSV file after each run and prints the table."""
    del argv
    command_line.keep_freed_memory()
    speech = recordings.load(pathlib.Path(FLAGS.source))
    print(f"{len(speech.voices)} voices, {len(speech.train[1]):,} train and {len(speech.test[1]):,} test windows")
    rows = []
    for seed in range(1, FLAGS.seeds + 1):
        for method in network.POOLINGS:
            row = network.run(method, seed, speech, FLAGS.epochs)
            rows.append(row)
            write_whole(pathlib.Path(FLAGS.csv), rows_as_text(list(row), rows))
            print(
                f"{method}, seed {seed}: test accuracy {row['test_accuracy']}, {row['training_seconds']} s", flush=True
            )
    print(report.table(rows))


if __name__ == "__main__":
    command_line.run(main, define_flags)
