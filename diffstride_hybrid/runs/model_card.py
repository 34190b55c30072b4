"""The model card of a run: its data, its results, its poolings, how to use it, and how it was made."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from diffstride_hybrid.common import markdown
from diffstride_hybrid.common.printing import encodable
from diffstride_hybrid.runs.folder import RunFolder

FIGURES = {"figures/curves.png": "loss and accuracy", "figures/strides.png": "strides and sizes of the maps"}
"""The figures that a card shows if the run has them, and their captions."""

AUDIT = "audit.md"
"""The tables of an audit of the run, if there was one. Its figure is `figures/audit.png`."""


_TEXT = r"(?:\\\n\s*)?\(?['\"]([^'\"]*)"
"""A text as a gin file has it, on the next line if it is long. Of one that is longer than a line, the beginning."""


def write_model_card(folder: RunFolder, summary: Mapping[str, Any]) -> None:
    """Writes `README.md` into the folder of a run.

    Args:
        folder: of a run that has written `run.json`, its CSV files and its figures.
        summary: the values of `summary.json`, which need not be written yet.

    Raises:
        OSError: a file of the run is damaged, or the card cannot be written.
    """
    config, audit = folder.path / "operative_config.gin", folder.path / AUDIT
    card = model_card(
        str(folder.path.resolve()),
        folder.read_json("run.json"),
        summary,
        next((row for row in folder.read_rows("strides.csv") if row.get("epoch") == "0"), {}),
        config.read_text(encoding="utf-8") if config.exists() else None,
        [name for name in FIGURES if (folder.path / name).exists()],
        audit.read_text(encoding="utf-8") if audit.exists() else None,
    )
    folder.write_text("README.md", encodable(card))


def model_card(
    place: str,
    run: Mapping[str, Any],
    summary: Mapping[str, Any],
    strides_at_start: Mapping[str, str],
    config: str | None,
    figures: Sequence[str],
    audit: str | None = None,
) -> str:
    """The card as Markdown.

    Args:
        place: path of the run's folder.
        run: the values of `run.json`.
        summary: the values of `summary.json`.
        strides_at_start: the row of epoch 0 in `strides.csv`; empty if it has none.
        config: the operative gin config; None if the run had none.
        figures: the keys of `FIGURES` that the run has.
        audit: the tables of the run's audit; None if there was none.

    Returns:
        The text.
    """
    data = run["data"]
    height, width, channels = data["image_shape"]
    sections = [
        f"# {os.path.basename(place)}",
        f"A classifier of {height}x{width} images with {channels} channel{'s' * (channels > 1)}, trained on "
        f"`{data['name']}` with diffstride_hybrid at seed {run['seed']}. One run: no spread is known.",
        "## Results",
        _results(run, summary),
        "## Poolings",
        _poolings(summary["poolings"], strides_at_start),
        *(f"![{FIGURES[figure]}]({figure})" for figure in figures),
        *([] if audit is None else ["## Audit", audit.strip(), "![audit](figures/audit.png)"]),
        "## Data",
        *_data(data),
        "## Use",
        *_use(run, place, config),
        "## Made by",
        *_origin(run),
    ]
    if config is not None:
        sections.append(f"```\n{config.strip()}\n```")
    return "\n\n".join(sections) + "\n"


def _data(data: Mapping[str, Any]) -> list[str]:
    mean, std = (", ".join(f"{value:.4f}" for value in data[name]) for name in ("mean", "std"))
    return [
        f"{', '.join(f'{size:,} {split}' for split, size in data['split_sizes'].items())} images. Classes: "
        f"{', '.join(data['class_names'])}.",
        f"The network takes images scaled to 0..1, less {mean}, over {std}.",
    ]


def _use(run: Mapping[str, Any], place: str, config: str | None) -> list[str]:
    """How to load the model. The commands read the run's config, so a card without one has no commands."""
    snippet = (
        "```python\nimport diffstride_hybrid, keras\n\n"
        'model = keras.models.load_model("final.keras")  # after the last epoch; best.keras: best on validation\n```'
    )
    if config is None:
        return [snippet]
    enter, workdir, gin_file = "", ".", "operative_config.gin"
    if run.get("started_in") and _needs_where_it_was_started(run, config):  # Older runs do not say where.
        enter, workdir = f"cd {shlex.quote(run['started_in'])}\n", shlex.quote(place)
        gin_file = shlex.quote(os.path.join(place, gin_file))
    commands = (
        f"```bash\n{enter}"
        f"python -m diffstride_hybrid.evaluate --workdir={workdir}\n"
        f"python -m diffstride_hybrid.predict --workdir={workdir} IMAGE_FILES\n"
        f"python -m diffstride_hybrid.export --workdir={workdir} --format=litert --output=model.tflite\n"
        f"python -m diffstride_hybrid.train --gin_file={gin_file} --seed={run['seed']}  # again\n```"
    )
    return [snippet, commands]


def _needs_where_it_was_started(run: Mapping[str, Any], config: str) -> bool:
    """Whether a run needs something that is found from the folder in which it was started.

    That is images or prepared sets with a relative path, and modules that the config imports.
    """
    if re.search(r"^(import|from) ", config, re.MULTILINE):
        return True
    named = [run["data"]["name"]] if "files_digests" in run["data"] else []
    macros = dict(re.findall(rf"^([\w/]+) = {_TEXT}", config, re.MULTILINE))
    for macro, folder in re.findall(rf"load_datasets\.data_dir = (?:%([\w/]+)|{_TEXT})", config):
        named.append(macros.get(macro, folder))
    return any(name and "://" not in name and not os.path.isabs(os.path.expanduser(name)) for name in named)


def _origin(run: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{package} {version}" for package, version in run["versions"].items() if version)
    commit = f", at commit {run['commit']}" if run["commit"] else ""
    enter = f"cd {shlex.quote(run['started_in'])}\n" if run.get("started_in") else ""
    return [f"```bash\n{enter}{shlex.join(run['command'])}\n```", f"With {versions}{commit}."]


def _results(run: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    sizes, best = run["data"]["split_sizes"], summary["best_validation_accuracy"]
    facts = {
        "test accuracy, `final.keras`": f"{summary['test_accuracy']:.2%} of {sizes['test']:,} images",
        "test loss": f"{summary['test_loss']:.4f}",
        "validation accuracy, `best.keras`": f"{best:.2%} of {sizes['validation']:,} images"
        if best is not None
        else None,
        "MACs an image, convolutions and dense layers": f"{summary['macs']:,}",
        "MACs an image, budget": f"{summary['macs_budget']:,}" if "macs_budget" in summary else None,
        "MACs an image, poolings": f"{summary['pooling_macs']:,}",
        "parameters": f"{summary['parameters']:,}",
        "training": f"{summary['epochs']:,} epochs, {summary['steps']:,} steps, {summary['training_seconds']:,.0f} s",
        "precision": run["dtype_policy"],
        "devices": f"{', '.join(run['devices'])}; {run['strategy']}, {run['replicas']} replica(s)",
    }
    return markdown.table(["", ""], [[name, fact] for name, fact in facts.items() if fact is not None])


def _poolings(poolings: Sequence[Mapping[str, Any]], strides_at_start: Mapping[str, str]) -> str:
    if not poolings:
        return "None of this package."
    rows = []
    for pooling in poolings:
        layer, strides = pooling["layer"], pooling["strides"]
        start = [strides_at_start.get(f"{layer}/{way}_stride") for way in ("vertical", "horizontal")]
        before, after = ("x".join(map(str, pooling[size])) for size in ("input_size", "output_size"))
        learned = ["not known" if None in pair else _pair(pair) for pair in (start, strides)] if strides else []
        rows.append([f"`{layer}`", *(learned or ["fixed", "fixed"]), before, after])
    return markdown.table(["layer", "strides at the start", "strides at the end", "size before", "size after"], rows)


def _pair(strides: Sequence[float | str]) -> str:
    return ", ".join(f"{float(stride):.3f}" for stride in strides)
