"""The study cifar_small on CIFAR-100: four methods, two seeds. The learning rates are those found on CIFAR-10."""

import dataclasses

from experiments.studies.grids import cifar_small

_METHODS = ("strided", "spectral", "diffstride", "hybrid")

STUDY = dataclasses.replace(
    cifar_small.STUDY,
    name="cifar100_small",
    purpose="Does DiffStride hold its accuracy from poor strides on CIFAR-100, and does the hybrid differ?",
    methods=tuple(method for method in cifar_small.STUDY.methods if method.name in _METHODS),
    data=("cifar100",),
    seeds=(1, 2),
)
