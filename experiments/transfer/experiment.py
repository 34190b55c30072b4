"""Trains a network with max pooling, replaces its poolings and trains it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from diffstride_hybrid import DiffStride, SpectralPooling, replace_downsampling
from diffstride_hybrid.data.datasets import Datasets
from diffstride_hybrid.model_tools.inspection import strides_by_path
from diffstride_hybrid.model_tools.macs import macs

ORIGINAL = "max pooling"
"""The name of the network whose poolings stay."""

SWAPS: dict[str, Callable[[keras.Model], keras.Model]] = {
    "DiffStride": lambda model: replace_downsampling(model, DiffStride),
    "DiffStride, smoothness_factor=2": lambda model: replace_downsampling(model, DiffStride, smoothness_factor=2.0),
    "DiffStride, smoothness_factor=1": lambda model: replace_downsampling(model, DiffStride, smoothness_factor=1.0),
    "SpectralPooling": lambda model: replace_downsampling(model, SpectralPooling),
}

LEARNING_RATE = 2e-3

COLUMNS = ("seed", "model", "stage", "epochs", "test_accuracy", "macs", "pooling_macs", "sizes", "strides", "versions")
"""The columns of the CSV file. A stage is 'before' (the end of the first training), 'swapped' (the start of the second
training) or 'after' (its end)."""


def convolutional_network(image_shape: Sequence[int], num_classes: int, width: int = 16) -> keras.Model:
    """Makes a network of three convolutions with max pooling between them, as many tutorials do.

    Args:
        image_shape: (height, width, channels) of an image.
        num_classes: how many classes there are.
        width: channels of the first convolution; the others have two and four times as many.

    Returns:
        A network from images to probabilities of the classes.
    """
    layers = []
    for factor in (1, 2, 4):
        layers += [
            keras.layers.Conv2D(factor * width, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(2),
        ]
    layers[-1] = keras.layers.GlobalAveragePooling2D()
    return keras.Sequential([keras.Input(image_shape), *layers, keras.layers.Dense(num_classes, "softmax")])


def transfer(datasets: Datasets, epochs: int, seed: int) -> Iterator[dict[str, Any]]:
    """Trains a network, then trains it and its swaps for as many epochs more, all from the same weights and data.

    Args:
        datasets: the images to train and to test on.
        epochs: epochs of each of the two trainings.
        seed: of the initial weights.

    Yields:
        A row of the CSV file for each stage of each model, with the columns `COLUMNS` except 'versions'.
    """
    keras.utils.set_random_seed(seed)
    original = convolutional_network(datasets.image_shape, datasets.num_classes)
    steps = epochs * datasets.steps_per_epoch

    def row(model: keras.Model, name: str, stage: str) -> dict[str, Any]:
        accuracy = model.evaluate(datasets.evaluation("test"), verbose=0, return_dict=True)["accuracy"]
        cost = macs(model, datasets.image_shape)
        strides = strides_by_path(model).values()
        return {
            "seed": seed,
            "model": name,
            "stage": stage,
            "epochs": 2 * epochs if stage == "after" else epochs,
            "test_accuracy": f"{accuracy:.5f}",
            "macs": cost.macs,
            "pooling_macs": cost.pooling_macs,
            "sizes": "; ".join("x".join(map(str, after)) for _, after in cost.pooling_sizes().values()),
            "strides": "; ".join(",".join(f"{stride:.3f}" for stride in pair) for pair in strides),
        }

    _compile(original, steps)
    _train(original, datasets, 0, steps)
    yield row(original, ORIGINAL, "before")
    kept = keras.models.clone_model(original)
    kept.set_weights(original.get_weights())
    for name, model in {ORIGINAL: kept, **{name: swap(original) for name, swap in SWAPS.items()}}.items():
        _compile(model, steps)
        if name != ORIGINAL:
            yield row(model, name, "swapped")
        _train(model, datasets, steps, steps)
        yield row(model, name, "after")


def _compile(model: keras.Model, steps: int) -> None:
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    # The metrics must be weighted: the images that fill up the last batch of a split have weight 0.
    model.compile(
        keras.optimizers.Adam(rate), "categorical_crossentropy", weighted_metrics=["accuracy"], steps_per_execution=8
    )


def _train(model: keras.Model, datasets: Datasets, first_step: int, steps: int) -> None:
    model.fit(datasets.training(first_step), steps_per_epoch=steps, shuffle=False, verbose=0)
