"""What training asks of an optimizer beside Keras's defaults."""

from __future__ import annotations

from collections.abc import Sequence

import keras


def keep_from_decay(optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable]) -> None:
    """Keeps an optimizer's weight decay from some variables, beside those that are kept from it already.

    Decay towards 0 makes no sense for a stride, whose neutral value is 1 and whose size is the network's cost.

    Args:
        optimizer: not built yet.
        variables: to keep from decay.
    """
    # Keras has no public way to add to the variables that a user has chosen before.
    names = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    before = getattr(optimizer, "_exclude_from_weight_decay", set())
    optimizer.exclude_from_weight_decay(variables, [names.pattern] if names else None)
    optimizer._exclude_from_weight_decay |= before
