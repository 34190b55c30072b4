"""Loads a data set by its name: checks the arguments, reads the splits, measures the channels."""

from __future__ import annotations

import math
import os
import pathlib
from typing import Any

import numpy as np
from absl import logging

from diffstride_hybrid.common.arguments import validated_choice, validated_whole
from diffstride_hybrid.data.augmentation import MIXUPS, AugmentFn, check_augmentation
from diffstride_hybrid.data.damage import naming_damaged_files
from diffstride_hybrid.data.datasets import Datasets, Split, as_written, decoder_of
from diffstride_hybrid.data.folder_layout import looks_like_classes
from diffstride_hybrid.data.image_folders import folder_splits, is_named_folder, read_folder
from diffstride_hybrid.data.sources import (
    DIGITS,
    DIGITS_SIZE,
    digits_splits,
    image_classification,
    tfds_builder,
    tfds_splits,
)

_CIFAR_10 = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
STATISTICS = {
    "cifar10": _CIFAR_10,
    "cifar100": _CIFAR_10,
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation of each channel, of images scaled to 0..1. The code released with DiffStride uses those
of CIFAR-10 for CIFAR-100 too, so its published accuracies were reached with them. Those of ImageNet are customary.
Every other set is measured on its training images."""

# So many images are enough to measure the channels of a set that is too large for memory.
_MEASURED_IMAGES = 1000

_COUNTED_IMAGES = 100
"""How many images are measured at once."""


def load_datasets(
    name: str | os.PathLike[str],
    batch_size: int = 32,
    augment_fn: AugmentFn | None = None,
    mixup_alpha: float = 0.0,
    mixup: str = "pairs",
    validation_fraction: float = 0.1,
    training_images: int | None = None,
    image_size: int | None = None,
    data_dir: str | None = None,
    test_fraction: float = 0.2,
    seed: int = 1,
) -> Datasets:
    """Loads an image-classification set, which is downloaded and prepared first if that has not been done.

    Args:
        name: 'digits' for scikit-learn's handwritten digits, which need no download; any image-classification set of
            TensorFlow Datasets, such as 'cifar10', 'cifar100', 'fashion_mnist' or 'imagenet2012'; or a folder of your
            own images, such as './photos', with `train/CLASS/…` and `test/CLASS/…`, or with `CLASS/…`.
        batch_size: images of a training batch, summed over all replicas.
        augment_fn: applied to the training images, such as `augment`. None for no augmentation.
        mixup_alpha: parameter of mixup's Beta distribution (Zhang et al., arXiv 1710.09412), 0 for no mixup.
        mixup: 'pairs' mixes each two images into one, as the code released with DiffStride does, so that an epoch has
            half the steps; 'batch' mixes each image with another image of its batch.
        validation_fraction: share of the training images set aside for validation, from 0 to below 1. These are the
            last ones, whatever the seed; if `test_fraction` holds images out, they are among those that are left. Not
            used for a folder that has 'validation' beside 'test'.
        training_images: how many images of the training split to use, with those set aside for validation. These are
            the first ones; `validation_fraction` says when the seed counts. None for all.
        image_size: height and width that images are resized to, in pixels. Needed if the images of a set differ in
            size.
        data_dir: folder in which TensorFlow Datasets keeps prepared sets. None for its default.
        test_fraction: share of each class that is held out for testing, above 0 and below 1. Only used for a folder
            without 'test'.
        seed: of the order of images, augmentation and mixup, and of the images that `test_fraction` holds out.

    Returns:
        The data set.

    Raises:
        ValueError: an argument is out of range, no set has that name, the set has no images with one label each, it
            is too small for one batch, or a file in a folder cannot be read as an image.
        OSError: the set is not prepared and cannot be downloaded, or its files are damaged.

    Example:
        >>> datasets = load_datasets("digits", batch_size=32)
        >>> datasets.image_shape, datasets.num_classes, datasets.steps_per_epoch
        ((32, 32, 1), 10, 40)
        >>> images, labels = next(iter(datasets.training()))
        >>> images.shape, labels.shape
        (TensorShape([32, 32, 32, 1]), TensorShape([32, 10]))
    """
    _check_arguments(batch_size, mixup_alpha, mixup, validation_fraction, training_images, image_size, test_fraction)
    if augment_fn is not None and not callable(augment_fn):
        raise ValueError(f"data.load_datasets.augment_fn must be a function such as @data.augment, got {augment_fn!r}.")
    builder = None if name == DIGITS else _builder_of(name, data_dir)
    if name == DIGITS or builder is not None:
        _warn_of_folder(name)
    if name == DIGITS:
        splits, class_names = digits_splits(validation_fraction, training_images, image_size or DIGITS_SIZE)
    elif builder is not None:
        splits, class_names = tfds_splits(builder, validation_fraction, training_images, image_size)
    else:
        splits, class_names = folder_splits(name, validation_fraction, training_images, image_size, test_fraction, seed)
    name = os.fspath(name)
    if splits["train"].size == 0:
        raise ValueError(
            f"data.load_datasets.validation_fraction = {validation_fraction} leaves no training images of {name}."
        )
    with naming_damaged_files(name, own=splits["train"].files_digest is not None):
        image_shape, mean, std = _measure(splits["train"], None if builder is None else builder.name)
    datasets = Datasets(
        name=name,
        image_shape=image_shape,
        class_names=class_names,
        batch_size=batch_size,
        mean=mean,
        std=std,
        splits=splits,
        mixup_alpha=mixup_alpha,
        mixup=mixup,
        augment_fn=augment_fn,
        seed=seed,
    )
    _check_trainable(datasets)
    return datasets


def shapes(
    name: str | os.PathLike[str], image_size: int | None = None, data_dir: str | None = None
) -> tuple[tuple[int, int, int], int]:
    """Tells the shapes that a network needs to know of a data set. The set need not be prepared.

    Args:
        name: 'digits', any image-classification set of TensorFlow Datasets, or a folder of images.
        image_size: height and width that images are resized to, in pixels. Needed if the images of a set differ in
            size.
        data_dir: folder in which TensorFlow Datasets keeps prepared sets. None for its default.

    Returns:
        (height, width, channels) of an image, and the number of classes, as `load_datasets` would give them.

    Raises:
        ValueError: no set has that name, or the set does not pair images with one label each.

    Example:
        >>> shapes("digits", image_size=16)
        ((16, 16, 1), 10)
    """
    if name == DIGITS:
        return (image_size or DIGITS_SIZE, image_size or DIGITS_SIZE, 1), 10
    if (builder := _builder_of(name, data_dir)) is not None:
        _, class_names, shape = image_classification(builder, image_size)
        return shape, len(class_names)
    folder = read_folder(name, image_size)
    return folder.image_shape, len(folder.class_names)


def _builder_of(name: str | os.PathLike[str], data_dir: str | None) -> Any:
    """The builder of TensorFlow Datasets, or None if the name is that of a folder of images."""
    if is_named_folder(name):
        return None
    try:
        return tfds_builder(name, data_dir)
    except ValueError:
        if isinstance(name, str) and os.path.isdir(name):
            return None
        raise


def _warn_of_folder(name: str) -> None:
    """Names a folder of images that is not used, since a built-in set has its name."""
    if looks_like_classes(pathlib.Path(name)):
        logging.warning("%r is the built-in set; for the folder of that name write './%s'", name, name)


def _check_arguments(
    batch_size: Any,
    mixup_alpha: Any,
    mixup: Any,
    validation_fraction: Any,
    training_images: Any,
    image_size: Any,
    test_fraction: Any,
) -> None:
    for name, value, optional in (
        ("batch_size", batch_size, False),
        ("training_images", training_images, True),
        ("image_size", image_size, True),
    ):
        if value is not None or not optional:
            validated_whole(f"data.load_datasets.{name}", value, least=1)
    if not (isinstance(mixup_alpha, (int, float)) and 0 <= mixup_alpha < math.inf):
        raise ValueError(f"data.load_datasets.mixup_alpha must be a number of at least 0, got {mixup_alpha!r}.")
    validated_choice("data.load_datasets.mixup", mixup, MIXUPS)
    if not (isinstance(validation_fraction, (int, float)) and 0 <= validation_fraction < 1):
        raise ValueError(
            f"data.load_datasets.validation_fraction must be at least 0 and below 1, got {validation_fraction!r}."
        )
    if not (isinstance(test_fraction, (int, float)) and 0 < test_fraction < 1):
        raise ValueError(f"data.load_datasets.test_fraction must be above 0 and below 1, got {test_fraction!r}.")


def _check_trainable(datasets: Datasets) -> None:
    if datasets.steps_per_epoch == 0:
        raise ValueError(
            f"data.load_datasets.batch_size is too large: {datasets.name} has {datasets.splits['train'].size:,} "
            f"training images, and one step takes {datasets.images_per_step:,}."
        )
    if datasets.augment_fn is not None:
        check_augmentation(datasets.augment_fn, (datasets.batch_size, *datasets.image_shape))


def _measure(train: Split, published: str | None) -> tuple[tuple[int, int, int], tuple[float, ...], tuple[float, ...]]:
    """Shape of the images, and mean and standard deviation of each channel, of images scaled to 0..1.

    The statistics are fixed for some sets by the names under which they are published.
    """
    if train.arrays is not None:
        images = train.arrays[0]
    else:
        decoded = train.stream(0, min(_MEASURED_IMAGES, train.size)).map(decoder_of(train))
        images = np.stack(list(decoded.map(as_written(lambda image, label: image))))
    shape = tuple(images.shape[1:])
    if published in STATISTICS:
        return shape, *STATISTICS[published]
    # NumPy counts 64-bit numbers, so the whole set at once would take eight times its memory.
    counts = np.zeros((shape[-1], 256), np.int64)
    for first in range(0, len(images), _COUNTED_IMAGES):
        for count, channel in zip(counts, np.moveaxis(images[first : first + _COUNTED_IMAGES], -1, 0)):
            count += np.bincount(channel.ravel(), minlength=256)
    levels = np.arange(256) / 255
    mean, std = [], []
    for share in counts / (images.size // shape[-1]):
        mean.append(float(share @ levels))
        std.append(max(float(np.sqrt(share @ (levels - mean[-1]) ** 2)), 1 / 255))
    return shape, tuple(mean), tuple(std)
