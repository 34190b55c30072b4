"""The Markdown tables of a study, made from the rows of its CSV file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from diffstride_hybrid.common import markdown
from experiments.spread import spread
from experiments.studies.records import Row
from experiments.studies.study import MEASURES, Study, column_title

NO_RUNS = "not run"


def tables(study: Study, rows: Sequence[Row]) -> str:
    """Makes a table for each data set, and below it the differences to the baseline if the study has one.

    Args:
        study: the study whose runs the rows describe.
        rows: of the finished runs, as `records.record` returns them.

    Returns:
        Markdown tables.
    """
    parts = []
    for data in study.data:
        of_data = [row for row in rows if row["data"] == data]
        if not of_data:
            continue
        if len(study.data) > 1:
            parts.append(f"**{data}**")
        parts.append(accuracy_table(study, data, of_data))
        if study.baseline is not None:
            parts.append(difference_table(study, of_data))
    return "\n\n".join(parts)


def accuracy_table(study: Study, data: str, rows: Sequence[Row]) -> str:
    """Compares the accuracy and the MACs of the methods: a column for each choice of strides or for each variant.

    The MACs are those of convolutions and dense layers for one image after training, as a mean over the runs. A second
    figure after a plus sign is the MACs of the poolings. The column 'mean' averages over the choices of strides, for
    the seeds that have run with all of them; its deviation is the one between seeds. The column 'training' is the mean
    time of a run's training, if the study is timed.

    Args:
        study: the study whose methods, strides and variants the table has.
        data: name of the data set.
        rows: of the finished runs on this data set.

    Returns:
        A Markdown table with a row for each method that has a run.
    """
    axis, values = study.columns()
    published = {method.name: study.published.get((data, method.name), "") for method in study.methods}
    has_mean, has_published = axis == "strides" and len(values) > 1, any(published.values())
    head = ["method", *(column_title(axis, value) for value in values)]
    head += ["mean"] * has_mean + ["runs", "parameters"] + ["training"] * study.timed + ["published"] * has_published
    lines = []
    for method in study.methods:
        of_method = [row for row in rows if row["method"] == method.name]
        if not of_method:
            continue
        cells = [[row for row in of_method if row[axis] == value] for value in values]
        line = [f"`{method.name}`", *(_cell(study, cell) for cell in cells)]
        line += [_mean_over_columns(study, cells)] * has_mean
        line += [_counts(cells), _span_of_parameters(of_method)]
        line += [f"{statistics.fmean(float(row['training_seconds']) for row in of_method) / 60:.1f} min"] * study.timed
        lines.append(line + [published[method.name] or "none"] * has_published)
    return markdown.table(head, lines)


def difference_table(study: Study, rows: Sequence[Row]) -> str:
    """Compares each method with the study's baseline, between runs of the same strides, variant and seed.

    Args:
        study: a study with a baseline.
        rows: of the finished runs on one data set.

    Returns:
        A Markdown table of differences in percentage points, with a row for each method that shares runs with the
        baseline.
    """
    axis, values = study.columns()
    head = [f"method less `{study.baseline}`", *(column_title(axis, value) for value in values)]
    head += [*["mean"] * (len(values) > 1), "pairs"]
    lines = []
    for method in study.methods:
        if method.name == study.baseline:
            continue
        pairs = _paired(study, rows, method.name)
        if not any(pairs.values()):
            continue
        columns = [pairs[value] for value in values]
        samples = [list(column.values()) for column in columns] + [_means_of_seeds(columns)] * (len(values) > 1)
        cells = [spread(sample, signed=True) if sample else NO_RUNS for sample in samples]
        lines.append([f"`{method.name}`", *cells, str(sum(map(len, columns)))])
    return markdown.table(head, lines)


def _paired(study: Study, rows: Sequence[Row], method: str) -> dict[str, dict[str, float]]:
    """Differences in points to the baseline: by column of the table, and by seed."""
    axis, values = study.columns()
    measure = MEASURES[study.measure]
    baseline = {(row["variant"], row["strides"], row["seed"]): row for row in rows if row["method"] == study.baseline}
    pairs: dict[str, dict[str, float]] = {value: {} for value in values}
    for row in rows:
        partner = baseline.get((row["variant"], row["strides"], row["seed"]))
        if row["method"] == method and partner is not None:
            pairs[row[axis]][row["seed"]] = 100 * (float(row[measure]) - float(partner[measure]))
    return pairs


def _cell(study: Study, rows: Sequence[Row]) -> str:
    if not rows:
        return NO_RUNS
    accuracy = spread([100 * float(row[MEASURES[study.measure]]) for row in rows])
    macs, poolings = (
        f"{statistics.fmean(float(row[column]) for row in rows) / 1e6:,.1f} M" for column in ("macs", "pooling_macs")
    )
    return f"{accuracy} %, {macs}" + f" + {poolings}" * (poolings != "0.0 M")


def _mean_over_columns(study: Study, cells: Sequence[Sequence[Row]]) -> str:
    accuracies = [{row["seed"]: 100 * float(row[MEASURES[study.measure]]) for row in cell} for cell in cells]
    means = _means_of_seeds(accuracies)
    return f"{spread(means)} %" if means else NO_RUNS


def _means_of_seeds(columns: Sequence[Mapping[str, float]]) -> list[float]:
    """The mean over all columns for each seed that every column has, so that their deviation is that of the seeds."""
    seeds = [seed for seed in columns[0] if all(seed in column for column in columns)]
    return [statistics.fmean(column[seed] for column in columns) for seed in seeds]


def _counts(cells: Sequence[Sequence[Row]]) -> str:
    """How many runs each cell averages: '3 x 4' for three cells of four runs, '4 + 3' for unequal cells."""
    counts = sorted({len(cell) for cell in cells})
    return f"{len(cells)} x {counts[0]}" if len(counts) == 1 else " + ".join(str(len(cell)) for cell in cells)


def _span_of_parameters(rows: Sequence[Mapping[str, str]]) -> str:
    """How many parameters the networks have: one number, or the least and the greatest if they differ."""
    texts = [f"{value:,.0f}" for value in sorted(float(row["parameters"]) for row in rows)]
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"
