r"""Brings the CSV files of a study up to date with its runs, and makes its Markdown tables from them.

python -m experiments.tables --study=fashion_mnist_small
python -m experiments.tables --study=fashion_mnist_small --readme=README.md

Where the folders of the runs are not here the committed CSV files are what the tables are made of. With `--readme` the
text between `<!-- table NAME -->` and `<!-- end of table -->` is replaced by the tables of the study of that name, and
so are the tables that belong to no study.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import app, flags

from diffstride_hybrid import command_line
from diffstride_hybrid.run_folder import write_whole
from experiments import readme_tables, records, study_report
from experiments.study_flags import RESULTS, RUNS, chosen_study

_README = flags.DEFINE_string("readme", None, "A Markdown file whose tables are to be replaced.")


def main(argv: Sequence[str]) -> None:
    """Writes the CSV files and prints the tables."""
    del argv
    study, results = chosen_study(), pathlib.Path(RESULTS.value)
    rows, _ = records.record(study, RUNS.value, results)
    if not rows:
        raise ValueError(
            f"No run of {study.name} is finished in {RUNS.value}, and there is no {records.runs_path(study, results)}: "
            f"start python -m experiments.sweep --study={study.name}."
        )
    table = study_report.tables(study, rows)
    print(table)
    if _README.value:
        readme = pathlib.Path(_README.value)
        text = readme.read_text(encoding="utf-8")
        for name, content in {study.name: table, **readme_tables.standing_tables()}.items():
            text = readme_tables.replace_table(text, name, content)
        write_whole(readme, text)


if __name__ == "__main__":
    app.run(command_line.reporting_errors(main))
