"""The Markdown tables of a study, made from the rows of its CSV file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from experiments.records import Row
from experiments.study import Study, format_strides

MEASURES = {"test": "test_accuracy", "validation": "validation_accuracy"}


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
        if of_data:
            parts.append(accuracy_table(study, data, of_data))
            if study.baseline is not None:
                parts.append(difference_table(study, of_data))
    return "\n\n".join(parts)


def accuracy_table(study: Study, data: str, rows: Sequence[Row]) -> str:
    """Accuracy and MACs of each method: a column for each variant or for each choice of strides, and their mean.

    Args:
        study: which study.
        data: name of the data set.
        rows: of the finished runs on it.

    Returns:
        Markdown.
    """
    column, names = _columns(study)
    published = {method.name: study.published.get((data, method.name), "") for method in study.methods}
    head = ["method", *(_title(column, name) for name in names)]
    has_mean = column == "strides" and len(names) > 1
    head += ["mean"] * has_mean + ["runs", "parameters"] + ["published"] * any(published.values())
    lines = [head, ["---"] * len(head)]
    for method in study.methods:
        of_method = [row for row in rows if row["method"] == method.name]
        if not of_method:
            continue
        cells = [[row for row in of_method if row[column] == name] for name in names]
        line = [f"`{method.name}`", *(_cell(study, cell) for cell in cells)]
        if has_mean:
            line.append(_accuracy(study, of_method))
        line += [str(len(of_method)), _span(of_method, "parameters", lambda value: f"{value:,.0f}")]
        lines.append(line + [published[method.name] or "none"] * any(published.values()))
    return _markdown(lines)


def difference_table(study: Study, rows: Sequence[Row]) -> str:
    """Each method less the study's baseline, pair by pair: runs of the same strides, variant and seed.

    Args:
        study: which study.
        rows: of the finished runs on one data set.

    Returns:
        Markdown.
    """
    column, names = _columns(study)
    head = ["method", *(_title(column, name) for name in names), *["all"] * (len(names) > 1), "pairs"]
    lines = [[f"{head[0]} less `{study.baseline}`", *head[1:]], ["---"] * len(head)]
    for method in study.methods:
        if method.name == study.baseline:
            continue
        pairs = _paired(study, rows, method.name)
        if not pairs:
            continue
        line = [f"`{method.name}`"]
        line += [_spread([pair for place, pair in pairs if place == name], signed=True) for name in names]
        line += [_spread([pair for _, pair in pairs], signed=True)] * (len(names) > 1)
        lines.append([*line, str(len(pairs))])
    return _markdown(lines)


def _paired(study: Study, rows: Sequence[Row], method: str) -> list[tuple[str, float]]:
    """Differences in points to the baseline, each with its column."""
    column, _ = _columns(study)
    measure = MEASURES[study.measure]
    baseline = {(row["variant"], row["strides"], row["seed"]): row for row in rows if row["method"] == study.baseline}
    pairs = []
    for row in rows:
        partner = baseline.get((row["variant"], row["strides"], row["seed"]))
        if row["method"] == method and partner is not None:
            pairs.append((row[column], 100 * (float(row[measure]) - float(partner[measure]))))
    return pairs


def _columns(study: Study) -> tuple[str, list[str]]:
    """What the columns of a study's tables are: the axis of its grid that has more than one entry."""
    if len(study.variants) > 1:
        return "variant", [variant.name for variant in study.variants]
    return "strides", [format_strides(strides) for strides in study.strides]


def _title(column: str, name: str) -> str:
    return f"strides {name}" if column == "strides" else name


def _cell(study: Study, rows: Sequence[Row]) -> str:
    if not rows:
        return "not run"
    return f"{_accuracy(study, rows)}, {_span(rows, 'macs', lambda value: f'{value / 1e9:.4f}')} G"


def _accuracy(study: Study, rows: Sequence[Row]) -> str:
    return _spread([100 * float(row[MEASURES[study.measure]]) for row in rows]) + " %"


def _spread(values: Sequence[float], signed: bool = False) -> str:
    """Mean and standard deviation, the latter where there is more than one value."""
    if not values:
        return "not run"
    mean = f"{statistics.fmean(values):{'+' if signed else ''}.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def _span(rows: Sequence[Mapping[str, str]], column: str, form: object) -> str:
    """One value, or the least and the greatest where they differ."""
    texts = [form(value) for value in sorted(float(row[column]) for row in rows)]
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
