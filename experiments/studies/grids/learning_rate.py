"""Which learning rate each method gets: the same four rates for all, compared on the validation images.

The baselines are matched to the DiffStride run of the same rate, whose strides, and so whose cost, end differently.
"""

from experiments.studies.grids import fashion_mnist_small
from experiments.studies.study import PAPER_METHODS, Study, Variant

RATES = (0.0025, 0.005, 0.01, 0.02)

STUDY = Study(
    name="learning_rate",
    purpose="The learning rate of each method in fashion_mnist_small, chosen on the validation split.",
    methods=PAPER_METHODS,
    data=fashion_mnist_small.DATA,
    seeds=(0,),  # None of the study that the rates are for.
    bindings=fashion_mnist_small.RECIPE,
    measure="validation",
    variants=tuple(Variant(f"rate{rate:g}", (fashion_mnist_small.rate_binding(rate),)) for rate in RATES),
)
