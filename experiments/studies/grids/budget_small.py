"""What MACs buy: DiffStride held to shares of its cost, and strided and spectral networks as wide as that costs."""

from experiments.studies.grids import fashion_mnist_small
from experiments.studies.rates import rate_binding
from experiments.studies.study import Method, Study

PERCENTAGES = (100, 75, 50, 35)
"""Of the MACs of DiffStride at its initial strides."""

_RATES = fashion_mnist_small.LEARNING_RATES


def _methods(percentage: int) -> tuple[Method, ...]:
    held = f"diffstride_{percentage}"
    budget = (f"train.train.macs_budget = {percentage / 100}", "train.train.macs_budget_epoch = 2")
    matched = {"matched_to": held, "match": "macs"}
    return (
        Method(held, "{data}_diffstride", (*budget, rate_binding(_RATES["diffstride"])), curve="diffstride"),
        Method(
            f"strided_{percentage}",
            "{data}_strided",
            (rate_binding(_RATES["strided_matched_macs"]),),
            curve="strided",
            **matched,
        ),
        Method(
            f"spectral_{percentage}",
            "{data}_spectral",
            (rate_binding(_RATES["spectral"]),),
            curve="spectral",
            **matched,
        ),
    )


STUDY = Study(
    name="budget_small",
    purpose="At equal MACs, which is more accurate: learned strides, strided convolution or fixed spectral pooling?",
    methods=tuple(method for percentage in PERCENTAGES for method in _methods(percentage)),
    data=fashion_mnist_small.DATA,
    seeds=(1, 2, 3),
    bindings=fashion_mnist_small.RECIPE,
)
