"""The Markdown tables of a study, made from the rows of its CSV file."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from experiments.studies.records import Row
from experiments.studies.study import MEASURES, Study, column_title


def tables(study: Study, rows: Sequence[Row]) -> str:
    """A table for each data set, and where the study has a baseline one of the differences to it.

    Args:
        study: which study.
        rows: of its finished runs.

    Returns:
        Markdown.
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
    """Accuracy and MACs of each method: a column for each variant or for each choice of strides, and their mean.

    MACs are those of convolutions and dense layers for one image after training, the mean over the runs, and those of
    the poolings after a plus. The mean in the last column but two is over the choices of strides, for the seeds that
    have all of them, and its deviation that of the seeds.

    Args:
        study: which study.
        data: name of the data set.
        rows: of the finished runs on it.

    Returns:
        Markdown.
    """
    axis, values = study.columns()
    published = {method.name: study.published.get((data, method.name), "") for method in study.methods}
    has_mean, has_published = axis == "strides" and len(values) > 1, any(published.values())
    head = ["method", *(column_title(axis, value) for value in values)]
    head += ["mean"] * has_mean + ["runs", "parameters"] + ["published"] * has_published
    lines = [head, ["---"] * len(head)]
    for method in study.methods:
        of_method = [row for row in rows if row["method"] == method.name]
        if not of_method:
            continue
        cells = [[row for row in of_method if row[axis] == value] for value in values]
        line = [f"`{method.name}`", *(_cell(study, cell) for cell in cells)]
        line += [_mean_over_columns(study, cells)] * has_mean
        line += [_counts(cells), _span(of_method, "parameters", lambda value: f"{value:,.0f}")]
        lines.append(line + [published[method.name] or "none"] * has_published)
    return _markdown(lines)


def difference_table(study: Study, rows: Sequence[Row]) -> str:
    """Each method less the study's baseline, pair by pair: runs of the same strides, variant and seed.

    Args:
        study: which study.
        rows: of the finished runs on one data set.

    Returns:
        Markdown.
    """
    axis, values = study.columns()
    head = ["method", *(column_title(axis, value) for value in values), *["all"] * (len(values) > 1), "pairs"]
    lines = [[f"{head[0]} less `{study.baseline}`", *head[1:]], ["---"] * len(head)]
    for method in study.methods:
        if method.name == study.baseline:
            continue
        pairs = _paired(study, rows, method.name)
        if not pairs:
            continue
        line = [f"`{method.name}`"]
        line += [_spread([pair for place, pair in pairs if place == value], signed=True) for value in values]
        line += [_spread([pair for _, pair in pairs], signed=True)] * (len(values) > 1)
        lines.append([*line, str(len(pairs))])
    return _markdown(lines)


def _paired(study: Study, rows: Sequence[Row], method: str) -> list[tuple[str, float]]:
    """Differences in points to the baseline, each with its column."""
    axis, _ = study.columns()
    measure = MEASURES[study.measure]
    baseline = {(row["variant"], row["strides"], row["seed"]): row for row in rows if row["method"] == study.baseline}
    pairs = []
    for row in rows:
        partner = baseline.get((row["variant"], row["strides"], row["seed"]))
        if row["method"] == method and partner is not None:
            pairs.append((row[axis], 100 * (float(row[measure]) - float(partner[measure]))))
    return pairs


def _cell(study: Study, rows: Sequence[Row]) -> str:
    if not rows:
        return "not run"
    macs, poolings = (
        f"{statistics.fmean(float(row[column]) for row in rows) / 1e6:,.1f} M" for column in ("macs", "pooling_macs")
    )
    return f"{_accuracy(study, rows)}, {macs}" + f" + {poolings}" * (poolings != "0.0 M")


def _accuracy(study: Study, rows: Sequence[Row]) -> str:
    return _spread([100 * float(row[MEASURES[study.measure]]) for row in rows]) + " %"


def _mean_over_columns(study: Study, cells: Sequence[Sequence[Row]]) -> str:
    accuracies = [{row["seed"]: 100 * float(row[MEASURES[study.measure]]) for row in cell} for cell in cells]
    seeds = [seed for seed in accuracies[0] if all(seed in column for column in accuracies)]
    means = [statistics.fmean(column[seed] for column in accuracies) for seed in seeds]
    return f"{_spread(means)} %" if means else "not run"


def _counts(cells: Sequence[Sequence[Row]]) -> str:
    """How many runs each figure is made of."""
    counts = sorted({len(cell) for cell in cells})
    return f"{len(cells)} x {counts[0]}" if len(counts) == 1 else " + ".join(str(len(cell)) for cell in cells)


def _spread(values: Sequence[float], signed: bool = False) -> str:
    """Mean and standard deviation, the latter where there is more than one value."""
    if not values:
        return "not run"
    mean = f"{statistics.fmean(values):{'+' if signed else ''}.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _span(rows: Sequence[Mapping[str, str]], column: str, form: Callable[[float], str]) -> str:
    """One value, or the least and the greatest where they differ."""
    texts = [form(value) for value in sorted(float(row[column]) for row in rows)]
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
