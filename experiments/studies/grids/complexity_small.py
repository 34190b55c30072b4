"""The study complexity at the size of fashion_mnist_small: the penalty on small strides at five strengths."""

from experiments.studies.grids import complexity, fashion_mnist_small
from experiments.studies.rates import rate_binding
from experiments.studies.study import Method, Study

STUDY = Study(
    name="complexity_small",
    purpose="Do MACs fall as the penalty on small strides rises, and what does it cost in accuracy?",
    methods=(
        Method(
            "diffstride",
            "{data}_diffstride",
            (rate_binding(fashion_mnist_small.LEARNING_RATES["diffstride"]),),
        ),
    ),
    data=fashion_mnist_small.DATA,
    seeds=(1, 2, 3),
    bindings=fashion_mnist_small.RECIPE,
    variants=complexity.STUDY.variants,
)
