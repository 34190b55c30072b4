r"""Exports the model of a run to every format, and runs each in a fresh environment that lacks this package.

python -m experiments.exports --workdir=runs/fashion_mnist_hybrid

Each runtime is installed by pip into a virtual environment of its own. The results are
`experiments/results/exports.csv`, and a Markdown table.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import app, flags

from diffstride_hybrid import command_line, run_loading, training
from diffstride_hybrid.run_folder import rows_as_text, write_whole
from experiments import export_report

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_IMAGES = flags.DEFINE_integer("images", 1000, "How many test images to compare on.", lower_bound=1)
_CSV = flags.DEFINE_string("csv", str(export_report.RESULTS), "The CSV file to write.")


def main(argv: Sequence[str]) -> None:
    """Exports, installs, runs and compares."""
    del argv
    workdir = pathlib.Path(_WORKDIR.value)
    run = run_loading.load_run(workdir, training.FINAL_MODEL)
    rows = export_report.compared(run, workdir / training.FINAL_MODEL, _IMAGES.value)
    write_whole(pathlib.Path(_CSV.value), rows_as_text(export_report.COLUMNS, rows))
    print(export_report.table(rows))


if __name__ == "__main__":
    app.run(command_line.reporting_errors(main))
