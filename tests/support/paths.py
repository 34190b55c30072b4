"""Where things are, from a test in any folder."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
"""The checkout."""

TESTS = ROOT / "tests"
REFERENCE = TESTS / "reference"
"""Outputs of the released code."""
