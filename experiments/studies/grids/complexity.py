"""Accuracy against cost: the penalty on small strides at five strengths."""

from experiments.studies.study import Method, Study, Variant

FACTORS = (0.0, 0.1, 0.3, 1.0, 3.0)

STUDY = Study(
    name="complexity",
    purpose="How far can the penalty on small strides lower the MACs, and what does it cost in accuracy?",
    methods=(Method("diffstride", "{data}_diffstride"), Method("hybrid", "{data}_hybrid")),
    data=("cifar10",),
    seeds=(1, 2, 3),
    variants=tuple(
        Variant(f"penalty{factor:g}", (f"resnet.Resnet.stride_complexity = {factor}",)) for factor in FACTORS
    ),
)
