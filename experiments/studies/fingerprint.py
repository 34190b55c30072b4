"""What tells the run of a cell from that of another version of its study."""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any

import gin

from diffstride_hybrid.common.files import write_whole
from diffstride_hybrid.config import gin_files
from experiments.studies.study import Cell, format_strides

CELL_FILE = "cell.json"


@functools.cache
def config_fingerprint(gin_file: str, bindings: tuple[str, ...]) -> str:
    """Twelve digits that differ where a config binds something else, in its own file or in one that it includes."""
    gin_files.parse([gin_files.find_gin_file(gin_file)], list(bindings))
    return hashlib.sha256(gin.config_str().encode()).hexdigest()[:12]


def description(cell: Cell) -> dict[str, Any]:
    """What the folder of a cell keeps of it."""
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


def write_description(cell: Cell, runs: str) -> None:
    """Writes `CELL_FILE` into the folder of a cell."""
    write_whole(cell.folder(runs) / CELL_FILE, json.dumps(description(cell), indent=2) + "\n")


def check_unchanged(cell: Cell, runs: str) -> None:
    """Raises ValueError where the folder of a cell was made by another version of its study or of its config."""
    path = cell.folder(runs) / CELL_FILE
    if not path.exists():
        return
    before, now = json.loads(path.read_text(encoding="utf-8")), description(cell)
    changed = [f"{name} was {value}, is {now[name]}" for name, value in before.items() if value != now[name]]
    if changed:
        raise ValueError(
            f"{path.parent} was run by another version of the study: {'; '.join(changed)}. Move it away, or give "
            "another --runs."
        )
