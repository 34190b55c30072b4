"""The figures of an audit: as JSON, as Markdown, as a picture."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from diffstride_hybrid.audit.corruptions import SEVERITIES
from diffstride_hybrid.audit.poolings import PoolingAudit
from diffstride_hybrid.common import markdown


@dataclasses.dataclass(frozen=True)
class Audit:
    """The figures of an audit. Shares are from 0 to 1.

    Attributes:
        images: how many images were used.
        image_shape: (height, width, channels).
        labeled: whether labels were given. If not, the classes of the unchanged images take their place.
        seed: of shifts and noise.
        accuracy: share of images whose class is right; None without labels.
        consistency: by 'mirrored, whole' and so on: the share of pairs of shifted images that have the same class.
        worst_case_consistency: share of images that have one class at all shifts of up to 2 pixels.
        worst_case_accuracy: share of images whose class is right at all shifts of up to 2 pixels.
        corruptions: by kind: the share of right classes at each of `corruptions.SEVERITIES`.
        attacks: by strength of the fast gradient sign method: the share of right classes.
        without_gradient: share of images whose gradient is zero, so that the attacks do not change them.
        poolings: the figures of each layer that downsamples.
        macs: multiply-accumulate operations for an image, less those of poolings.
        pooling_macs: multiply-accumulate operations of poolings for an image.
        parameters: of the model.
        batch_size: the images of an inference whose memory was measured.
        milliseconds: by batch size: the time of an inference, from arrays to arrays.
        peak_megabytes: the memory that an inference needs beside the weights; None if the backend does not count it.
        subject: the model and the images, in words, for reports.
    """

    images: int
    image_shape: tuple[int, ...]
    labeled: bool
    seed: int
    accuracy: float | None
    consistency: Mapping[str, float]
    worst_case_consistency: float
    worst_case_accuracy: float
    corruptions: Mapping[str, list[float]]
    attacks: Mapping[str, float]
    without_gradient: float
    poolings: list[PoolingAudit]
    macs: int
    pooling_macs: int
    parameters: int
    batch_size: int
    milliseconds: Mapping[str, float]
    peak_megabytes: float | None
    subject: str = ""

    @property
    def mean_consistency(self) -> float:
        """Mean of the four figures of `consistency`."""
        return sum(self.consistency.values()) / len(self.consistency)

    @property
    def mean_corruption_accuracy(self) -> float:
        """Mean over kinds and severities of corruptions."""
        shares = [share for by_level in self.corruptions.values() for share in by_level]
        return sum(shares) / len(shares)

    @property
    def mean_aliased(self) -> float | None:
        """Mean of `aliased` over the layers that downsample; None if there are none."""
        return self._mean_of_poolings("aliased")

    @property
    def mean_energy_kept(self) -> float | None:
        """Mean of `energy_kept` over the poolings; None if there are none."""
        return self._mean_of_poolings("energy_kept")

    @property
    def mean_shift_error(self) -> float | None:
        """Mean of `shift_error` over the layers that downsample; None if there are none."""
        return self._mean_of_poolings("shift_error")

    def _mean_of_poolings(self, name: str) -> float | None:
        shares = [share for pooling in self.poolings if (share := getattr(pooling, name)) is not None]
        return sum(shares) / len(shares) if shares else None

    def to_json(self) -> str:
        """The figures as JSON, with the poolings as objects.

        Returns:
            A text that ends in a line break.
        """
        values = dataclasses.asdict(self) | {"poolings": [pooling._asdict() for pooling in self.poolings]}
        return json.dumps(values, indent=2) + "\n"

    def to_markdown(self) -> str:
        """The figures as tables.

        Returns:
            Markdown, without headings, that ends in a line break.
        """
        return markdown_of(json.loads(self.to_json()))


def markdown_of(values: Mapping[str, Any]) -> str:
    """The tables of an audit.

    Args:
        values: as `Audit.to_json` writes them.

    Returns:
        Markdown, without headings, that ends in a line break.
    """
    height, width, channels = values["image_shape"]
    right, worst = "accuracy" if values["labeled"] else "share that keeps its class", values["worst_case_accuracy"]
    times = ", ".join(f"{ms:.1f} ms at batch {size}" for size, ms in values["milliseconds"].items())
    unmoved = values["without_gradient"]
    facts = [
        *([["audited", values["subject"]]] if values["subject"] else []),
        ["images", f"{values['images']:,} of {height}x{width}x{channels}, seed {values['seed']}"],
        *([["accuracy", _percent(values["accuracy"])]] if values["labeled"] else []),
        *(
            [f"consistency under shifts, {name} pixels", _percent(share)]
            for name, share in values["consistency"].items()
        ),
        ["one class at all shifts of up to 2 pixels", _percent(values["worst_case_consistency"])],
        *([["accuracy at all shifts of up to 2 pixels", _percent(worst)]] if values["labeled"] else []),
        *([f"{right} under FGSM, {strength}", _percent(share)] for strength, share in values["attacks"].items()),
        *([["images without a gradient, which FGSM leaves as they are", _percent(unmoved)]] if unmoved else []),
        ["MACs an image, convolutions and dense layers", f"{values['macs']:,}"],
        ["MACs an image, poolings", f"{values['pooling_macs']:,}"],
        ["parameters", f"{values['parameters']:,}"],
        ["inference, on the machine of the audit", times],
    ]
    if values["peak_megabytes"] is not None:
        facts.append([f"memory of an inference at batch {values['batch_size']}", f"{values['peak_megabytes']:.1f} MB"])
    by_kind = [[kind, *map(_percent, shares)] for kind, shares in values["corruptions"].items()]
    sections = [
        markdown.table(["", ""], facts),
        markdown.table([f"{right} under", *(f"severity {level}" for level in SEVERITIES)], by_kind),
    ]
    if values["poolings"]:
        head = ["layer", "class", "size before", "size after", "energy kept", "aliased", "shift error"]
        sections.append(markdown.table(head, map(_pooling_row, values["poolings"])))
    return "\n\n".join(sections) + "\n"


def _pooling_row(pooling: Mapping[str, Any]) -> list[str]:
    sizes = ["x".join(map(str, pooling[name])) for name in ("size_before", "size_after")]
    figures = [pooling[name] for name in ("energy_kept", "aliased", "shift_error")]
    texts = ["" if figure is None else _percent(figure) for figure in figures]
    return [f"`{pooling['layer']}`", pooling["kind"], *sizes, *texts]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def figure_of(values: Mapping[str, Any]) -> Any:
    """Draws an audit: what shifts, corruptions and attacks leave, and what the poolings keep.

    Args:
        values: as `Audit.to_json` writes them.

    Returns:
        A `matplotlib.figure.Figure`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.2), layout="constrained")
    shift_axis, corruption_axis, pooling_axis = figure.subplots(1, 3, width_ratios=[1, 1.3, 1.2])
    right = "accuracy" if values["labeled"] else "class unchanged"

    shown = {name.replace(", ", "\n"): share for name, share in values["consistency"].items()}
    shown["all shifts\nup to 2"] = values["worst_case_consistency"]
    shift_axis.barh(list(shown), [100 * share for share in shown.values()], color="#0072B2")
    shift_axis.set(xlabel="same class (%)", xlim=(0, 100), title="Under shifts")
    shift_axis.invert_yaxis()

    colors = ("#56B4E9", "#0072B2", "#000000")
    kinds = list(values["corruptions"])
    for level, (severity, color) in enumerate(zip(SEVERITIES, colors)):
        places = [i + 0.25 * (level - 1) for i in range(len(kinds))]
        shares = [100 * values["corruptions"][kind][level] for kind in kinds]
        corruption_axis.bar(places, shares, 0.23, color=color, label=f"severity {severity}")
    names = [f"FGSM\n{strength}" for strength in values["attacks"]]
    places = [len(kinds) + i for i in range(len(names))]
    corruption_axis.bar(places, [100 * share for share in values["attacks"].values()], 0.5, color="#D55E00")
    if values["labeled"]:
        corruption_axis.axhline(100 * values["accuracy"], color="gray", ls="--", lw=1)
    corruption_axis.set_xticks(range(len(kinds) + len(names)), [*kinds, *names], fontsize=8, rotation=40)
    corruption_axis.set(ylabel=f"{right} (%)", ylim=(0, 100), title="Under corruptions and attacks")
    corruption_axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3, frameon=False)

    _draw_poolings(pooling_axis, values["poolings"])
    for axis in (shift_axis, corruption_axis, pooling_axis):
        axis.grid(alpha=0.3)
        axis.set_axisbelow(True)
    return figure


def _draw_poolings(axis: Any, poolings: list[Mapping[str, Any]]) -> None:
    axis.set_title("Layers that downsample")
    if not poolings:
        axis.text(0.5, 0.5, "none", ha="center", va="center", transform=axis.transAxes)
        return
    series = (("energy_kept", "energy kept", "#009E73"), ("aliased", "aliased", "#D55E00"))
    series += (("shift_error", "shift error", "#CC79A7"),)
    for i, (name, label, color) in enumerate(series):
        rows = [
            (row + 0.27 * (i - 1), 100 * pooling[name])
            for row, pooling in enumerate(poolings)
            if pooling[name] is not None
        ]
        axis.barh([row for row, _ in rows], [share for _, share in rows], 0.25, color=color, label=label)
    axis.set_yticks(
        range(len(poolings)), [pooling["layer"].replace("/pooling", "") for pooling in poolings], fontsize=8
    )
    axis.set(xlabel="share of energy (%)")
    axis.invert_yaxis()
    axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=3, frameon=False)
