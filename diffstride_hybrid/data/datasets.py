"""Image-classification data as `tf.data` pipelines that give the same batches for the same seed and step.

A batch of the training pipeline depends on the seed and on the number of the step alone, so a run that goes on at step
`n` sees what it would have seen had it never stopped. Sets that fit in memory are held there as integers and batched by
index; larger ones are streamed. Where several machines train, each reads a `Shard`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from diffstride_hybrid.data.augmentation import AugmentFn, mix_up, mixup_weights
from diffstride_hybrid.data.damage import OUT_OF_RANGE, naming_damage
from diffstride_hybrid.data.images import normalised


def first_images(datasets: Datasets, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a split, normalised, and their one-hot labels.

    Args:
        datasets: of a run.
        split: 'train', 'validation' or 'test'.
        count: how many, or all where the split has fewer.

    Returns:
        `[images, height, width, channels]` and `[images, classes]`.
    """
    count = min(count, datasets.splits[split].size)
    batches = datasets.evaluation(split).take(-(-count // datasets.batch_size)).as_numpy_iterator()
    images, labels, _ = (np.concatenate(parts) for parts in zip(*batches))
    return images[:count], labels[:count]


# AutoGraph would read this file anew when a pipeline is built, maybe long after it was imported.
as_written = tf.autograph.experimental.do_not_convert


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

        @as_written
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

        @as_written
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
            dataset = split.stream(first, last).map(decoder_of(split), num_parallel_calls=tf.data.AUTOTUNE)
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

        @as_written
        def order_of(epoch: tf.Tensor) -> tf.data.Dataset:
            order = tf.random.experimental.stateless_shuffle(
                tf.range(split.size), tf.stack([tf.cast(self.seed, tf.int64), epoch])
            )
            order = tf.reshape(order[: steps * self.images_per_step], [steps, self.images_per_step])[:, first:last]
            return tf.data.Dataset.from_tensor_slices((epoch * steps + tf.range(steps, dtype=tf.int64), order))

        @as_written
        def gather(step: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            return step, tf.gather(images, indices), tf.gather(labels, indices)

        epochs = tf.data.Dataset.range(first_step // steps, np.iinfo(np.int64).max // steps)
        return epochs.flat_map(order_of).skip(first_step % steps).map(gather, num_parallel_calls=tf.data.AUTOTUNE)

    def _stream(self, split: Split, first_step: int, shard: Shard) -> tf.data.Dataset:
        first, last = shard.part_of(split.size)
        images_per_step, steps = self.images_per_step // shard.count, self.steps_per_epoch

        @as_written
        def order_of(epoch: tf.Tensor) -> tf.data.Dataset:
            seed = tf.random.stateless_uniform(
                [], tf.stack([tf.cast(self.seed, tf.int64), epoch]), 0, tf.int64.max, tf.int64
            )
            images = split.stream(first, last).shuffle(min(last - first, 10_000), seed, reshuffle_each_iteration=False)
            return images.take(steps * images_per_step)

        # Epochs that are past are not read again.
        epochs = tf.data.Dataset.range(first_step // steps, np.iinfo(np.int64).max // steps)
        dataset = epochs.flat_map(order_of).skip(first_step % steps * images_per_step)
        dataset = dataset.map(decoder_of(split), num_parallel_calls=tf.data.AUTOTUNE)
        dataset = dataset.batch(images_per_step, drop_remainder=True)
        return dataset.enumerate(first_step).map(as_written(lambda step, batch: (step, *batch)))


def decoder_of(split: Split) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    def decode(encoded: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        assertion = tf.debugging.Assert((label >= 0) & (label < split.num_classes), [f"{OUT_OF_RANGE}:", label])
        with tf.control_dependencies([assertion]):
            return split.decode(encoded), tf.identity(label)

    return as_written(decode)
