"""Lists the package's commands: `python -m diffstride_hybrid`."""

from __future__ import annotations

import importlib

from diffstride_hybrid.config import gin_files

COMMANDS = ("train", "evaluate", "predict", "audit", "export", "prepare", "convert_google")


def overview() -> str:
    """Lists each command with a one-line summary, and the names of the shipped configs.

    Returns:
        The text that `python -m diffstride_hybrid` prints.
    """
    lines = ["Commands; each explains its options with --help:", ""]
    for name in COMMANDS:
        summary = importlib.import_module(f"diffstride_hybrid.{name}").__doc__.splitlines()[0]
        lines += [f"  python -m diffstride_hybrid.{name}", f"      {summary}"]
    configs = sorted(path.stem for path in gin_files.shipped_configs().glob("*.gin"))
    return "\n".join([*lines, "", "Shipped configs, for --gin_file of train:", "", *(f"  {name}" for name in configs)])


if __name__ == "__main__":
    print(overview())
