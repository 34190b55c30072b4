"""Image-classification data as `tf.data` pipelines that give the same batches for the same seed and step.

A training batch depends on the seed and the number of the step alone, so a run that resumes at step `n` sees the same
batches as a run that never stopped. A set that fits in memory is held there as integers and batched by index; a larger
set is streamed. If several machines train, each reads a `Shard`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from diffstride_hybrid.common.arguments import spread_indices
from diffstride_hybrid.data.augmentation import AugmentFn, mix_up, mixup_weights
from diffstride_hybrid.data.damage import LABEL_OUT_OF_RANGE, naming_damaged_files
from diffstride_hybrid.data.pixels import normalize_images

# Without this decorator AutoGraph reads this file again when a pipeline is built. The file may have changed by then.
as_written = tf.autograph.experimental.do_not_convert


@dataclasses.dataclass(frozen=True)
class Split:
    """One part of a data set.

    Attributes:
        size: number of images.
        arrays: images `[size, height, width, channels]` (uint8) and labels `[size]` (integers) of a set in memory. None
            if the set is streamed.
        stream: makes a dataset of single (encoded image, label) pairs, from one index (included) to another (excluded).
            None if the set is in memory.
        decode: turns an encoded image of `stream` into a uint8 image `[height, width, channels]`.
        num_classes: every label of `stream` must be at least 0 and below this number.
        files_digest: a short hash of the names of its files, if it was drawn from the files of a user's own folder.
        labels_digest: a short hash of its labels in their order, of at most 1,000 if it is streamed; if it was drawn
            from a split of TensorFlow Datasets.
    """

    size: int
    arrays: tuple[np.ndarray, np.ndarray] | None = None
    stream: Callable[[int, int], tf.data.Dataset] | None = None
    decode: Callable[[tf.Tensor], tf.Tensor] | None = None
    num_classes: int = 0
    files_digest: str | None = None
    labels_digest: str | None = None


class Shard(NamedTuple):
    """One machine's share of the data.

    Attributes:
        index: number of the machine, from 0.
        count: how many machines share the data.
    """

    index: int = 0
    count: int = 1

    def part_of(self, size: int) -> tuple[int, int]:
        """Splits `size` things evenly among the machines.

        Args:
            size: how many things there are.

        Returns:
            This machine's part: the first index, and the index after the last.
        """
        return size * self.index // self.count, size * (self.index + 1) // self.count


ALL = Shard()
"""The share of a machine that reads the data alone."""


@dataclasses.dataclass(frozen=True)
class Datasets:
    """The images that a run trains, validates and tests on. `load_datasets` makes an instance.

    Attributes:
        name: of the data set.
        image_shape: (height, width, channels).
        class_names: names of the labels 0, 1, 2, …
        batch_size: images of a training batch, summed over all replicas.
        mean: of each channel, of images scaled to 0..1. It is subtracted from the images.
        std: standard deviation of each channel, of images scaled to 0..1. The images are divided by it.
        splits: 'train', 'validation' (may be empty) and 'test'.
        mixup_alpha: parameter of mixup's Beta distribution, 0 for no mixup.
        mixup: 'pairs' or 'batch', as `mix_up` describes.
        augment_fn: applied to normalized training images. None for no augmentation.
        seed: of the order of images, augmentation and mixup.
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
        """How many images of the set one training batch is made from: twice the batch if mixup joins pairs."""
        return self.batch_size * (2 if self.mixup_alpha > 0 and self.mixup == "pairs" else 1)

    @property
    def steps_per_epoch(self) -> int:
        """Training steps in one pass over the training images. An incomplete last batch is left out."""
        return self.splits["train"].size // self.images_per_step

    def naming_damage(self) -> contextlib.AbstractContextManager[None]:
        """A context for reading batches: if that fails as files of the set are damaged, the error says so.

        Returns:
            The context `naming_damaged_files`, or one without any effect if the whole set is in memory.
        """
        reads_files = any(split.size and split.arrays is None for split in self.splits.values())
        own = any(split.files_digest is not None for split in self.splits.values())
        return naming_damaged_files(self.name, own=own) if reads_files else contextlib.nullcontext()

    def evaluation_steps(self, split_name: str) -> int:
        """Steps in one pass over a split. An incomplete last batch counts as a step.

        Args:
            split_name: 'train', 'validation' or 'test'.
        """
        return math.ceil(self.splits[split_name].size / self.batch_size)

    def training(self, first_step: int = 0, shard: Shard = ALL) -> tf.data.Dataset:
        """Makes a dataset of training batches without end.

        If the set is in memory, the shards of a step make up the batch that a single machine would read. (With
        `mixup='batch'` this needs shards of even size.) If the set is streamed, each machine reads a fixed part of it,
        and the order of images depends on TensorFlow's global seed as well.

        Args:
            first_step: the step whose batch comes first, counted over all epochs.
            shard: the machine's share of each batch.

        Returns:
            A dataset of (images `[batch, height, width, channels]`, labels `[batch, classes]`), both float32.
        """
        split = self.splits["train"]
        batches = self._batches_in_memory if split.arrays else self._streamed_batches
        first, last = shard.part_of(self.batch_size)

        @as_written
        def finish(step: tf.Tensor, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            # Random numbers are drawn for the whole batch, so that they do not depend on the number of machines.
            seeds = tf.random.experimental.stateless_split(tf.stack([tf.cast(self.seed, tf.int64), step]), 2)
            images = normalize_images(images, self.mean, self.std)
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
        # Unless TensorFlow knows that a dataset is infinite, it asks all machines in each step whether data is left.
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY))
        return untuned(dataset.prefetch(tf.data.AUTOTUNE))

    def evaluation(self, split_name: str, shard: Shard = ALL) -> tf.data.Dataset:
        """Makes a dataset of each image of a split once, in order, in batches of equal size.

        Every shard has the same number of batches. Images of zeros fill up the last ones.

        Args:
            split_name: 'train', 'validation' or 'test'.
            shard: the machine's share of the split.

        Returns:
            A dataset of (images `[batch, height, width, channels]`, labels `[batch, classes]`, weights `[batch]`), all
            float32. The weight of an image is 1, and 0 if the image only fills up a batch.
        """
        split = self.splits[split_name]
        first, last = shard.part_of(split.size)
        batch_size = self.batch_size // shard.count

        @as_written
        def finish(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            count = tf.shape(images)[0]
            missing = [[0, batch_size - count]]
            images = tf.pad(normalize_images(images, self.mean, self.std), [*missing, [0, 0], [0, 0], [0, 0]])
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
        filling = tuple(tf.zeros(spec.shape, spec.dtype) for spec in dataset.element_spec)
        dataset = dataset.concatenate(tf.data.Dataset.from_tensors(filling).repeat())
        return untuned(dataset.take(self.evaluation_steps(split_name)).prefetch(tf.data.AUTOTUNE))

    def first_images(self, split_name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The first images of a split, normalized, and their labels.

        Args:
            split_name: 'train', 'validation' or 'test'.
            count: how many images. If the split has fewer, all of them are returned.

        Returns:
            Images `[count, height, width, channels]` and one-hot labels `[count, classes]`, both float32.
        """
        count = min(count, self.splits[split_name].size)
        batches = self.evaluation(split_name).take(math.ceil(count / self.batch_size)).as_numpy_iterator()
        images, labels, _ = (np.concatenate(parts) for parts in zip(*batches))
        return images[:count], labels[:count]

    def some_images(self, split_name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Images spread evenly over a split, as they are before they are normalized, and their labels.

        Args:
            split_name: 'train', 'validation' or 'test'.
            count: how many images. If the split has fewer, all of them are returned.

        Returns:
            Images `[count, height, width, channels]` (uint8) and labels `[count]` (integers).
        """
        split = self.splits[split_name]
        indices = spread_indices(split.size, count)
        if split.arrays:
            images, labels = (array[indices] for array in split.arrays)
            return images, labels
        numbered = split.stream(0, split.size).enumerate()
        chosen = numbered.filter(lambda i, image_and_label: tf.reduce_any(i == indices))
        chosen = chosen.map(lambda i, image_and_label: image_and_label).map(decoder_of(split))
        with self.naming_damage():
            images, labels = zip(*untuned(chosen).as_numpy_iterator())
        return np.stack(images), np.array(labels)

    def some_inputs(self, split_name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Images spread evenly over a split, normalized as a network takes them, and their labels.

        Args:
            split_name: 'train', 'validation' or 'test'.
            count: how many images. If the split has fewer, all of them are returned.

        Returns:
            Images `[count, height, width, channels]` and one-hot labels `[count, classes]`, both float32.
        """
        pixels, labels = self.some_images(split_name, count)
        images = normalize_images(pixels, self.mean, self.std)
        return images.numpy(), tf.one_hot(labels, self.num_classes).numpy()

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

    def _streamed_batches(self, split: Split, first_step: int, shard: Shard) -> tf.data.Dataset:
        first, last = shard.part_of(split.size)
        images_per_step, steps = self.images_per_step // shard.count, self.steps_per_epoch

        @as_written
        def order_of(epoch: tf.Tensor) -> tf.data.Dataset:
            seed = tf.random.stateless_uniform(
                [], tf.stack([tf.cast(self.seed, tf.int64), epoch]), 0, tf.int64.max, tf.int64
            )
            graph = tf.compat.v1.get_default_graph()
            if graph.seed is not None and graph.seed % np.iinfo(np.int32).max == 0:
                graph.seed = None  # TensorFlow takes 0 for no seed, and then wants to know `seed` while it traces.
            images = split.stream(first, last).shuffle(min(last - first, 10_000), seed, reshuffle_each_iteration=False)
            return images.take(steps * images_per_step)

        # Start at the epoch of `first_step`, so that earlier epochs are not read again.
        epochs = tf.data.Dataset.range(first_step // steps, np.iinfo(np.int64).max // steps)
        dataset = epochs.flat_map(order_of).skip(first_step % steps * images_per_step)
        dataset = dataset.map(decoder_of(split), num_parallel_calls=tf.data.AUTOTUNE)
        dataset = dataset.batch(images_per_step, drop_remainder=True)
        return dataset.enumerate(first_step).map(as_written(lambda step, batch: (step, *batch)))


def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Turns off what tunes a dataset while it is read.

    The end of an iterator may miss the thread that tunes it in TensorFlow 2.21, and then waits for it, for up to a
    minute. Without tuning these datasets are read as fast or faster, and small ones begin sooner.

    Args:
        dataset: of any kind.

    Returns:
        The same dataset.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def decoder_of(split: Split) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Makes the function that decodes one (encoded image, label) pair of a streamed split and checks the label.

    Args:
        split: a split with a `stream`.

    Returns:
        A function for `tf.data.Dataset.map`, from (encoded image, label) to (uint8 image, label). It raises
        InvalidArgumentError, when it runs, if a label is out of range.
    """

    def decode(encoded: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        assertion = tf.debugging.Assert((label >= 0) & (label < split.num_classes), [f"{LABEL_OUT_OF_RANGE}:", label])
        with tf.control_dependencies([assertion]):
            return split.decode(encoded), tf.identity(label)

    return as_written(decode)
