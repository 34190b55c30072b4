"""Loads a data set by its name: checks the arguments, reads the splits, measures the channels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from diffstride_hybrid.common.arguments import is_whole
from diffstride_hybrid.data.augmentation import MIXUPS, AugmentFn, check_augmentation
from diffstride_hybrid.data.damage import naming_damage
from diffstride_hybrid.data.datasets import Datasets, Split, as_written, decoder_of
from diffstride_hybrid.data.sources import (
    DIGITS,
    DIGITS_SIZE,
    digits_splits,
    image_classification,
    tfds_builder,
    tfds_splits,
)

# Mean and standard deviation of each channel, images scaled to 0..1. For CIFAR-10 as in the code released with
# DiffStride, for ImageNet as is customary. Every other set is measured on its training images.
_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def load_datasets(
    name: str,
    batch_size: int = 32,
    augment_fn: AugmentFn | None = None,
    mixup_alpha: float = 0.0,
    mixup: str = "pairs",
    validation_fraction: float = 0.1,
    training_images: int | None = None,
    image_size: int | None = None,
    data_dir: str | None = None,
    seed: int = 1,
) -> Datasets:
    """Loads an image-classification set, preparing it first where that has not been done.

    Args:
        name: 'digits' for scikit-learn's handwritten digits, which need no download, or any image-classification set of
            TensorFlow Datasets, such as 'cifar10', 'cifar100', 'fashion_mnist' or 'imagenet2012'.
        batch_size: images of a training batch, over all replicas.
        augment_fn: applied to the training images, such as `augment`. None for none.
        mixup_alpha: parameter of mixup's Beta distribution (Zhang et al., arXiv 1710.09412), 0 for none.
        mixup: 'pairs' mixes each two images into one, as the code released with DiffStride does, so that an epoch has
            half the steps; 'batch' mixes each image with another one of its batch.
        validation_fraction: share of the training images set aside for validation: the last ones, whatever the seed.
        training_images: how many images of the training split to use, those for validation included: the first ones,
            whatever the seed. All where None.
        image_size: height and width that images are resized to. Needed where a set's images differ in size.
        data_dir: where TensorFlow Datasets keeps prepared sets. Its default where None.
        seed: of order, augmentation and mixup.

    Returns:
        The data set.

    Raises:
        ValueError: an argument is out of range, the name is unknown, the set has no images with one label each, or it
            is too small for one batch.
        OSError: the set is not prepared and cannot be downloaded.
    """
    _check_arguments(batch_size, mixup_alpha, mixup, validation_fraction, training_images, image_size)
    if augment_fn is not None and not callable(augment_fn):
        raise ValueError(f"data.load_datasets.augment_fn must be a function such as @data.augment, got {augment_fn!r}.")
    if name == DIGITS:
        splits, class_names = digits_splits(validation_fraction, training_images, image_size or DIGITS_SIZE)
    else:
        splits, class_names = tfds_splits(name, validation_fraction, training_images, image_size, data_dir)
    if splits["train"].size == 0:
        raise ValueError(
            f"data.load_datasets.validation_fraction = {validation_fraction} leaves no training images of {name}."
        )
    with naming_damage(name):
        image_shape, mean, std = _measure(name, splits["train"])
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
    if datasets.steps_per_epoch == 0:
        raise ValueError(
            f"data.load_datasets.batch_size is too large: {name} has {splits['train'].size:,} training images, and one "
            f"step takes {datasets.images_per_step:,}."
        )
    if augment_fn is not None:
        check_augmentation(augment_fn, (batch_size, *image_shape))
    return datasets


def _check_arguments(
    batch_size: Any, mixup_alpha: Any, mixup: Any, validation_fraction: Any, training_images: Any, image_size: Any
) -> None:
    for name, value, optional in (
        ("batch_size", batch_size, False),
        ("training_images", training_images, True),
        ("image_size", image_size, True),
    ):
        if not is_whole(value, least=1) and not (optional and value is None):
            raise ValueError(f"data.load_datasets.{name} must be a whole number of at least 1, got {value!r}.")
    if not (isinstance(mixup_alpha, (int, float)) and 0 <= mixup_alpha < math.inf):
        raise ValueError(f"data.load_datasets.mixup_alpha must be a number of at least 0, got {mixup_alpha!r}.")
    if mixup not in MIXUPS:
        raise ValueError(f"data.load_datasets.mixup must be one of {', '.join(map(repr, MIXUPS))}, got {mixup!r}.")
    if not (isinstance(validation_fraction, (int, float)) and 0 <= validation_fraction < 1):
        raise ValueError(
            f"data.load_datasets.validation_fraction must be at least 0 and below 1, got {validation_fraction!r}."
        )


def shapes(
    name: str, image_size: int | None = None, data_dir: str | None = None, **others: Any
) -> tuple[tuple[int, int, int], int]:
    """What `load_datasets` would give, as far as a network depends on it. The set need not be prepared.

    Args:
        name: see `load_datasets`.
        image_size: see `load_datasets`.
        data_dir: see `load_datasets`.
        **others: arguments of `load_datasets` that do not matter here.

    Returns:
        (height, width, channels) of an image, and the number of classes.

    Raises:
        ValueError: the name is unknown, or the set does not pair images with one label each.
    """
    del others
    if name == DIGITS:
        return (image_size or DIGITS_SIZE, image_size or DIGITS_SIZE, 1), 10
    _, class_names, shape = image_classification(tfds_builder(name, data_dir), image_size)
    return shape, len(class_names)


def _measure(name: str, train: Split) -> tuple[tuple[int, int, int], tuple[float, ...], tuple[float, ...]]:
    """Shape of the images, and mean and standard deviation of each channel, images scaled to 0..1."""
    if train.arrays is not None:
        images = train.arrays[0]
    else:
        images = np.stack(
            list(
                train.stream(0, min(1000, train.size))
                .map(decoder_of(train))
                .map(as_written(lambda image, label: image))
            )
        )
    shape = tuple(images.shape[1:])
    if name in _STATISTICS:
        return shape, *_STATISTICS[name]
    levels = np.arange(256) / 255
    mean, std = [], []
    for channel in np.moveaxis(images, -1, 0):
        share = np.bincount(channel.ravel(), minlength=256) / channel.size
        mean.append(float(share @ levels))
        std.append(max(float(np.sqrt(share @ (levels - mean[-1]) ** 2)), 1 / 255))
    return shape, tuple(mean), tuple(std)
