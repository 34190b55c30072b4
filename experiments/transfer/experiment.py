"""Trains a network with max pooling, replaces its poolings and trains it on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import keras

from diffstride_hybrid import DiffStride, SpectralPooling, replace_downsampling
from diffstride_hybrid.data.datasets import Datasets
from diffstride_hybrid.model_tools.inspection import strides_by_path
from diffstride_hybrid.model_tools.macs import macs

ORIGINAL = "max pooling"
"""The name of the network whose poolings stay."""

SWAPS: dict[str, Callable[..., keras.Model]] = {
    "SpectralPooling": partial(replace_downsampling, pooling_cls=SpectralPooling),
    "DiffStride, smoothness_factor=1": partial(replace_downsampling, pooling_cls=DiffStride, smoothness_factor=1.0),
    "DiffStride": partial(replace_downsampling, pooling_cls=DiffStride),
}
"""What replaces the poolings. Each is called with the network, `keep_max` and `calibrate`."""

MEASURES = {
    "alone": (False, False),
    "maximum": (True, False),
    "statistics": (False, True),
    "both": (True, True),
}
"""What is done beside the swap to keep the accuracy: whether `keep_max` is True, and whether `calibrate` has images."""

CALIBRATION_IMAGES = 512

LEARNING_RATE = 2e-3

COLUMNS = (
    *("seed", "model", "stage", "measure", "epochs", "test_accuracy"),
    *("macs", "pooling_macs", "sizes", "strides", "versions"),
)
"""The columns of the CSV file. A stage is 'before' (the end of the first training), 'swapped' (straight after the swap)
or 'after' (the end of the second training, which starts with both measures taken)."""


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
    """Trains a network, swaps its poolings with each measure, and trains on from the weights that it had.

    The network itself and its swaps with both measures are trained for as many epochs more on the same data.

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

    def row(model: keras.Model, name: str, stage: str, measure: str = "") -> dict[str, Any]:
        accuracy = model.evaluate(datasets.evaluation("test"), verbose=0, return_dict=True)["accuracy"]
        cost = macs(model, datasets.image_shape)
        strides = strides_by_path(model).values()
        return {
            "seed": seed,
            "model": name,
            "stage": stage,
            "measure": measure,
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
    _compile(kept, steps)
    _train(kept, datasets, steps, steps)
    yield row(kept, ORIGINAL, "after")
    images, _ = datasets.first_images("train", CALIBRATION_IMAGES)
    for name, swap in SWAPS.items():
        for measure, (keep_max, calibrates) in MEASURES.items():
            model = swap(original, keep_max=keep_max, calibrate=images if calibrates else None)
            _compile(model, steps)
            yield row(model, name, "swapped", measure)
        _train(model, datasets, steps, steps)
        yield row(model, name, "after", measure)


def _compile(model: keras.Model, steps: int) -> None:
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    # The metrics must be weighted: the images that fill up the last batch of a split have weight 0.
    model.compile(
        keras.optimizers.Adam(rate), "categorical_crossentropy", weighted_metrics=["accuracy"], steps_per_execution=8
    )


def _train(model: keras.Model, datasets: Datasets, first_step: int, steps: int) -> None:
    model.fit(datasets.training(first_step), steps_per_epoch=steps, shuffle=False, verbose=0)
