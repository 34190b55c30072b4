"""ImageNet with a ResNet-34 of 21 million parameters, ResNet-50's order of size. Made for accelerators."""

from experiments.study import PAPER_METHODS, Study

STUDY = Study(
    name="imagenet",
    purpose="Do the differences hold on large images?",
    methods=PAPER_METHODS,
    data=("imagenet",),
    seeds=(1, 2, 3),
    first_stride=4,
    baseline="diffstride",
    model="resnet.resnet34",
)
