"""Models whose poolings are swapped."""

import keras
import numpy as np


def disturbed(model: keras.Model) -> keras.Model:
    """With weights unlike those that a new layer has."""
    random = np.random.default_rng(1)
    for weight in model.weights:
        if "seed" not in weight.name:
            weight.assign(
                weight.numpy() * random.uniform(0.5, 1.5, weight.shape) + random.uniform(0, 0.1, weight.shape)
            )
    return model
