"""Image-classification data as `tf.data` pipelines that give the same batches for the same seed and step.

A batch of the training pipeline depends on the seed and on the number of the step alone, so a run that goes on at step
`n` sees what it would have seen had it never stopped. Sets that fit in memory are held there as integers and batched by
index; larger ones are streamed. Where several machines train, each reads a `Shard`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from diffstride_hybrid.errors import first_line, is_whole, one_line

AugmentFn = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""Takes images `[batch, height, width, channels]` and random numbers `[batch, 2]`, returns images of the same shape.

The numbers are int64, at least 0, and an image gets the same ones whatever part of the batch it comes in. Each pair can
seed `tf.image.stateless_…`.
"""

DIGITS = "digits"
DIGITS_SIZE = 32
MEMORY_LIMIT_BYTES = 2 << 30
MIXUPS = ("pairs", "batch")

# AutoGraph would read this file anew when a pipeline is built, maybe long after it was imported.
_as_written = tf.autograph.experimental.do_not_convert

# Mean and standard deviation of each channel, images scaled to 0..1. For CIFAR-10 as in the code released with
# DiffStride, for ImageNet as is customary. Every other set is measured on its training images.
_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclasses.dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        size: number of images.
        arrays: images `[size, height, width, channels]` uint8 and labels `[size]` where the set is held in memory.
        stream: where it is not, makes a dataset of single (encoded image, label) pairs: those from one index up to
            another.
        decode: turns an encoded image of `stream` into a uint8 image.
        num_classes: labels of `stream` are below it.
    """

    size: int
    arrays: tuple[np.ndarray, np.ndarray] | None = None
    stream: Callable[[int, int], tf.data.Dataset] | None = None
    decode: Callable[[tf.Tensor], tf.Tensor] | None = None
    num_classes: int = 0


class Shard(NamedTuple):
    """Which machine of how many reads the data, counted from 0."""

    index: int = 0
    count: int = 1

    def part_of(self, size: int) -> tuple[int, int]:
        """The first of `size` things that belongs to this machine, and the first after it that does not."""
        return size * self.index // self.count, size * (self.index + 1) // self.count


ALL = Shard()


@dataclasses.dataclass(frozen=True)
class Datasets:
    """What a run trains, validates and tests on. `load_datasets` makes it.

    Attributes:
        name: of the data set.
        image_shape: (height, width, channels).
        class_names: of the labels, in their order.
        batch_size: images of a training batch over all replicas.
        mean: of each channel, images scaled to 0..1, subtracted.
        std: of each channel, divided by.
        splits: 'train', 'validation' (may be empty) and 'test'.
        mixup_alpha: parameter of the Beta distribution, 0 for no mixup.
        mixup: 'pairs' or 'batch'.
        augment_fn: applied to normalised training images, None for none.
        seed: of order, augmentation and mixup.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    batch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    splits: dict[str, Split]
    mixup_alpha: float
    mixup: str
    augment_fn: AugmentFn | None
    seed: int

    @property
    def num_classes(self) -> int:
        """Length of the one-hot labels."""
        return len(self.class_names)

    @property
    def images_per_step(self) -> int:
        """How many images of the set one training batch is made from."""
        return self.batch_size * (2 if self.mixup_alpha > 0 and self.mixup == "pairs" else 1)

    @property
    def steps_per_epoch(self) -> int:
        """Training steps in one pass over the training images, the incomplete last batch left out."""
        return self.splits["train"].size // self.images_per_step

    def naming_damage(self) -> contextlib.AbstractContextManager[None]:
        """The context of that name for a run in which files are read, and one of no effect where all is in memory."""
        reads = any(split.size and split.arrays is None for split in self.splits.values())
        return naming_damage(self.name) if reads else contextlib.nullcontext()

    def evaluation_steps(self, split_name: str) -> int:
        """Steps in one pass over a split, the incomplete last batch counted."""
        return math.ceil(self.splits[split_name].size / self.batch_size)

    def train(self, first_step: int = 0, shard: Shard = ALL) -> tf.data.Dataset:
        """Training batches without end.

        Of a set in memory, the shards of a step are the parts of the one batch that a single machine would read (with
        `mixup='batch'` where they are of even size). Of a set that is streamed, each machine reads a fixed part, and
        the order depends on TensorFlow's global seed, too.

        Args:
            first_step: the step, counted over all epochs, whose batch comes first.
            shard: the machine's share of each batch.

        Returns:
            A dataset of (images `[batch, height, width, channels]`, labels `[batch, classes]`), both float32.
        """
        split = self.splits["train"]
        batches = self._batches_in_memory if split.arrays else self._stream
        first, last = shard.part_of(self.batch_size)

        @_as_written
        def finish(step: tf.Tensor, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # Drawn for the whole batch, so that they do not depend on the number of machines.
            seeds = tf.random.experimental.stateless_split(tf.stack([tf.cast(self.seed, tf.int64), step]), 2)
            images = normalised(images, self.mean, self.std)
            labels = tf.one_hot(labels, self.num_classes)
            if self.augment_fn is not None:
                numbers = tf.random.stateless_uniform([self.images_per_step, 2], seeds[0], 0, tf.int64.max, tf.int64)
                images = self.augment_fn(images, numbers[slice(*shard.part_of(self.images_per_step))])
            if self.mixup_alpha > 0:
                weights = mixup_weights(self.batch_size, seeds[1], self.mixup_alpha)
                images, labels = mix_up(images, labels, weights[first:last], self.mixup)
            shape = (last - first, *self.image_shape)
            return tf.ensure_shape(images, shape), tf.ensure_shape(labels, (last - first, self.num_classes))

        dataset = batches(split, first_step, shard).map(finish, num_parallel_calls=tf.data.AUTOTUNE)
        # Without a known end TensorFlow would ask all machines in each step whether they have data left.
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        return dataset.prefetch(tf.data.AUTOTUNE)

    def evaluation(self, split_name: str, shard: Shard = ALL) -> tf.data.Dataset:
        """Every image of a split once, in order, in batches of equal size, of which every shard has as many.

        Args:
            split_name: 'train', 'validation' or 'test'.
            shard: the machine's share.

        Returns:
            A dataset of (images `[batch, height, width, channels]`, labels `[batch, classes]`, weights `[batch]`), all
            float32. A weight is 1, or 0 for what only fills up a batch.
        """
        split = self.splits[split_name]
        first, last = shard.part_of(split.size)
        batch_size = self.batch_size // shard.count

        @_as_written
        def finish(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            count = tf.shape(images)[0]
            missing = [[0, batch_size - count]]
            images = tf.pad(normalised(images, self.mean, self.std), [*missing, [0, 0], [0, 0], [0, 0]])
            labels = tf.pad(tf.one_hot(labels, self.num_classes), [*missing, [0, 0]])
            return (
                tf.ensure_shape(images, (batch_size, *self.image_shape)),
                tf.ensure_shape(labels, (batch_size, self.num_classes)),
                tf.sequence_mask(count, batch_size, tf.float32),
            )

        if split.arrays:
            dataset = tf.data.Dataset.from_tensor_slices(tuple(array[first:last] for array in split.arrays))
        else:
            dataset = split.stream(first, last).map(_decoder(split), num_parallel_calls=tf.data.AUTOTUNE)
        dataset = dataset.batch(batch_size, num_parallel_calls=tf.data.AUTOTUNE)
        dataset = dataset.map(finish, num_parallel_calls=tf.data.AUTOTUNE)
        nothing = tuple(tf.zeros(spec.shape, spec.dtype) for spec in dataset.element_spec)
        dataset = dataset.concatenate(tf.data.Dataset.from_tensors(nothing).repeat())
        return dataset.take(self.evaluation_steps(split_name)).prefetch(tf.data.AUTOTUNE)

    def _batches_in_memory(self, split: Split, first_step: int, shard: Shard) -> tf.data.Dataset:
        with tf.device("CPU"):
            images, labels = (tf.constant(array) for array in split.arrays)
        steps = self.steps_per_epoch
        first, last = shard.part_of(self.images_per_step)

        @_as_written
        def order_of(epoch: tf.Tensor) -> tf.data.Dataset:
            order = tf.random.experimental.stateless_shuffle(
                tf.range(split.size), tf.stack([tf.cast(self.seed, tf.int64), epoch])
            )
            order = tf.reshape(order[: steps * self.images_per_step], [steps, self.images_per_step])[:, first:last]
            return tf.data.Dataset.from_tensor_slices((epoch * steps + tf.range(steps, dtype=tf.int64), order))

        @_as_written
        def gather(step: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return step, tf.gather(images, indices), tf.gather(labels, indices)

        epochs = tf.data.Dataset.range(first_step // steps, np.iinfo(np.int64).max // steps)
        return epochs.flat_map(order_of).skip(first_step % steps).map(gather, num_parallel_calls=tf.data.AUTOTUNE)

    def _stream(self, split: Split, first_step: int, shard: Shard) -> tf.data.Dataset:
        first, last = shard.part_of(split.size)
        images_per_step, steps = self.images_per_step // shard.count, self.steps_per_epoch

        @_as_written
        def order_of(epoch: tf.Tensor) -> tf.data.Dataset:
            seed = tf.random.stateless_uniform(
                [], tf.stack([tf.cast(self.seed, tf.int64), epoch]), 0, tf.int64.max, tf.int64
            )
            images = split.stream(first, last).shuffle(min(last - first, 10_000), seed, reshuffle_each_iteration=False)
            return images.take(steps * images_per_step)

        # Epochs that are past are not read again.
        epochs = tf.data.Dataset.range(first_step // steps, np.iinfo(np.int64).max // steps)
        dataset = epochs.flat_map(order_of).skip(first_step % steps * images_per_step)
        dataset = dataset.map(_decoder(split), num_parallel_calls=tf.data.AUTOTUNE)
        dataset = dataset.batch(images_per_step, drop_remainder=True)
        return dataset.enumerate(first_step).map(_as_written(lambda step, batch: (step, *batch)))


def normalised(images: tf.Tensor, mean: Sequence[float], std: Sequence[float]) -> tf.Tensor:
    """Images as a network takes them.

    Args:
        images: `[..., channels]`, 0..255.
        mean: of each channel, images scaled to 0..1, subtracted.
        std: of each channel, divided by.

    Returns:
        float32 of the same shape.
    """
    mean, std = (np.asarray(statistic, np.float32) for statistic in (mean, std))
    return tf.cast(images, tf.float32) * (1 / (255 * std)) - mean / std


def fitted(image: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """An image resized until it fits into a size, with black where its sides are of another ratio.

    Args:
        image: `[height, width, channels]`, 0..255.
        size: (height, width).

    Returns:
        uint8 image.
    """
    image = tf.image.resize_with_pad(image, *size, antialias=True)
    return tf.cast(tf.round(tf.clip_by_value(image, 0, 255)), tf.uint8)


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
        splits, class_names = _load_digits(validation_fraction, training_images, image_size or DIGITS_SIZE)
    else:
        splits, class_names = _load_tfds(name, validation_fraction, training_images, image_size, data_dir)
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
        _check_augmentation(augment_fn, (batch_size, *image_shape))
    return datasets


def augment(images: tf.Tensor, numbers: tf.Tensor, pad_size: int = 2, flip: bool = True) -> tf.Tensor:
    """Shifts each image by up to `pad_size` pixels along each axis and mirrors half of them.

    Args:
        images: `[batch, height, width, channels]`, normalised. What is shifted in is 0, the mean.
        numbers: `[batch, 2]`, int64, random, see `AugmentFn`.
        pad_size: greatest shift.
        flip: whether to mirror left and right.

    Returns:
        Images of the same shape.
    """
    if not is_whole(pad_size, least=0):
        raise ValueError(f"data.augment.pad_size must be a whole number of at least 0, got {pad_size!r}.")
    height, width = images.shape[1:3]
    choices = 2 * pad_size + 1
    rows, columns = (tf.cast(number % choices, tf.int32) for number in tf.split(numbers, 2, axis=1))
    padded = tf.pad(images, [[0, 0], [pad_size, pad_size], [pad_size, pad_size], [0, 0]])
    columns += tf.range(width)
    if flip:
        mirrored = numbers[:, :1] // choices % 2 == 0
        columns = tf.where(mirrored, tf.reverse(columns, [1]), columns)
    shifted = tf.gather(padded, rows + tf.range(height), axis=1, batch_dims=1)
    return tf.gather(shifted, columns, axis=2, batch_dims=1)


def mix_up(
    images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor, mixup: str = "pairs"
) -> tuple[tf.Tensor, tf.Tensor]:
    """Replaces images and labels by convex combinations of two (Zhang et al., arXiv 1710.09412).

    Args:
        images: `[images, height, width, channels]`.
        labels: `[images, classes]`.
        weights: one for each image that results, of the first of the two.
        mixup: 'pairs' mixes image 2 i with image 2 i + 1 into one, which halves the batch; 'batch' mixes each of these
            two with the other one.

    Returns:
        Mixed images and labels.
    """

    def mixed(values: tf.Tensor) -> tf.Tensor:
        first, second = values[0::2], values[1::2]
        if mixup == "batch":
            count = tf.shape(values)[0]
            # The last one of an odd number stays as it is.
            others = tf.minimum(tf.bitwise.bitwise_xor(tf.range(count), 1), count - 1)
            first, second = values, tf.gather(values, others)
        weight = tf.reshape(weights, [-1] + [1] * (values.shape.rank - 1))
        return second + weight * (first - second)

    return mixed(images), mixed(labels)


def mixup_weights(count: int, seed: tf.Tensor, alpha: float) -> tf.Tensor:
    """Samples of Beta(alpha, alpha), from gamma variates in logarithms: for small alpha the variates underflow."""
    seeds = tf.random.experimental.stateless_split(seed, 2)
    gamma = tf.random.stateless_gamma([2, count], seeds[0], alpha + 1.0)
    uniform = tf.random.stateless_uniform([2, count], seeds[1], minval=np.finfo(np.float32).tiny)
    log_gamma = tf.math.log(gamma) + tf.math.log(uniform) / alpha
    return tf.sigmoid(log_gamma[0] - log_gamma[1])


# --- Loading ---------------------------------------------------------------------------------------------------------


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


def _check_augmentation(augment_fn: AugmentFn, shape: tuple[int, ...]) -> None:
    specs = tf.TensorSpec(shape, tf.float32), tf.TensorSpec([shape[0], 2], tf.int64)
    augmented = tf.function(augment_fn, autograph=False).get_concrete_function(*specs).structured_outputs
    if not augmented.shape.is_compatible_with(shape):
        raise ValueError(
            f"data.load_datasets.augment_fn must keep the shape of its images, {shape}, got {tuple(augmented.shape)}."
        )


def _chosen_images(name: str, available: int, training_images: int | None) -> int:
    if training_images is not None and training_images > available:
        raise ValueError(
            f"data.load_datasets.training_images must be at most the {available:,} of {name}, got {training_images:,}."
        )
    return available if training_images is None else training_images


def _load_digits(
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


def _load_tfds(
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

    @_as_written
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
        decoded = stream(0, size).map(_decoder(split), num_parallel_calls=tf.data.AUTOTUNE).batch(1000)
        images, labels = (np.concatenate(arrays) for arrays in zip(*decoded.as_numpy_iterator()))
        return Split(size, arrays=(images, labels))

    with naming_damage(name, builder.data_dir):
        splits = {
            "train": load_split("train", 0, first_held_out),
            "validation": load_split("train", first_held_out, total),
            "test": load_split(test_name, 0, test_size),
        }
    return splits, class_names


@contextlib.contextmanager
def naming_damage(name: str, folder: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Says so, and what to do, where something fails within the context because files of a data set are damaged.

    Args:
        name: of the set.
        folder: where it is, if that is known.

    Raises:
        OSError: a file is missing, cut off or damaged, an image cannot be decoded, or a label is out of range.
    """
    try:
        yield
    except tf.errors.OpError as error:
        causes = (tf.errors.DataLossError, tf.errors.NotFoundError, tf.errors.OutOfRangeError)
        # Not those of a machine that is short of something, or gone, which arise as well where data are read.
        possible = (tf.errors.InvalidArgumentError, tf.errors.FailedPreconditionError, tf.errors.InternalError)
        from_data = any(sign in error.message for sign in ("IteratorGetNext", "Decode", _OUT_OF_RANGE))
        of_augmentation = "assertion failed" in error.message and _OUT_OF_RANGE not in error.message
        if not isinstance(error, causes) and not (isinstance(error, possible) and from_data and not of_augmentation):
            raise
        where = f" in {folder}" if folder else ""
        raise OSError(
            f"The files of data set {name!r}{where} are damaged or incomplete: {one_line(error)} Move them away and "
            "prepare the set again."
        ) from error


_OUT_OF_RANGE = "A label is out of range"


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


def _decoder(split: Split) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    def decode(encoded: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        assertion = tf.debugging.Assert((label >= 0) & (label < split.num_classes), [f"{_OUT_OF_RANGE}:", label])
        with tf.control_dependencies([assertion]):
            return split.decode(encoded), tf.identity(label)

    return _as_written(decode)


def _measure(name: str, train: Split) -> tuple[tuple[int, int, int], tuple[float, ...], tuple[float, ...]]:
    """Shape of the images, and mean and standard deviation of each channel, images scaled to 0..1."""
    if train.arrays is not None:
        images = train.arrays[0]
    else:
        images = np.stack(
            list(
                train.stream(0, min(1000, train.size)).map(_decoder(train)).map(_as_written(lambda image, label: image))
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
