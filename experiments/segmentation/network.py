"""The U-Nets of the segmentation experiment, and their training."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from diffstride_hybrid import DiffStride, SpectralPooling, SpectralResizing
from diffstride_hybrid.common.versions import versions_as_text
from diffstride_hybrid.model_tools.crop_refresh import CropRefresh
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.model_tools.macs import macs
from experiments.segmentation import scores
from experiments.segmentation.camvid import CLASSES, VOID, CamVid, Split
from experiments.segmentation.report import Row

BATCH, LEARNING_RATE = 8, 0.004

WIDTHS = (8, 24, 48, 96)
"""Channels at each size of the maps, from the image's own size to an eighth of it."""

MOST_WIDER = 6.0
"""The greatest factor by which `matched_widths` multiplies `WIDTHS`."""

PACKAGES = ("diffstride_hybrid", "tensorflow", "keras", "numpy")


class Method(NamedTuple):
    """How a U-Net changes the size of its maps.

    Attributes:
        pooling: makes a layer that halves a map.
        enlarged: enlarges a map to the size of another, to which it is then joined.
    """

    pooling: Callable[..., keras.layers.Layer]
    enlarged: Callable[[Any, Any], Any]


def _bilinear(maps: Any, like: Any) -> Any:
    return keras.layers.UpSampling2D(like.shape[1] // maps.shape[1], interpolation="bilinear")(maps)


def _resized(maps: Any, like: Any) -> Any:
    return SpectralResizing()(maps, like=like)


MAX = Method(lambda **name: keras.layers.MaxPooling2D(2, **name), _bilinear)

METHODS = {
    "max": MAX,
    "spectral": Method(lambda **name: SpectralPooling(2, norm="forward", **name), _resized),
    "diffstride": Method(lambda **name: DiffStride(2.0, mask="symmetric", norm="forward", **name), _resized),
    "max_wide": MAX,
}

MATCHED = {"max_wide": "diffstride"}
"""The networks that are made wider until they cost as much as another network of the same seed at its end."""


def network(method: str, size: Sequence[int], widths: Sequence[int] = WIDTHS) -> keras.Model:
    """Makes a small U-Net.

    At each size there is a convolution on the way down and one on the way up, with two at the smallest size, all of 3x3
    pixels with batch normalization and ReLU. On the way up a 1x1 convolution takes the channels of the next size before
    the maps are enlarged and joined to those of the way down.

    Args:
        method: how the maps change their size, a name of `METHODS`.
        size: height and width of the images, both divisible by 8.
        widths: channels at each size, from the largest to the smallest.

    Returns:
        A network from images `[batch, height, width, 3]`, 0 to 255, to logits `[batch, height, width, classes]`.
    """
    pooling, enlarged = METHODS[method]
    images = keras.Input((*size, 3))
    maps, skips = keras.layers.Rescaling(1 / 127.5, -1)(images), []
    for i, width in enumerate(widths[:-1]):
        skips.append(_convolved(maps, width))
        maps = pooling(name=f"pooling_{i}")(skips[-1])
    maps = _convolved(_convolved(maps, widths[-1]), widths[-1])
    for width, skip in zip(reversed(widths[:-1]), reversed(skips)):
        maps = enlarged(_convolved(maps, width, kernel=1), skip)
        maps = _convolved(keras.layers.Concatenate()([maps, skip]), width)
    return keras.Model(images, keras.layers.Conv2D(len(CLASSES), 1)(maps), name=method)


def _convolved(maps: Any, width: int, kernel: int = 3) -> Any:
    maps = keras.layers.Conv2D(width, kernel, padding="same", use_bias=False)(maps)
    return keras.layers.ReLU()(keras.layers.BatchNormalization()(maps))


def matched_widths(method: str, size: Sequence[int], target: int) -> tuple[int, ...]:
    """Finds the widths at which a network costs as much as another, as nearly as whole numbers allow.

    Args:
        method: a name of `METHODS`.
        size: height and width of the images.
        target: multiply-accumulate operations for one image, of all layers.

    Returns:
        `WIDTHS` times one factor from 1 to `MOST_WIDER`, rounded.
    """
    factors = np.linspace(1, MOST_WIDER, 1 + round(max(WIDTHS) * (MOST_WIDER - 1)))
    candidates = list(dict.fromkeys(tuple(round(factor * width) for width in WIDTHS) for factor in factors))

    def cost(widths: Sequence[int]) -> int:
        return _all_macs(network(method, size, widths))

    above = min(bisect.bisect_left(candidates, target, key=cost), len(candidates) - 1)
    return min(candidates[max(above - 1, 0) : above + 1], key=lambda widths: abs(cost(widths) - target))


def _all_macs(model: keras.Model) -> int:
    cost = macs(model)
    return cost.macs + cost.pooling_macs


def class_weights(labels: np.ndarray) -> np.ndarray:
    """Weighs the classes in the loss, so that a small network learns the rare ones too.

    Args:
        labels: of the training images, numbers of `CLASSES`, or `VOID`.

    Returns:
        float32 `[classes + 1]`: the square root of the median frequency divided by that of the class, and 0 for `VOID`.
    """
    frequencies = np.maximum(np.bincount(labels.ravel(), minlength=VOID + 1)[:VOID], 1)
    return np.append(np.sqrt(np.median(frequencies) / frequencies), 0).astype(np.float32)


def batches(split: Split, seed: int) -> tf.data.Dataset:
    """Makes endless batches: the images in a new order in each epoch, each mirrored with a chance of one half.

    Args:
        split: the images.
        seed: of the order and of the mirroring.

    Returns:
        Batches of images, float32 `[BATCH, height, width, 3]`, of labels, int32 `[BATCH, height, width]`, and of the
        weights of the labels, float32 of the same shape.
    """
    weights = class_weights(split.labels)

    def prepared(image: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        mirror = tf.random.uniform([], seed=seed) < 0.5
        image, labels = (tf.where(mirror, tensor[:, ::-1], tensor) for tensor in (image, labels))
        labels = tf.cast(labels, tf.int32)
        return tf.cast(image, tf.float32), labels, tf.gather(weights, labels)

    # A tuple, because tf.data would hand on a named tuple as one argument.
    images = tf.data.Dataset.from_tensor_slices(tuple(split)).shuffle(len(split.images), seed=seed)
    return images.repeat().map(prepared).batch(BATCH).prefetch(1)


def settings(split: Split, epochs: int, widths: Sequence[int] | None = None) -> dict[str, Any]:
    """Tells with what a run is made, as its row of the CSV file does.

    Args:
        split: the images to train on.
        epochs: how often the network is trained on each image.
        widths: channels at each size of the maps, `WIDTHS` if None.

    Returns:
        The columns 'widths', 'steps' and 'versions'.
    """
    return {
        "widths": " ".join(map(str, WIDTHS if widths is None else widths)),
        "steps": epochs * _steps_per_epoch(split),
        "versions": versions_as_text(PACKAGES, separator="; "),
    }


def _steps_per_epoch(split: Split) -> int:
    return max(1, len(split.images) // BATCH)


def run(method: str, seed: int, data: CamVid, epochs: int, widths: Sequence[int] = WIDTHS) -> tuple[Row, keras.Model]:
    """Trains and tests one network.

    Args:
        method: a name of `METHODS`.
        seed: of the initial weights, of the order of the images and of their mirroring.
        data: the images to train and to test on.
        epochs: how often the network is trained on each image.
        widths: channels at each size of the maps.

    Returns:
        The run's row of the CSV file, and the trained network.
    """
    keras.utils.set_random_seed(seed)
    size = data.train.images.shape[1:3]
    model = network(method, size, widths)
    steps_per_epoch = _steps_per_epoch(data.train)
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, epochs * steps_per_epoch)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=VOID)
    # On two cores XLA takes twice as long for the convolutions, and compiles anew whenever a crop changes.
    model.compile(keras.optimizers.Adam(rate), loss, jit_compile=False)
    start = time.perf_counter()
    model.fit(
        batches(data.train, seed),
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        shuffle=False,
        verbose=0,
        callbacks=[CropRefresh()],
    )
    seconds = time.perf_counter() - start
    counts = scores.confusion(data.test.labels, predicted(model, data.test.images))
    of_classes = scores.ious(counts)
    kept = scores.consistency(lambda images: predicted(model, images), data.larger)
    cost = macs(model)
    made_with = settings(data.train, epochs, widths)
    row = {
        "method": method,
        "seed": seed,
        "mean_iou": f"{np.nanmean(of_classes):.5f}",
        "pixel_accuracy": f"{np.diag(counts).sum() / counts.sum():.5f}",
        **{f"consistency_{shift}": f"{share:.5f}" for shift, share in zip(scores.SHIFTS, kept)},
        "ious": "; ".join(f"{name} {iou:.4f}" for name, iou in zip(CLASSES, of_classes)),
        "macs": cost.macs,
        "pooling_macs": cost.pooling_macs,
        "strides_at_end": _pairs(strides(model), ".3f"),
        "sizes_at_end": _pairs(pooled_sizes(model), "d"),
        "widths": made_with["widths"],
        "parameters": model.count_params(),
        "epochs": epochs,
        "steps": made_with["steps"],
        "training_seconds": f"{seconds:.1f}",
        "versions": made_with["versions"],
    }
    return row, model


def predicted(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Predicts the classes of images: uint8 `[images, height, width]` from `[images, height, width, 3]`."""
    return model.predict(images, 4 * BATCH, verbose=0).argmax(-1).astype(np.uint8)


def strides(model: keras.Model) -> list[tuple[float, float]]:
    """Lists the (vertical, horizontal) strides of each pooling; poolings that learn none have 2."""
    learned = [tuple(layer.strides.numpy().tolist()) for layer in diffstride_layers(model)]
    return learned or [(2.0, 2.0)] * (len(WIDTHS) - 1)


def pooled_sizes(model: keras.Model) -> list[tuple[int, int]]:
    """Lists the height and width of the maps behind each pooling with its present strides."""
    poolings = [layer.output for layer in model.layers if layer.name.startswith("pooling_")]
    outputs = keras.Model(model.input, poolings)(tf.zeros([1, *model.input_shape[1:]]))
    return [tuple(maps.shape[1:3]) for maps in outputs]


def _pairs(pairs: Sequence[tuple[float, float]], form: str) -> str:
    """Writes pairs as '2.000x2.000 2.000x2.000'."""
    return " ".join("x".join(format(number, form) for number in pair) for pair in pairs)
