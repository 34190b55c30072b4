"""The tables of `experiments.tpu_compile`, made from its JSON lines."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from diffstride_hybrid.common import markdown
from experiments import RESULTS

Line = Mapping[str, Any]

LINES = RESULTS / "tpu_compile.jsonl"
"""The lines behind the tables of the page of results."""

METHODS = ("fft", "matmul")


def read_lines(path: pathlib.Path) -> list[Line]:
    """Reads a file of JSON lines.

    Args:
        path: of the file that `--output` has written.

    Returns:
        The lines.

    Raises:
        ValueError: a line is not JSON.
        OSError: there is no such file.
    """
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            lines.append(json.loads(text))
        except ValueError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}): put it right, or remove it.") from error
    return lines


def tables(lines: Sequence[Line]) -> dict[str, str]:
    """Makes a table of the training steps and one of the layers: a row for each program, a column for each precision.

    Args:
        lines: what `compile_one` returned for each request.

    Returns:
        Markdown tables by name, that of the steps first. A part without lines has no table.
    """
    parts = (
        ("step", ("gin_file", "topology", "batch"), _step_cell),
        ("layer", ("gin_file", "map", "topology", "batch"), _layer_cell),
    )
    texts = {
        f"tpu_{part}": _table([line for line in lines if line["part"] == part], _policies(lines), columns, cell)
        for part, columns, cell in parts
    }
    return {name: text for name, text in texts.items() if text}


def _policies(lines: Sequence[Line]) -> list[str]:
    return list(dict.fromkeys(line["dtype_policy"] for line in lines))


def _table(
    lines: Sequence[Line], policies: Sequence[str], columns: Sequence[str], cell: Callable[[Sequence[Line]], str]
) -> str:
    programs: dict[tuple[str, ...], dict[str, list[Line]]] = {}
    for line in lines:
        by_policy = programs.setdefault(tuple(str(line.get(column, "")) for column in columns), {})
        by_policy.setdefault(line["dtype_policy"], []).append(line)
    if not programs:
        return ""
    head = [column.replace("gin_file", "config").replace("topology", "TPU") for column in columns]
    rows = [
        [*names, *(cell(by_policy[policy]) if policy in by_policy else "" for policy in policies)]
        for names, by_policy in programs.items()
    ]
    return markdown.table([*head, *policies], rows)


def _step_cell(lines: Sequence[Line]) -> str:
    line = lines[-1]
    if not line["compiled"]:
        return f"refused: {line['refused']}"
    share = line["memory_bytes"] / line["chip_memory_bytes"]
    return (
        f"{_cycles(line)}, {line['flops'] / 1e9:,.0f} GFLOP, {line['bytes_accessed'] / 1e9:.1f} GB moved, "
        f"{line['memory_bytes'] / 2**30:.2f} GiB ({share:.0%})"
    )


def _layer_cell(lines: Sequence[Line]) -> str:
    by_method = {line["method"]: line for line in lines}
    texts = [f"{method} {_cycles(by_method[method])}" for method in METHODS if method in by_method]
    cycles = [by_method.get(method, {}).get("estimated_cycles") for method in METHODS]
    return ", ".join(texts) + (f": {cycles[1] / cycles[0]:.3f}" if all(cycles) else "")


def _cycles(line: Line) -> str:
    if not line["compiled"]:
        return "refused"
    return f"{line['estimated_cycles'] / 1e6:.2f} M cycles" if line["estimated_cycles"] else "no estimate"
