"""The papers' comparison on CIFAR-10: five methods, two matched baselines, six choices of strides, three seeds."""

from experiments.studies.published import means_over_strides
from experiments.studies.study import PAPER_METHODS, PAPER_STRIDES, Study

STUDY = Study(
    name="cifar10",
    purpose="The papers' comparison on CIFAR-10.",
    methods=PAPER_METHODS,
    data=("cifar10",),
    strides=PAPER_STRIDES,
    seeds=(1, 2, 3),
    baseline="diffstride",
    published=means_over_strides("cifar10"),
)
