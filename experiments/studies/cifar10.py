"""The papers' comparison on CIFAR-10: five methods, two matched baselines, six choices of strides, three seeds."""

from experiments.study import PAPER_METHODS, PAPER_STRIDES, Study

STUDY = Study(
    name="cifar10",
    purpose="The papers' comparison on CIFAR-10.",
    methods=PAPER_METHODS,
    data=("cifar10",),
    strides=PAPER_STRIDES,
    seeds=(1, 2, 3),
    baseline="diffstride",
    # Means over the same six choices of strides: the first three of Riad et al. (ICLR 2022), the last of
    # arXiv 2401.09008.
    published={
        ("cifar10", "strided"): "87.7 %",
        ("cifar10", "spectral"): "91.1 %",
        ("cifar10", "diffstride"): "92.4 %",
        ("cifar10", "hybrid"): "93.34 %",
    },
)
