"""Lists the package's commands: `python -m diffstride_hybrid`."""

from __future__ import annotations

import ast
import importlib.util

from diffstride_hybrid import command_line

COMMANDS = ("train", "evaluate", "predict", "export", "prepare", "convert_google")


def overview() -> str:
    """The commands with what they do, and the names of the shipped configs."""
    lines = ["Commands; each explains its options with --help:", ""]
    for name in COMMANDS:
        # Read and not imported, as each defines flags of its own.
        source = importlib.util.find_spec(f"diffstride_hybrid.{name}").loader.get_source(f"diffstride_hybrid.{name}")
        summary = ast.get_docstring(ast.parse(source)).splitlines()[0]
        lines += [f"  python -m diffstride_hybrid.{name}", f"      {summary}"]
    configs = sorted(path.stem for path in command_line.shipped_configs().glob("*_*.gin"))
    return "\n".join([*lines, "", "Shipped configs, for --gin_file of train:", "", *(f"  {name}" for name in configs)])


if __name__ == "__main__":
    print(overview())
