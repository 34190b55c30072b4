"""Tells whether the run of a cell was made by this version of its study."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import gin

from diffstride_hybrid.common.files import write_whole
from diffstride_hybrid.config import gin_files
from diffstride_hybrid.runs.folder import read_json
from experiments.studies import costs
from experiments.studies.study import Cell, format_strides

CELL_FILE = "cell.json"
"""The file in the folder of a cell that holds its description."""


@functools.cache
def config_fingerprint(gin_file: str, bindings: tuple[str, ...]) -> str:
    """Hashes everything that a config binds, in its own file and in the files that it includes.

    Args:
        gin_file: path of a gin file, or the name of a shipped config.
        bindings: gin bindings that override the file.

    Returns:
        Twelve hexadecimal digits.
    """
    gin_files.parse([gin_files.find_gin_file(gin_file)], list(bindings))
    return hashlib.sha256(gin.config_str().encode()).hexdigest()[:12]


def description(cell: Cell) -> dict[str, Any]:
    """Describes a cell in plain values, as its folder keeps them in `CELL_FILE`."""
    return {
        "data": cell.data,
        "method": cell.method.name,
        "variant": cell.variant.name,
        "strides": format_strides(cell.strides),
        "seed": cell.seed,
        "gin_file": cell.gin_file,
        "gin_bindings": list(cell.gin_bindings),
        "config": config_fingerprint(cell.gin_file, cell.gin_bindings),
    }


def write_description(cell: Cell, runs: str, matched: Sequence[str] = ()) -> None:
    """Writes the description of a cell into its folder.

    Args:
        cell: of a study.
        runs: the folder that holds a folder for each study.
        matched: the bindings that match it to its reference, if it has one.
    """
    described = description(cell) | ({"matched": list(matched)} if matched else {})
    write_whole(cell.folder(runs) / CELL_FILE, json.dumps(described, indent=2) + "\n")


def check_unchanged(cell: Cell, runs: str, recorded: Mapping[Cell, costs.Cost] | None = None) -> None:
    """Refuses the folder of a cell that another version of its study, its config or its reference has made.

    Args:
        cell: of a study.
        runs: the folder that holds a folder for each study.
        recorded: the costs of cells that are finished elsewhere.

    Raises:
        ValueError: the folder describes another cell than this one.
        OSError: the description is damaged.
    """
    path = cell.folder(runs) / CELL_FILE
    if not path.exists():
        return
    before, now = read_json(path), description(cell)
    if "matched" in before and cell.reference is not None:
        is_known = cell.reference in (recorded or {}) or cell.reference.is_finished(runs)
        now["matched"] = list(costs.matched_bindings(cell, runs, recorded)) if is_known else before["matched"]
    changed = [f"{name} was {value}, is {now.get(name)}" for name, value in before.items() if value != now.get(name)]
    if changed:
        raise ValueError(
            f"{path.parent} was run by another version of the study: {'; '.join(changed)}. Move it away, or give "
            "another --runs."
        )
