"""What `experiments.tpu_compile` makes of its lines: Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]

METHODS = ("fft", "matmul")


def tables(lines: Sequence[Line]) -> str:
    """Markdown tables of steps and of layers, a row for each program and a column for each dtype policy.

    Args:
        lines: what `tpu_compile.compile_one` gave.

    Returns:
        The tables, steps first.
    """
    policies = list(dict.fromkeys(line["dtype_policy"] for line in lines))
    texts = []
    for part, columns, cell in (
        ("step", ("gin_file", "topology", "batch"), _step_cell),
        ("layer", ("gin_file", "map", "topology", "batch"), _layer_cell),
    ):
        rows: dict[tuple[Any, ...], dict[str, list[Line]]] = {}
        for line in lines:
            if line["part"] == part:
                programs = rows.setdefault(tuple(line.get(column, "") for column in columns), {})
                programs.setdefault(line["dtype_policy"], []).append(line)
        if rows:
            heads = [column.replace("gin_file", "config").replace("topology", "TPU") for column in columns]
            table = [f"| {' | '.join([*heads, *policies])} |", "| --- " * (len(heads) + len(policies)) + "|"]
            for names, programs in rows.items():
                cells = [cell(programs[policy]) if policy in programs else "" for policy in policies]
                table.append(f"| {' | '.join(map(str, [*names, *cells]))} |")
            texts.append("\n".join(table))
    return "\n\n".join(texts)


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
