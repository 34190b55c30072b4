"""The learning rate of each method: four rates, the same for all methods, compared on the validation images.

The baselines are matched to the DiffStride run of the same rate. Its strides, and so its cost, depend on the rate.
"""

from experiments.studies.grids import fashion_mnist_small
from experiments.studies.rates import rate_variants
from experiments.studies.study import PAPER_METHODS, Study

RATES = (0.0025, 0.005, 0.01, 0.02)

STUDY = Study(
    name="learning_rate",
    purpose="The learning rate of each method in fashion_mnist_small, chosen on the validation split.",
    methods=PAPER_METHODS,
    data=fashion_mnist_small.DATA,
    seeds=(0,),  # Not a seed of fashion_mnist_small, which uses the rates.
    bindings=fashion_mnist_small.RECIPE,
    measure="validation",
    variants=rate_variants(RATES),
)
