"""Experiments and studies: each is a command, `python -m experiments.NAME`."""

import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"
"""Where the committed CSV files, tables and figures are."""
