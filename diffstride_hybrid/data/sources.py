"""The places that images come from: scikit-learn's digits and TensorFlow Datasets, as splits in memory or streamed."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
import pathlib
import shlex
from typing import Any

import numpy as np
import tensorflow as tf

from diffstride_hybrid.common.errors import did_you_mean, first_line, one_line
from diffstride_hybrid.data.damage import naming_damaged_files
from diffstride_hybrid.data.datasets import Split, as_written, decoder_of, untuned
from diffstride_hybrid.data.pixels import fit_to_size, to_8_bits
from diffstride_hybrid.data.splitting import MEMORY_LIMIT_BYTES, division

DIGITS = "digits"
"""Name of scikit-learn's handwritten digits, which need no download."""

DIGITS_SIZE = 32
"""Height and width that the digits, of 8x8 pixels, are resized to by default."""

_LONGEST_REASON = 140
"""Characters of the reason why a download failed, so that what to do follows on the same line."""

_STREAMED_LABELS = 1000
"""How many labels tell one order of streamed images from another."""


def digits_splits(
    validation_fraction: float, training_images: int | None, image_size: int
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Reads the 1,797 handwritten digits that scikit-learn bundles. A fifth of each class is for testing.

    Args:
        validation_fraction: share of the training images set aside for validation, from 0 to below 1.
        training_images: how many images of the training split to use, with those for validation. None for all.
        image_size: height and width of the result, in pixels.

    Returns:
        'train', 'validation' and 'test' in memory, with images `[size, image_size, image_size, 1]`, and the names of
        the classes.

    Raises:
        ValueError: there are fewer than `training_images` images.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = tf.image.resize(digits.images[..., None] * (255 / 16), [image_size, image_size], antialias=True)
    images = tf.cast(tf.round(images), tf.uint8).numpy()
    train, test = train_test_split(np.arange(len(images)), test_size=0.2, random_state=0, stratify=digits.target)
    for_training, used = division(DIGITS, len(train), training_images, validation_fraction)
    parts = {"train": train[:for_training], "validation": train[for_training:used], "test": test}
    splits = {
        part: Split(len(indices), arrays=(images[indices], digits.target[indices])) for part, indices in parts.items()
    }
    return splits, tuple(str(name) for name in digits.target_names)


def tfds_splits(
    builder: Any, validation_fraction: float, training_images: int | None, image_size: int | None
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Reads a set of TensorFlow Datasets, which is downloaded and prepared first if that has not been done.

    The set's 'test' split is used for testing, or its 'validation' split if the labels of 'test' are secret.

    Args:
        builder: made by `tfds_builder`.
        validation_fraction: share of the training images set aside for validation, from 0 to below 1.
        training_images: how many images of the training split to use, with those for validation. None for all.
        image_size: height and width that images are resized to. None to leave them as they are.

    Returns:
        'train', 'validation' and 'test', and the names of the classes.

    Raises:
        ValueError: the set cannot be used: it does not pair images with one label each, has
            fewer than two classes, fewer than `training_images` images, or lacks a split.
        OSError: the set cannot be downloaded, or its files are damaged.
    """
    name = builder.name
    image_feature, class_names, image_shape = image_classification(builder, image_size)
    if len(class_names) < 2:
        raise ValueError(f"Data set {name!r} cannot be used: it has {len(class_names)} class, nothing to tell apart.")
    prepare(builder)
    test_name = _test_split_name(name, builder)
    available, test_size = (builder.info.splits[split].num_examples for split in ("train", test_name))
    for_training, used = division(name, available, training_images, validation_fraction)
    in_memory = (used + test_size) * math.prod(image_shape) <= MEMORY_LIMIT_BYTES
    reader = _TfdsReader(builder, image_feature, image_shape, len(class_names), image_size is not None, in_memory)
    with naming_damaged_files(name, builder.data_dir):
        splits = {
            "train": reader.split("train", 0, for_training),
            "validation": reader.split("train", for_training, used),
            "test": reader.split(test_name, 0, test_size),
        }
        # The order of images is that of the files that the set was prepared from.
        splits["validation"] = dataclasses.replace(splits["validation"], labels_digest=_digest(splits["validation"]))
    return splits, class_names


def _digest(split: Split) -> str | None:
    """A short hash of the labels of a split; of a streamed one, of the first ones. None if it is empty."""
    if split.arrays is not None:
        labels = split.arrays[1]
    elif split.size:
        some = split.stream(0, min(split.size, _STREAMED_LABELS))
        labels = np.array([label for _, label in some.as_numpy_iterator()])
    else:
        return None
    return hashlib.sha256(np.asarray(labels, "<i8").tobytes()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class _TfdsReader:
    """Reads parts of a prepared set of TensorFlow Datasets."""

    builder: Any
    image_feature: Any
    image_shape: tuple[int, int, int]
    num_classes: int
    resizes: bool
    in_memory: bool

    def split(self, name: str, begin: int, end: int) -> Split:
        size = end - begin
        stream = functools.partial(self._stream, name, begin)
        split = Split(size, stream=stream, decode=self._decode, num_classes=self.num_classes)
        if size == 0 or not self.in_memory:
            return split
        encoded = stream(0, size)
        decode, (_, label_spec) = decoder_of(split), encoded.element_spec

        @as_written
        def decode_batch(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            signature = (tf.TensorSpec(self.image_shape, tf.uint8), label_spec)
            return tf.map_fn(lambda pair: decode(*pair), (images, labels), fn_output_signature=signature)

        # With small images a call for each one takes longer than decoding it.
        decoded = untuned(encoded.batch(500).map(decode_batch, num_parallel_calls=tf.data.AUTOTUNE))
        images, labels = (np.concatenate(arrays) for arrays in zip(*decoded.as_numpy_iterator()))
        return Split(size, arrays=(images, labels))

    def _stream(self, name: str, begin: int, first: int, last: int) -> tf.data.Dataset:
        import tensorflow_datasets as tfds

        return self.builder.as_dataset(
            split=f"{name}[{begin + first}:{begin + last}]",
            as_supervised=True,
            decoders={self.builder.info.supervised_keys[0]: tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(try_autocache=False),
        )

    def _decode(self, encoded: tf.Tensor) -> tf.Tensor:
        image = self.image_feature.decode_example(encoded)
        if image.dtype == tf.uint16:
            image = to_8_bits(image)
        if self.resizes:
            image = fit_to_size(image, self.image_shape[:2])
        return tf.ensure_shape(image, self.image_shape)


def tfds_builder(name: str, data_dir: str | None, argument: str = "data.load_datasets.name") -> Any:
    """Makes the builder of a set of TensorFlow Datasets.

    Args:
        name: of the set.
        data_dir: folder of prepared sets. None for the default of TensorFlow Datasets.
        argument: what the user gave the name as, for messages.

    Returns:
        A `tfds.core.DatasetBuilder`.

    Raises:
        ValueError: no set has that name.
        OSError: the description of the set on the disk is damaged.
    """
    import tensorflow_datasets as tfds

    if not isinstance(name, str):
        raise ValueError(f"{argument} must be the name of a data set, got {name!r}.")
    try:
        return tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError):  # An unknown name or version, or a name that is not allowed.
        hint = did_you_mean(name, [DIGITS, *tfds.list_builders(with_community_datasets=False)])
        raise ValueError(
            f"Unknown data set {name!r}: {argument} is {DIGITS!r}, a name of TensorFlow Datasets, or a folder of "
            f"images{'; ' + hint if hint else '.'}"
        ) from None
    except Exception as error:  # The parser of a set's description raises errors of many kinds.
        raise OSError(
            f"The description of data set {name!r} is damaged: {one_line(error)} Move its folder away and prepare the "
            "set again."
        ) from error


def image_classification(builder: Any, image_size: int | None) -> tuple[Any, tuple[str, ...], tuple[int, int, int]]:
    """Tells which images and classes a set of TensorFlow Datasets has. The set need not be prepared.

    Args:
        builder: made by `tfds_builder`.
        image_size: height and width that images are resized to. None to leave them as they are.

    Returns:
        The feature that decodes images, the names of the classes, and (height, width, channels) of an image.

    Raises:
        ValueError: the set does not pair images with one label each, its images have neither 8 nor 16 bits, or they
            differ in size and `image_size` is None.
    """
    import tensorflow_datasets as tfds

    name, keys = builder.name, builder.info.supervised_keys or ()
    features = [dict(builder.info.features.items()).get(key) for key in keys]
    if len(keys) != 2 or not (
        isinstance(features[0], tfds.features.Image) and isinstance(features[1], tfds.features.ClassLabel)
    ):
        raise ValueError(f"Data set {name!r} cannot be used: it does not pair images with one class label each.")
    if features[0].np_dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"Data set {name!r} cannot be used: its images are {np.dtype(features[0].np_dtype).name}, so which of "
            "their numbers is white is not known."
        )
    height, width, channels = features[0].shape
    if image_size is not None:
        height = width = image_size
    elif None in (height, width):
        raise ValueError(
            f"The images of {name!r} differ in size: set data.load_datasets.image_size to the size they shall have."
        )
    return features[0], tuple(features[1].names), (height, width, channels or 3)


def prepare(builder: Any) -> None:
    """Downloads and prepares a set of TensorFlow Datasets. Does nothing if the set is prepared.

    Args:
        builder: made by `tfds_builder`.

    Raises:
        OSError: the set cannot be downloaded or written.
    """
    try:
        builder.download_and_prepare()
    except Exception as error:  # Each set has its own errors. An assertion asks for files to be downloaded by hand.
        name, root = _name_and_root(builder)
        reason = first_line(error).rstrip(".:")
        reason = reason if len(reason) <= _LONGEST_REASON else f"{reason[:_LONGEST_REASON]} …"
        raise OSError(
            f"Data set {builder.name!r} is not prepared under {builder.data_dir} and could not be downloaded: "
            f"{reason}; try again, or prepare it from files: python -m diffstride_hybrid.prepare "
            f"--name={name} --source=FOLDER --data_dir={shlex.quote(root)}"
        ) from error


def _name_and_root(builder: Any) -> tuple[str, str]:
    """The name of a set as `tfds_builder` takes it, without its version, and the folder of all prepared sets."""
    folder = pathlib.Path(builder.data_dir).parent
    name = builder.info.full_name.rpartition("/")[0]
    return name, str(folder.parents[name.count("/")])


def check_complete(builder: Any) -> None:
    """Makes sure that a set of TensorFlow Datasets is there after it was prepared.

    Args:
        builder: made by `tfds_builder`.

    Raises:
        OSError: its folder is there and has no splits. TensorFlow Datasets takes such a folder for a prepared set.
    """
    if not builder.info.splits:
        raise OSError(
            f"{builder.data_dir} is incomplete, it has no splits: move it away and prepare {builder.name!r} again."
        )


def _test_split_name(name: str, builder: Any) -> str:
    """The split of a prepared set to test on."""
    splits = builder.info.splits
    check_complete(builder)
    candidates = (split for split in ("test", "validation") if split in splits)
    with naming_damaged_files(name, builder.data_dir):
        test_name = next((split for split in candidates if _is_labeled(builder, split)), None)
    if "train" not in splits or test_name is None:
        raise ValueError(
            f"Data set {name!r} cannot be used: it needs a 'train' and a 'test' or 'validation' split, and has "
            f"{', '.join(splits)}."
        )
    return test_name


def _is_labeled(builder: Any, split: str) -> bool:
    """Whether a split has labels. TensorFlow Datasets gives -1 for secret ones, as in ImageNet's test split."""
    return all(label >= 0 for _, label in builder.as_dataset(split=f"{split}[:1]", as_supervised=True))
