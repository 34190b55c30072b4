r"""Brings the CSV files of a study up to date with its runs, and makes its Markdown tables from them.

python -m experiments.tables --study=fashion_mnist_small
python -m experiments.tables --study=fashion_mnist_small --readme=README.md

Where the folders of the runs are not here the committed CSV files are what the tables are made of. With `--readme` the
text between `<!-- table NAME -->` and `<!-- end of table -->` is replaced by the tables of the study of that name, and
so are the tables that belong to no study.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Sequence

from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.common.files import read_rows, write_whole
from experiments.exports import report as export_report
from experiments.speech import report as speech_report
from experiments.studies import published, records
from experiments.studies import report as study_report
from experiments.studies.flags import chosen_study, define_study_flags
from experiments.transfer import report as transfer_report

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    define_study_flags()
    flags.DEFINE_string("readme", None, "A Markdown file whose tables are to be replaced.")


def main(argv: Sequence[str]) -> None:
    """Writes the CSV files and prints the tables."""
    del argv
    study, results = chosen_study(), pathlib.Path(FLAGS.results)
    rows, _ = records.record(study, FLAGS.runs, results)
    if not rows:
        raise ValueError(
            f"No run of {study.name} is finished in {FLAGS.runs}, and there is no {records.runs_path(study, results)}: "
            f"start python -m experiments.sweep --study={study.name}."
        )
    table = study_report.tables(study, rows)
    print(table)
    if FLAGS.readme:
        readme = pathlib.Path(FLAGS.readme)
        text = readme.read_text(encoding="utf-8")
        for name, content in {study.name: table, **standing_tables()}.items():
            text = replace_table(text, name, content)
        write_whole(readme, text)


def standing_tables() -> dict[str, str]:
    """The tables that belong to no study, by name: published figures, and what the other experiments have measured."""
    reports = {"exports": export_report, "speech": speech_report, "transfer": transfer_report}
    measured = {name: report.table(read_rows(report.CSV)) for name, report in reports.items()}
    return {"published": published.table(), **measured}


def replace_table(text: str, name: str, table: str) -> str:
    """Puts a table between its two marks.

    Args:
        text: Markdown.
        name: of the table.
        table: what is to stand there.

    Returns:
        The text with the table.

    Raises:
        ValueError: there are no such marks.
    """
    begin, end = f"<!-- table {name} -->\n", "<!-- end of table -->"
    marks = re.compile(rf"({re.escape(begin)})(?:(?!<!-- table).)*?({end})", re.DOTALL)
    if not marks.search(text):
        raise ValueError(f"The file of --readme has no place for the table: the lines '{begin.strip()}' and '{end}'.")
    return marks.sub(lambda match: match[1] + table + "\n" + match[2], text)


if __name__ == "__main__":
    command_line.run(main, define_flags)
