"""Test accuracies that others have published for these methods with a ResNet-18, in percent."""

from __future__ import annotations

from typing import NamedTuple

from diffstride_hybrid.common import markdown

ICLR = "Riad et al., ICLR 2022"

RELEASE = "README of the DiffStride release"

HYBRID = "arXiv 2401.09008"

SIX, SEVERAL = "mean of six", "mean of several"


class Figure(NamedTuple):
    """The accuracies of one method in one publication.

    Attributes:
        source: the publication.
        method: the downsampling.
        strides: of the last three blocks before training; `SIX` for the mean over `study.PAPER_STRIDES`; `SEVERAL` for
            a mean over choices whose number the source does not give.
        cifar10: accuracy on CIFAR-10 in percent, with its standard deviation if the source gives one.
        cifar100: accuracy on CIFAR-100, in the same form.
    """

    source: str
    method: str
    strides: str
    cifar10: str
    cifar100: str


FIGURES = (
    Figure(ICLR, "strided", "2,2,2", "91.4 ± 0.2", "66.8 ± 0.2"),
    Figure(ICLR, "spectral", "2,2,2", "92.4 ± 0.1", "73.7 ± 0.1"),
    Figure(ICLR, "diffstride", "2,2,2", "92.5 ± 0.1", "73.4 ± 0.5"),
    Figure(ICLR, "strided", "2,2,3", "90.5 ± 0.1", "63.4 ± 0.5"),
    Figure(ICLR, "spectral", "2,2,3", "92.2 ± 0.2", "73.7 ± 0.2"),
    Figure(ICLR, "diffstride", "2,2,3", "92.8 ± 0.1", "73.5 ± 0.0"),
    Figure(ICLR, "strided", "1,3,1", "90.0 ± 0.4", "64.9 ± 0.5"),
    Figure(ICLR, "spectral", "1,3,1", "91.1 ± 0.1", "70.3 ± 0.3"),
    Figure(ICLR, "diffstride", "1,3,1", "92.4 ± 0.1", "73.4 ± 0.2"),
    Figure(ICLR, "strided", "3,1,3", "85.7 ± 0.1", "55.3 ± 0.8"),
    Figure(ICLR, "spectral", "3,1,3", "90.9 ± 0.2", "69.4 ± 0.4"),
    Figure(ICLR, "diffstride", "3,1,3", "92.4 ± 0.1", "73.7 ± 0.4"),
    Figure(ICLR, "strided", "3,1,2", "86.4 ± 0.1", "56.2 ± 0.3"),
    Figure(ICLR, "spectral", "3,1,2", "90.9 ± 0.2", "69.9 ± 0.2"),
    Figure(ICLR, "diffstride", "3,1,2", "92.3 ± 0.1", "73.4 ± 0.3"),
    Figure(ICLR, "strided", "3,2,3", "82.0 ± 0.6", "48.2 ± 0.2"),
    Figure(ICLR, "spectral", "3,2,3", "89.2 ± 0.2", "66.6 ± 0.5"),
    Figure(ICLR, "diffstride", "3,2,3", "92.3 ± 0.1", "73.6 ± 0.4"),
    Figure(ICLR, "strided", SIX, "87.7 ± 3.4", "59.1 ± 6.7"),
    Figure(ICLR, "spectral", SIX, "91.1 ± 1.1", "70.6 ± 2.6"),
    Figure(ICLR, "diffstride", SIX, "92.4 ± 0.2", "73.5 ± 0.3"),
    Figure(RELEASE, "strided", "2,2,2", "91.06 ± 0.04", "65.75 ± 0.39"),
    Figure(RELEASE, "spectral", "2,2,2", "93.49 ± 0.05", "72.86 ± 0.23"),
    Figure(RELEASE, "diffstride", "2,2,2", "94.20 ± 0.06", "76.08 ± 0.23"),
    Figure(RELEASE, "strided", "3,2,3", "89.21 ± 0.27", "60.82 ± 0.42"),
    Figure(RELEASE, "spectral", "3,2,3", "92.00 ± 0.08", "67.74 ± 0.43"),
    Figure(RELEASE, "diffstride", "3,2,3", "94.19 ± 0.15", "76.09 ± 0.06"),
    Figure(HYBRID, "diffstride", SEVERAL, "92.4", "70.6"),
    Figure(HYBRID, "hybrid", SEVERAL, "93.34", "73.82"),
)


def means_over_strides(data: str) -> dict[tuple[str, str], str]:
    """Collects the published means over all six choices of strides, for the tables of a study.

    Args:
        data: 'cifar10' or 'cifar100'.

    Returns:
        The accuracy that each method's own paper reports, by data set and method.
    """
    return {
        (data, figure.method): f"{getattr(figure, data)} %"
        for figure in FIGURES
        if (figure.source == ICLR and figure.strides == SIX) or figure.method == "hybrid"
    }


def table() -> str:
    """Returns all published accuracies as a Markdown table."""
    head = ("source", "method", "strides at the start", "CIFAR-10 (%)", "CIFAR-100 (%)")
    return markdown.table(head, [figure._replace(method=f"`{figure.method}`") for figure in FIGURES])
