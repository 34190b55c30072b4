"""ImageNet with a ResNet-34: 21 million parameters and 3.6 G MACs strided. A ResNet-50 has 26 million and 4.1 G."""

from experiments.studies.study import PAPER_METHODS, Study

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
