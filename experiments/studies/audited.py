"""Audits of a study's runs: rows of a CSV file, a table of the methods, a figure."""

from __future__ import annotations

import itertools
import pathlib
import statistics
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from diffstride_hybrid.audit.report import Audit
from diffstride_hybrid.common import markdown
from diffstride_hybrid.runs.figures import COLORS
from experiments.spread import spread
from experiments.studies.drawings import MARKERS, label_plainly
from experiments.studies.records import (
    KEY,
    Row,
    commit_of,
    config_of,
    key_of,
    key_of_row,
    present_rows,
    read_whole_rows,
)
from experiments.studies.study import Cell, Study

STUDIES = ("fashion_mnist_small", "cifar_small", "cifar100_small")
"""The studies whose audits stand in the results."""

SHARES = {
    "accuracy": "accuracy",
    "consistency": "one class under two shifts",
    "worst_case": "one class at 25 shifts",
    "energy_kept": "energy kept",
    "aliased": "aliased",
    "shift_error": "shift error",
    "corruptions": "accuracy, corruptions",
    "fgsm_1": "accuracy, FGSM 1/255",
    "fgsm_4": "accuracy, FGSM 4/255",
}
"""The columns of the CSV file that the table shows, with their titles there."""

DRAWN = {
    "consistency": "same class under two random shifts (%)",
    "aliased": "energy of the output that is aliased (%)",
    "corruptions": "accuracy under corruptions (%)",
    "fgsm_1": "accuracy under FGSM, 1/255 (%)",
}


def audits_path(study: Study, results: pathlib.Path) -> pathlib.Path:
    """Returns the path of the CSV file with a row for each audited run, in the folder `results`."""
    return results / f"{study.name}_audits.csv"


def row_of(cell: Cell, audit: Audit, commit: str) -> dict[str, str]:
    """Writes the audit of a run as a row.

    Args:
        cell: the run.
        audit: of its final model, with labels.
        commit: of the code that trained the run.

    Returns:
        The row: shares from 0 to 1. Those of poolings are means over the calls of all layers that downsample, those of
        corruptions over the severities.
    """
    shares = {
        "accuracy": audit.accuracy,
        "consistency": audit.mean_consistency,
        **{name.replace(", ", "_"): share for name, share in audit.consistency.items()},
        "worst_case": audit.worst_case_consistency,
        "worst_case_accuracy": audit.worst_case_accuracy,
        "energy_kept": audit.mean_energy_kept,
        "aliased": audit.mean_aliased,
        "shift_error": audit.mean_shift_error,
        "corruptions": audit.mean_corruption_accuracy,
        **{kind: statistics.fmean(by_level) for kind, by_level in audit.corruptions.items()},
        **{f"fgsm_{strength.split('/')[0]}": share for strength, share in audit.attacks.items()},
    }
    texts = {name: "" if share is None else f"{share:.5f}" for name, share in shares.items()}
    counts = {"macs": audit.macs, "pooling_macs": audit.pooling_macs, "parameters": audit.parameters}
    return {
        **dict(zip(KEY, key_of(cell))),
        "images": str(audit.images),
        **texts,
        **{name: str(n) for name, n in counts.items()},
        "commit": commit,
        "config": config_of(cell),
    }


def still_valid(rows: Sequence[Row], study: Study, runs: str, images: int) -> list[Row]:
    """Leaves out the rows of runs that have changed since they were audited.

    Args:
        rows: of the CSV file.
        study: of the runs.
        runs: the folder that holds a folder for each study.
        images: how many images each row must have been made of.

    Returns:
        The rows of the study's cells with their present configs. If the folder of a run is there, it must be of the
        commit that the row names.

    Raises:
        ValueError: a row of a run whose folder is missing was made of another number of images.
        OSError: a file of a run is damaged.
    """
    cells = {key_of(cell): cell for cell in study.cells()}
    valid = []
    for row in present_rows(study, rows):
        cell = cells[key_of_row(row)]
        is_here = cell.is_finished(runs)
        if is_here and (row["images"] != str(images) or row["commit"] != commit_of(cell, runs)):
            continue
        if row["images"] != str(images):
            raise ValueError(
                f"The audit of {cell.name} was made of {row['images']} images and its run is missing in {runs}: give "
                f"--images={row['images']}, or remove its row."
            )
        valid.append(row)
    return valid


def table(study: Study, rows: Sequence[Row]) -> str:
    """Compares the methods: means over the seeds with standard deviations.

    A line shows one method at one choice of strides, or at one variant.

    Args:
        study: whose runs were audited.
        rows: of the CSV file.

    Returns:
        A Markdown table. The MACs are those of convolutions and dense layers, and after a plus sign those of poolings.
    """
    lines = []
    for place, method, runs in _groups(study, rows):
        macs, pooling_macs = (
            statistics.fmean(float(row[name]) for row in runs) / 1e6 for name in ("macs", "pooling_macs")
        )
        cost = f"{macs:.1f} M" + (f" + {pooling_macs:.1f} M" if pooling_macs >= 0.05 else "")
        shares = [_spread([row[name] for row in runs]) for name in SHARES]
        lines.append([place, f"`{method}`", *shares, cost, str(len(runs))])
    return markdown.table([study.columns()[0], "method", *SHARES.values(), "MACs", "runs"], lines)


def _spread(texts: Sequence[str]) -> str:
    return f"{spread([100 * float(text) for text in texts])} %" if all(texts) else ""


def _groups(study: Study, rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    """The rows of each place and each method, in the order of the study.

    A place is a choice of strides, or a variant, with the data set before it if the study has several.
    """
    axis, values = study.columns()
    groups = []
    for data, value, method in itertools.product(study.data, values, study.methods):
        wanted = {"data": data, axis: value, "method": method.name}
        if runs := [row for row in rows if wanted.items() <= row.items()]:
            groups.append((f"{data}, {value}" if len(study.data) > 1 else value, method.name, runs))
    return groups


def standing_tables(studies: Mapping[str, Study], results: pathlib.Path) -> dict[str, str]:
    """Makes the tables of all audits from their CSV files.

    Args:
        studies: by name.
        results: the folder of the CSV files.

    Returns:
        Markdown tables by name, such as 'cifar_small_audits', of the studies that have such a file.

    Raises:
        ValueError: a file has no row of the present version of its study.
    """
    tables = {}
    for name, study in studies.items():
        path = audits_path(study, results)
        if not path.exists():
            continue
        rows = present_rows(study, read_whole_rows(path))
        if not rows:
            raise ValueError(f"{path} has no run of the present study: start python -m experiments.audits for it.")
        tables[f"{name}_audits"] = table(study, rows)
    return tables


def drawing(study: Study, rows: Sequence[Row]) -> Figure:
    """Draws four shares against the MACs of an image, poolings included: means with standard deviations.

    Args:
        study: whose runs were audited.
        rows: of the CSV file.

    Returns:
        A figure in which the color shows the method, and the marker the strides or the variant.
    """
    figure = Figure(figsize=(11, 8), layout="constrained")
    groups = _groups(study, rows)
    colors = dict(zip(dict.fromkeys(method for _, method, _ in groups), itertools.cycle(COLORS)))
    markers = dict(zip(dict.fromkeys(place for place, _, _ in groups), itertools.cycle(MARKERS)))
    for axes, (name, title) in zip(figure.subplots(2, 2).flat, DRAWN.items()):
        for place, method, runs in groups:
            shares = [100 * float(row[name]) for row in runs if row[name]]
            if not shares:
                continue
            axes.errorbar(
                statistics.fmean((float(row["macs"]) + float(row["pooling_macs"])) / 1e6 for row in runs),
                statistics.fmean(shares),
                yerr=statistics.stdev(shares) if len(shares) > 1 else None,
                color=colors[method],
                marker=markers[place],
                markersize=8,
                capsize=3,
                linestyle="none",
            )
        axes.set(xlabel="million MACs an image, with poolings", ylabel=title, xscale="log")
        label_plainly(axes.xaxis)
        axes.grid(alpha=0.3)
    for method, color in colors.items():
        axes.plot([], [], color=color, marker="s", linestyle="none", label=method)
    for place, marker in markers.items():
        axes.plot([], [], color="0.4", marker=marker, linestyle="none", label=f"{study.columns()[0]} {place}")
    figure.legend(loc="outside lower center", ncols=5, fontsize=9)
    return figure
