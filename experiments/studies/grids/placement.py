"""The places of the poolings in the network: of the hybrid's spectral pooling, and of DiffStride."""

from experiments.studies.study import Method, Study

_HEAD = "resnet.Resnet.head_placement = "

_POOLING = "resnet.Resnet.pooling_placement = "

STUDY = Study(
    name="placement",
    purpose="Where do spectral pooling and DiffStride do something?",
    methods=(
        Method("diffstride_everywhere", "{data}_diffstride"),
        Method("diffstride_first_convolution", "{data}_diffstride", (f"{_POOLING}'first_convolution'",)),
        Method("diffstride_blocks", "{data}_diffstride", (f"{_POOLING}'blocks'",)),
        Method("spectral_before_average", "{data}_hybrid", (f"{_HEAD}'before_gap'",)),
        Method("spectral_before_activation", "{data}_hybrid", (f"{_HEAD}'before_activation'",)),
        Method("spectral_after_each_block", "{data}_hybrid", (f"{_HEAD}'after_each_block'",)),
    ),
    data=("cifar10",),
    seeds=(1, 2, 3),
    baseline="diffstride_everywhere",
)
