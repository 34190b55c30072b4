"""As the study cifar10, on CIFAR-100."""

import dataclasses

from experiments.published import means_over_strides
from experiments.studies import cifar10

STUDY = dataclasses.replace(
    cifar10.STUDY,
    name="cifar100",
    purpose="The papers' comparison on CIFAR-100.",
    data=("cifar100",),
    published=means_over_strides("cifar100"),
)
