"""The learning rate of each method of cifar_small: three rates, the same for all, compared on the validation images."""

from experiments.studies.grids import cifar_small
from experiments.studies.rates import rate_variants
from experiments.studies.study import Study

EPOCHS = 4

RATES = (0.03, 0.1, 0.3)

STUDY = Study(
    name="cifar_small_rates",
    purpose="The learning rate of each method in cifar_small, chosen on the validation split.",
    methods=cifar_small.METHODS,
    data=cifar_small.STUDY.data,
    seeds=(0,),  # Not a seed of cifar_small, which uses the rates.
    bindings=cifar_small.recipe(EPOCHS),
    measure="validation",
    variants=rate_variants(RATES),
)
