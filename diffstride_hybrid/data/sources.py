"""Where images come from: scikit-learn's digits and TensorFlow Datasets, as splits in memory or streamed."""

from __future__ import annotations

import difflib
import math
from typing import Any

import numpy as np
import tensorflow as tf

from diffstride_hybrid.common.errors import first_line, one_line
from diffstride_hybrid.data.damage import naming_damage
from diffstride_hybrid.data.datasets import Split, as_written, decoder_of
from diffstride_hybrid.data.images import fitted

DIGITS = "digits"

DIGITS_SIZE = 32

MEMORY_LIMIT_BYTES = 2 << 30


def _chosen_images(name: str, available: int, training_images: int | None) -> int:
    if training_images is not None and training_images > available:
        raise ValueError(
            f"data.load_datasets.training_images must be at most the {available:,} of {name}, got {training_images:,}."
        )
    return available if training_images is None else training_images


def digits_splits(
    validation_fraction: float, training_images: int | None, image_size: int
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The 1,797 handwritten digits that scikit-learn bundles, a fifth of each class for testing."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = tf.image.resize(digits.images[..., None] * (255 / 16), [image_size, image_size], antialias=True)
    images = tf.cast(tf.round(images), tf.uint8).numpy()
    train, test = train_test_split(np.arange(len(images)), test_size=0.2, random_state=0, stratify=digits.target)
    train = train[: _chosen_images(DIGITS, len(train), training_images)]
    first_held_out = len(train) - round(len(train) * validation_fraction)
    parts = {"train": train[:first_held_out], "validation": train[first_held_out:], "test": test}
    splits = {
        part: Split(len(indices), arrays=(images[indices], digits.target[indices])) for part, indices in parts.items()
    }
    return splits, tuple(str(name) for name in digits.target_names)


def tfds_splits(
    name: str,
    validation_fraction: float,
    training_images: int | None,
    image_size: int | None,
    data_dir: str | None,
) -> tuple[dict[str, Split], tuple[str, ...]]:
    import tensorflow_datasets as tfds

    builder = tfds_builder(name, data_dir)
    image_feature, class_names, image_shape = image_classification(builder, image_size)
    if len(class_names) < 2:
        raise ValueError(f"Data set {name!r} cannot be used: it has {len(class_names)} class, nothing to tell apart.")
    prepare(builder)
    if not builder.info.splits:
        raise OSError(f"{builder.data_dir} is incomplete, it has no splits: move it away and prepare {name!r} again.")
    candidates = (split for split in ("test", "validation") if split in builder.info.splits)
    with naming_damage(name, builder.data_dir):
        test_name = next((split for split in candidates if _is_labelled(builder, split)), None)
    if "train" not in builder.info.splits or test_name is None:
        raise ValueError(
            f"Data set {name!r} cannot be used: it needs a 'train' and a 'test' or 'validation' split, and has "
            f"{', '.join(builder.info.splits)}."
        )
    available, test_size = (builder.info.splits[split].num_examples for split in ("train", test_name))
    total = _chosen_images(name, available, training_images)
    first_held_out = total - round(total * validation_fraction)
    in_memory = (total + test_size) * math.prod(image_shape) <= MEMORY_LIMIT_BYTES

    @as_written
    def decode(encoded: tf.Tensor) -> tf.Tensor:
        image = image_feature.decode_example(encoded)
        if image_size is not None:
            image = fitted(image, (image_size, image_size))
        return tf.ensure_shape(image, image_shape)

    def load_split(name: str, begin: int, end: int) -> Split:
        def stream(first: int, last: int) -> tf.data.Dataset:
            return builder.as_dataset(
                split=f"{name}[{begin + first}:{begin + last}]",
                as_supervised=True,
                decoders={builder.info.supervised_keys[0]: tfds.decode.SkipDecoding()},
                read_config=tfds.ReadConfig(try_autocache=False),
            )

        size = end - begin
        split = Split(size, stream=stream, decode=decode, num_classes=len(class_names))
        if size == 0 or not in_memory:
            return split
        decoded = stream(0, size).map(decoder_of(split), num_parallel_calls=tf.data.AUTOTUNE).batch(1000)
        images, labels = (np.concatenate(arrays) for arrays in zip(*decoded.as_numpy_iterator()))
        return Split(size, arrays=(images, labels))

    with naming_damage(name, builder.data_dir):
        splits = {
            "train": load_split("train", 0, first_held_out),
            "validation": load_split("train", first_held_out, total),
            "test": load_split(test_name, 0, test_size),
        }
    return splits, class_names


def tfds_builder(name: str, data_dir: str | None) -> Any:
    """The builder of a set of TensorFlow Datasets.

    Args:
        name: of the set.
        data_dir: where prepared sets are kept. The default of TensorFlow Datasets where None.

    Returns:
        A `tfds.core.DatasetBuilder`.

    Raises:
        ValueError: there is no set of that name.
        OSError: its description on the disk is damaged.
    """
    import tensorflow_datasets as tfds

    if not isinstance(name, str):
        raise ValueError(f"data.load_datasets.name must be the name of a data set, got {name!r}.")
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError):  # Of unknown names and versions, and of names that none can have.
        near = difflib.get_close_matches(name, [DIGITS, *tfds.list_builders(with_community_datasets=False)], n=3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"Unknown data set {name!r}: data.load_datasets.name is {DIGITS!r} or a name of TensorFlow Datasets.{hint}"
        ) from None
    except Exception as error:  # Of whatever parses the description of a prepared set.
        raise OSError(
            f"The description of data set {name!r} is damaged: {one_line(error)} Move its folder away and prepare the "
            "set again."
        ) from error


def image_classification(builder: Any, image_size: int | None) -> tuple[Any, tuple[str, ...], tuple[int, int, int]]:
    """What a set of TensorFlow Datasets classifies, known before it is prepared.

    Args:
        builder: what `tfds_builder` gives.
        image_size: height and width that images are resized to, or None.

    Returns:
        The feature that decodes images, the names of the classes, and (height, width, channels) of an image.

    Raises:
        ValueError: the set has no images with one label each, or they differ in size and `image_size` is None.
    """
    import tensorflow_datasets as tfds

    name, keys = builder.name, builder.info.supervised_keys or ()
    features = [dict(builder.info.features.items()).get(key) for key in keys]
    if len(keys) != 2 or not (
        isinstance(features[0], tfds.features.Image) and isinstance(features[1], tfds.features.ClassLabel)
    ):
        raise ValueError(f"Data set {name!r} cannot be used: it does not pair images with one class label each.")
    height, width, channels = features[0].shape
    if image_size is not None:
        height = width = image_size
    elif None in (height, width):
        raise ValueError(
            f"The images of {name!r} differ in size: set data.load_datasets.image_size to the size they shall have."
        )
    return features[0], tuple(features[1].names), (height, width, channels or 3)


def prepare(builder: Any) -> None:
    """Downloads and prepares a set of TensorFlow Datasets, where that has not been done.

    Args:
        builder: what `tfds_builder` gives.

    Raises:
        OSError: it could not be downloaded or written.
    """
    try:
        builder.download_and_prepare()
    except Exception as error:  # Each set has its own errors. An assertion asks for files to be downloaded by hand.
        raise OSError(
            f"Data set {builder.name!r} is not prepared under {builder.data_dir} and could not be downloaded: "
            f"{first_line(error)}"
        ) from error


def _is_labelled(builder: Any, split: str) -> bool:
    """Whether a split has labels; where they are secret, as in ImageNet's test split, TensorFlow Datasets puts -1."""
    return all(label >= 0 for _, label in builder.as_dataset(split=f"{split}[:1]", as_supervised=True))
