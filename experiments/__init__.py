"""Experiments and studies: each is a command, `python -m experiments.NAME`."""

import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"
"""The folder of the committed CSV files, figures and page of tables."""
