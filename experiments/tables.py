"""Writes the CSV files of a study from its runs, and makes its Markdown tables from them.

python -m experiments.tables --study=fashion_mnist_small
python -m experiments.tables --study=fashion_mnist_small --write

If the folders of the runs are missing, the tables are made from the committed CSV files. With `--write` the tables are
put into the pages of `experiments/results`, those that belong to no study as well: on its page, the text between
`<!-- table NAME -->` and `<!-- end of table -->` is replaced by the table NAME. With `--readme=PATH` the study's tables
alone are put into another file.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys
import types
from collections.abc import Sequence

from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.common.files import read_rows, write_whole
from experiments import RESULTS
from experiments.benchmark import report as benchmark_report
from experiments.exports import report as export_report
from experiments.first_step import report as first_step_report
from experiments.frameworks import report as frameworks_report
from experiments.segmentation import report as segmentation_report
from experiments.speech import report as speech_report
from experiments.studies import audited, published, records
from experiments.studies import report as study_report
from experiments.studies.flags import chosen_study, define_study_flags
from experiments.studies.study import load_study
from experiments.tpu_compile import report as tpu_report
from experiments.transfer import report as transfer_report

PAGE = RESULTS / "README.md"
"""The page of results, which has a place for each table but those of `OWN_PAGES`."""

OWN_PAGES = {
    "segmentation": RESULTS / "segmentation.md",
    **{f"benchmark{part}": RESULTS / "speed.md" for part in ("", "_small", "_step", "_sizes")},
    "first_step": RESULTS / "speed.md",
    "engines": RESULTS / "engines.md",
    "frameworks": RESULTS / "frameworks.md",
    "budget_small": RESULTS / "budget.md",
    **{f"cifar{study}": RESULTS / "cifar.md" for study in ("_small_rates", "_small", "100_small", "_wide")},
    "published": RESULTS / "cifar.md",
    **{f"{study}_audits": RESULTS / "audits.md" for study in audited.STUDIES},
}
"""The pages of tables that do not stand on `PAGE`, by the name of the table."""

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    define_study_flags()
    flags.DEFINE_bool("write", False, f"Put all tables into their pages in {os.path.relpath(RESULTS)}.")
    command_line.path_flag("readme", "Put the study's tables into this Markdown file instead.")


def main(argv: Sequence[str]) -> None:
    """Writes the CSV files, prints the tables of the study and puts tables into pages if that is asked for."""
    del argv
    study, results = chosen_study(), pathlib.Path(FLAGS.results)
    path = records.runs_path(study, results)
    recorded = records.read_whole_rows(path)
    rows, _ = records.record(study, FLAGS.runs, results)
    if not rows:
        lack = f"{path} has no run of the present study" if recorded else f"there is no {path}"
        raise ValueError(
            f"No run of {study.name} is finished in {FLAGS.runs}, and {lack}: "
            f"start python -m experiments.sweep --study={study.name}."
        )
    if others := len(recorded) - len(records.present_rows(study, recorded)):
        print(
            f"left out, as of another version of the study: {others} of {len(recorded)} rows of {path}", file=sys.stderr
        )
    table = study_report.tables(study, rows)
    print(table)
    if FLAGS.write or FLAGS.readme:
        pages: dict[pathlib.Path, str] = {}
        for name, content in {study.name: table, **({} if FLAGS.readme else standing_tables())}.items():
            page = pathlib.Path(FLAGS.readme or OWN_PAGES.get(name, PAGE))
            text = pages[page] if page in pages else page.read_text(encoding="utf-8")
            try:
                pages[page] = replace_table(text, name, content)
            except ValueError as error:
                raise ValueError(f"{page}: {error}") from error
        for page, text in pages.items():
            write_whole(page, text)


def standing_tables() -> dict[str, str]:
    """Makes the tables that belong to no study: the published accuracies, and the other experiments' tables.

    Returns:
        Markdown tables by name.

    Raises:
        ValueError: a CSV file is missing, or does not have all rows.
    """
    reports = {
        "exports": export_report,
        "first_step": first_step_report,
        "frameworks": frameworks_report,
        "segmentation": segmentation_report,
        "speech": speech_report,
        "transfer": transfer_report,
    }
    measured = {name: _table_of(report) for name, report in reports.items()}
    audits = audited.standing_tables({name: load_study(name) for name in audited.STUDIES}, RESULTS)
    benchmark = benchmark_report.standing_tables(RESULTS)
    tpu = tpu_report.tables(tpu_report.read_lines(tpu_report.LINES))
    return {"published": published.table(), **measured, **benchmark, **tpu, **audits}


def _table_of(report: types.ModuleType) -> str:
    """The table of an experiment from its CSV file."""
    rows = read_rows(report.CSV)
    if not rows:
        raise ValueError(f"{report.CSV} is missing, or has no rows: restore it, or run its experiment again.")
    try:
        return report.table(rows)
    except (LookupError, ValueError) as error:
        raise ValueError(f"{report.CSV} does not have all rows of its table: run its experiment again.") from error


def replace_table(text: str, name: str, table: str) -> str:
    """Replaces the text between the two marks of a table.

    Args:
        text: a Markdown page.
        name: name of the table, as in its first mark `<!-- table NAME -->`.
        table: the new text.

    Returns:
        The page with the new table.

    Raises:
        ValueError: the page does not have the marks.
    """
    begin, end = f"<!-- table {name} -->\n", "<!-- end of table -->"
    marks = re.compile(rf"({re.escape(begin)})(?:(?!<!-- table).)*?({end})", re.DOTALL)
    if not marks.search(text):
        raise ValueError(f"no place for a table: add the lines '{begin.strip()}' and '{end}'.")
    return marks.sub(lambda match: match[1] + table + "\n" + match[2], text)


if __name__ == "__main__":
    command_line.run(main, define_flags)
