"""As the study cifar10, on CIFAR-100."""

from experiments.study import PAPER_METHODS, PAPER_STRIDES, Study

STUDY = Study(
    name="cifar100",
    purpose="The papers' comparison on CIFAR-100.",
    methods=PAPER_METHODS,
    data=("cifar100",),
    strides=PAPER_STRIDES,
    seeds=(1, 2, 3),
    baseline="diffstride",
    # Means over the same six choices of strides: the first three of Riad et al. (ICLR 2022), the last of
    # arXiv 2401.09008, which prints 70.6 % for DiffStride: the other paper's figure for spectral pooling.
    published={
        ("cifar100", "strided"): "59.1 %",
        ("cifar100", "spectral"): "70.6 %",
        ("cifar100", "diffstride"): "73.5 %",
        ("cifar100", "hybrid"): "73.82 %",
    },
)
