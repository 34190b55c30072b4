"""The tables of the README that are made of CSV files alone, and their places in it."""

from __future__ import annotations

import re

from diffstride_hybrid.run_folder import read_rows
from experiments import export_report, published, speech_report, transfer_report


def standing_tables() -> dict[str, str]:
    """The tables that belong to no study, by name: published figures, and what the other experiments have measured."""
    reports = {"exports": export_report, "speech": speech_report, "transfer": transfer_report}
    measured = {name: report.table(read_rows(report.RESULTS)) for name, report in reports.items()}
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
