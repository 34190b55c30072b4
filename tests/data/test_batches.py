"""Batches for training and evaluation, of one machine and of several."""

import itertools
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.batches import (
    BATCH,
    RANDOM,
    STEPS,
    VALIDATION_SIZE,
    assert_same,
    evaluated,
    fingerprints,
    stored,
    take,
)
from support.tiny_datasets import TEST_SIZE, TRAIN_SIZE

from diffstride_hybrid.data import sources
from diffstride_hybrid.data.datasets import Shard

# --- Training batches ------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_batches_to_the_bit(load: Any, storage: str):
    first, again = (take(load(seed=3, **RANDOM).training(), 3 * STEPS) for _ in range(2))
    assert_same(first, again)


def test_no_dataset_is_tuned_while_it_is_read(load: Any, storage: str):
    """The end of an iterator that is tuned may take a minute."""
    datasets = load()
    for dataset in (datasets.training(), datasets.evaluation("test")):
        assert dataset.options().autotune.enabled is False


def test_only_the_seed_given_matters(load: Any, storage: str):
    if storage == "streamed":
        pytest.skip("tf.data's shuffle depends on TensorFlow's global seed as well, which a run sets to the same")
    batches = take(load(seed=3, **RANDOM).training(), 2 * STEPS)
    keras.utils.set_random_seed(99)
    assert_same(batches, take(load(seed=3, **RANDOM).training(), 2 * STEPS))


def test_another_seed_gives_another_order(load: Any, storage: str):
    for (images, _), (others, _) in zip(*(take(load(seed=seed).training(), 3) for seed in (3, 4))):
        assert not np.array_equal(images, others)


def test_each_seed_and_step_draws_its_own_augmentation(load: Any, storage: str):
    def draw(images: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        return tf.zeros_like(images) + tf.random.stateless_uniform([], numbers[0])

    batches = [take(load(seed=seed, augment_fn=draw).training(), 2 * STEPS) for seed in (3, 4)]
    drawn = {float(images.max()) for run in batches for images, _ in run}
    assert len(drawn) == 2 * 2 * STEPS


def test_training_goes_on_from_any_step(load: Any, storage: str):
    datasets = load(seed=3, **RANDOM)
    batches = take(datasets.training(), 2 * STEPS + 5)
    for first_step in (0, 1, STEPS - 1, STEPS, 2 * STEPS + 3):
        assert_same(batches[first_step : first_step + 2], take(datasets.training(first_step), 2))


def test_an_epoch_has_each_training_image_at_most_once_and_its_own_order(load: Any, storage: str):
    datasets = load()
    training_images = fingerprints(datasets, evaluated(datasets, "train"))
    assert datasets.steps_per_epoch == STEPS
    seen = fingerprints(datasets, take(datasets.training(), 3 * STEPS))
    epochs = [seen[i * STEPS * BATCH : (i + 1) * STEPS * BATCH] for i in range(3)]
    for epoch in epochs:
        assert len(set(epoch)) == STEPS * BATCH
        assert set(epoch) <= set(training_images)
        assert epoch != training_images[: STEPS * BATCH]
    for epoch, other in itertools.combinations(epochs, 2):
        assert epoch != other
        assert set(epoch) != set(other)  # What the incomplete last batch leaves out differs.


def test_labels_stay_with_their_images(load: Any, storage: str, tiny_data_dir: Path):
    datasets = load()
    images, labels = stored(tiny_data_dir, "cifar10", "train")
    label_of = {image.tobytes(): label for image, label in zip(images, labels)}
    batches = take(datasets.training(), STEPS)
    expected = [label_of[image] for image in fingerprints(datasets, batches)]
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), np.eye(10)[expected])


@pytest.mark.parametrize(
    ("options", "images_per_step"),
    [({}, BATCH), ({"mixup_alpha": 0.2}, 2 * BATCH), ({"mixup_alpha": 0.2, "mixup": "batch"}, BATCH)],
    ids=["no mixup", "pairs", "within the batch"],
)
def test_mixup_of_pairs_halves_the_steps_and_keeps_the_batch(load: Any, options: dict[str, Any], images_per_step: int):
    datasets = load(**options)
    assert datasets.images_per_step == images_per_step
    assert datasets.steps_per_epoch == (TRAIN_SIZE - VALIDATION_SIZE) // images_per_step
    (images, labels), *_ = take(datasets.training(), 1)
    assert images.shape == (BATCH, 32, 32, 3)
    assert images.dtype == labels.dtype == np.float32
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)


# --- Shards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("mixup", ["pairs", "batch"])
def test_the_shards_of_a_step_are_the_batch_of_a_single_machine(load: Any, mixup: str, count: int):
    datasets = load(**{**RANDOM, "mixup": mixup})
    shards = [take(datasets.training(3, Shard(i, count)), STEPS) for i in range(count)]
    assert all(len(images) == BATCH // count for batches in shards for images, _ in batches)
    joined = [tuple(np.concatenate(parts) for parts in zip(*step)) for step in zip(*shards)]
    assert_same(joined, take(datasets.training(3), STEPS))


def test_each_machine_streams_a_part_of_its_own(load: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "MEMORY_LIMIT_BYTES", 0)
    datasets = load()
    shards = [fingerprints(datasets, take(datasets.training(0, Shard(i, 2)), 2 * STEPS)) for i in range(2)]
    assert not set(shards[0]) & set(shards[1])
    everything = fingerprints(datasets, evaluated(datasets, "train"))
    assert set(shards[0]) | set(shards[1]) <= set(everything)
    assert [len(shard) for shard in shards] == [STEPS * BATCH] * 2
    assert all(max(map(shard.count, shard)) <= 2 for shard in shards)


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_the_shards_of_evaluation_have_each_image_once_and_as_many_batches(load: Any, storage: str, count: int):
    datasets = load()
    shards = [evaluated(datasets, "test", Shard(i, count)) for i in range(count)]
    assert TEST_SIZE % BATCH and {len(batches) for batches in shards} == {-(-TEST_SIZE // BATCH)}
    joined = [image for batches in shards for image in fingerprints(datasets, batches)]
    assert joined == fingerprints(datasets, evaluated(datasets, "test"))
    assert len(set(joined)) == TEST_SIZE


@pytest.mark.parametrize("seed", [0, 2**31 - 1])
def test_any_seed_orders_the_images(load: Any, storage: str, seed: int):
    """TensorFlow takes these for no seed at all."""
    keras.utils.set_random_seed(seed)
    first, again = (take(load(seed=seed).training(), STEPS) for _ in range(2))
    assert_same(first, again)
