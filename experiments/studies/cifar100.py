"""As the study cifar10, on CIFAR-100."""

from experiments.published import means_over_strides
from experiments.study import PAPER_METHODS, PAPER_STRIDES, Study

STUDY = Study(
    name="cifar100",
    purpose="The papers' comparison on CIFAR-100.",
    methods=PAPER_METHODS,
    data=("cifar100",),
    strides=PAPER_STRIDES,
    seeds=(1, 2, 3),
    baseline="diffstride",
    published=means_over_strides("cifar100"),
)
