"""The study cifar10 on CIFAR-100."""

import dataclasses

from experiments.studies.grids import cifar10
from experiments.studies.published import means_over_strides

STUDY = dataclasses.replace(
    cifar10.STUDY,
    name="cifar100",
    purpose="The papers' comparison on CIFAR-100.",
    data=("cifar100",),
    published=means_over_strides("cifar100"),
)
