"""The 1-D network of the speech experiment, and its training."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid import DiffStride1D, SpectralPooling1D
from diffstride_hybrid.common.versions import versions_as_text
from diffstride_hybrid.model_tools.crop_refresh import CropRefresh
from diffstride_hybrid.model_tools.inspection import strides_by_path
from diffstride_hybrid.model_tools.macs import macs
from experiments.speech.recordings import Speech
from experiments.speech.report import Row

BATCH, LEARNING_RATE = 64, 0.002

FILTERS, KERNELS, STRIDE = (8, 16, 32, 64, 64), (32, 8, 8, 8, 8), 4

PACKAGES = ("diffstride_hybrid", "tensorflow", "keras", "numpy")

POOLINGS: dict[str, Callable[..., keras.layers.Layer]] = {
    "max": lambda **name: keras.layers.MaxPooling1D(STRIDE, **name),
    "diffstride": lambda **name: DiffStride1D(STRIDE, mask="symmetric", norm="forward", **name),
    "spectral": lambda **name: SpectralPooling1D(STRIDE, norm="forward", **name),
}


def network(method: str, length: int, voices: int) -> keras.Model:
    """Makes a network of five convolutions, with a pooling at stride 4 after each but the last.

    A pooling after the last convolution would make no difference to the average over time, and get no gradient.

    Args:
        method: name of the pooling, one of `POOLINGS`.
        length: samples of a window.
        voices: how many voices there are.

    Returns:
        A network from `[batch, length, 1]` to probabilities `[batch, voices]`.
    """
    layers: list[Any] = [keras.Input((length, 1))]
    for i, (filters, kernel) in enumerate(zip(FILTERS, KERNELS)):
        layers += [POOLINGS[method](name=f"pooling_{i}")] if i else []
        layers.append(keras.layers.Conv1D(filters, kernel, padding="same", use_bias=False))
        layers += [keras.layers.BatchNormalization(), keras.layers.ReLU()]
    layers += [keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(voices, activation="softmax")]
    return keras.Sequential(layers)


def run(method: str, seed: int, speech: Speech, epochs: int) -> Row:
    """Trains and tests one network.

    Args:
        method: name of the pooling, one of `POOLINGS`.
        seed: of the initial weights and of the order of the windows.
        speech: the windows to train and to test on.
        epochs: how often the network is trained on each window.

    Returns:
        The run's row of the CSV file.
    """
    (train, train_labels), (test, test_labels) = speech.train, speech.test
    keras.utils.set_random_seed(seed)
    model = network(method, train.shape[1], len(speech.voices))
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, epochs * -(-len(train) // BATCH))
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    start = time.perf_counter()
    model.fit(train, train_labels, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[CropRefresh()])
    seconds = time.perf_counter() - start
    right = model.predict(test, BATCH, verbose=0).argmax(1) == test_labels
    recalls = [right[test_labels == i].mean() for i in range(len(speech.voices))]
    cost = macs(model)
    strides = [stride for (stride,) in strides_by_path(model).values()] or [STRIDE] * len(FILTERS[1:])
    return {
        "method": method,
        "seed": seed,
        "test_accuracy": f"{right.mean():.5f}",
        "test_recalls": "; ".join(f"{voice} {recall:.4f}" for voice, recall in zip(speech.voices, recalls)),
        "macs": cost.macs,
        "pooling_macs": cost.pooling_macs,
        "strides_at_end": " ".join(f"{stride:.3f}" for stride in strides),
        "lengths_at_end": " ".join(map(str, pooled_lengths(model))),
        "parameters": model.count_params(),
        "epochs": epochs,
        "training_seconds": f"{seconds:.1f}",
        "train_windows": len(train),
        "test_windows": len(test),
        "versions": versions_as_text(PACKAGES, separator="; "),
    }


def pooled_lengths(model: keras.Model) -> list[int]:
    """Returns how many samples each pooling of a network leaves with its present strides."""
    lengths, outputs = [], tf.zeros([1, *model.input_shape[1:]])
    for layer in model.layers:
        outputs = layer(outputs)
        if layer.name.startswith("pooling_"):
            lengths.append(outputs.shape[1])
    return lengths
