"""The learning rates of a study's methods: the rate at which a cosine decay starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from experiments.studies.study import Method, Variant


def rate_binding(rate: float) -> str:
    """Returns the binding of the learning rate at which the cosine decay starts."""
    return f"tf.keras.optimizers.schedules.CosineDecay.initial_learning_rate = {rate}"


def with_rates(methods: Iterable[Method], rates: Mapping[str, float]) -> tuple[Method, ...]:
    """Gives each method the learning rate that was chosen for it.

    Args:
        methods: of a study.
        rates: by the name of a method.

    Returns:
        The methods with one more binding each.
    """
    return tuple(
        dataclasses.replace(method, bindings=(*method.bindings, rate_binding(rates[method.name]))) for method in methods
    )


def rate_variants(rates: Iterable[float]) -> tuple[Variant, ...]:
    """Makes a variant of each learning rate, for a study that chooses among them."""
    return tuple(Variant(f"rate{rate:g}", (rate_binding(rate),)) for rate in rates)
