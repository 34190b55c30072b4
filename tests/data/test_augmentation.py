"""Shifts, mirroring and mixup."""

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from support.batches import (
    BATCH,
    STEPS,
    take,
)

from diffstride_hybrid.data.augmentation import augment, mix_up, mixup_weights


def shifted_and_mirrored(image: np.ndarray, pad_size: int, flip: bool) -> dict[tuple[int, int, bool], np.ndarray]:
    """All that `augment` may make of an image, by (shift down, shift right, mirrored)."""
    height, width, _ = image.shape
    results = {}
    shifts = range(-pad_size, pad_size + 1)
    for down, right, mirrored in itertools.product(shifts, shifts, (False, True) if flip else (False,)):
        result = np.zeros_like(image)
        for row, column in itertools.product(range(height), range(width)):
            source_row, source_column = row - down, column - right
            if 0 <= source_row < height and 0 <= source_column < width:
                result[row, width - 1 - column if mirrored else column] = image[source_row, source_column]
        results[down, right, mirrored] = result
    return results


def random_numbers(count: int, seed: int = 1) -> tf.Tensor:
    return tf.random.stateless_uniform([count, 2], [seed, 2], 0, tf.int64.max, tf.int64)


@pytest.mark.parametrize(("pad_size", "flip"), [(0, False), (0, True), (1, True), (2, False), (3, True)])
def test_augment_shifts_with_zero_fill_and_mirrors(pad_size: int, flip: bool):
    image = np.random.default_rng(0).normal(size=(5, 7, 2)).astype("float32")
    candidates = shifted_and_mirrored(image, pad_size, flip)
    augmented = augment(tf.stack([image] * 900), random_numbers(900), pad_size=pad_size, flip=flip).numpy()
    by_bytes = {candidate.tobytes(): key for key, candidate in candidates.items()}
    found = [by_bytes[result.tobytes()] for result in augmented]
    counts = np.array([found.count(key) for key in candidates])
    assert scipy.stats.chisquare(counts).pvalue > 1e-3 if len(counts) > 1 else counts == 900


def test_augment_depends_on_the_numbers_of_each_image_alone():
    images, numbers = tf.random.normal([20, 6, 6, 1]), random_numbers(20)
    augmented = augment(images, numbers)
    np.testing.assert_array_equal(augmented[5:], augment(images[5:], numbers[5:]))
    assert not np.array_equal(augmented, augment(images, random_numbers(20, seed=2)))


def test_training_images_are_augmented_with_the_mean_shifted_in(load: Any):
    plain, shifted = (load(augment_fn=augment_fn) for augment_fn in (None, partial(augment, flip=False)))
    for (images, labels), (others, other_labels) in zip(take(plain.training(), 2), take(shifted.training(), 2)):
        np.testing.assert_array_equal(labels, other_labels)
        for image, other in zip(images, others):
            candidates = shifted_and_mirrored(image, pad_size=2, flip=False).values()
            assert sum(np.array_equal(other, candidate) for candidate in candidates) == 1


@pytest.mark.parametrize(
    ("mixup", "pairs"),
    [("pairs", [(0, 1), (2, 3), (4, 5), (6, 7)]), ("batch", [(i, i + 1 - 2 * (i % 2)) for i in range(8)])],
)
def test_mixup_weighs_images_and_labels_alike(mixup: str, pairs: list[tuple[int, int]]):
    images = np.random.default_rng(0).normal(size=(8, 3, 4, 2)).astype("float32")
    weights = np.linspace(0.1, 0.9, len(pairs), dtype="float32")
    mixed, labels = mix_up(tf.constant(images), tf.eye(8), weights, mixup)
    for i, (first, second) in enumerate(pairs):
        expected = weights[i] * images[first] + (1 - weights[i]) * images[second]
        np.testing.assert_allclose(mixed[i], expected, atol=1e-6)
        expected = weights[i] * np.eye(8)[first] + (1 - weights[i]) * np.eye(8)[second]
        np.testing.assert_allclose(labels[i], expected, atol=1e-6)


def test_mixup_within_a_batch_of_odd_size_leaves_the_last_image_as_it_is():
    images = tf.random.normal([5, 2, 2, 1])
    mixed, labels = mix_up(images, tf.eye(5), tf.fill([5], 0.25), "batch")
    np.testing.assert_array_equal(mixed[4], images[4])
    np.testing.assert_array_equal(labels[4], np.eye(5)[4])


def test_each_image_and_step_draws_its_own_mixup_weight(load: Any, storage: str):
    batches = take(load(mixup_alpha=1.0, mixup="batch").training(), 2 * STEPS)
    weights = {float(label[label > 0][0]) for _, labels in batches for label in labels if (label > 0).sum() == 2}
    assert len(weights) > 0.8 * 2 * STEPS * BATCH


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 8.0])
def test_mixup_weights_follow_the_beta_distribution(alpha: float):
    count = 20_000
    weights = mixup_weights(count, tf.constant([1, 2]), alpha)
    weights = weights.numpy().astype("float64")
    assert np.all((weights >= 0) & (weights <= 1))
    for power in (1, 2, 3, 4):
        expected, deviation = (float(scipy.stats.beta(alpha, alpha).moment(order)) for order in (power, 2 * power))
        error = 5 * np.sqrt((deviation - expected**2) / count)
        np.testing.assert_allclose(np.mean(weights**power), expected, atol=error)
    if alpha >= 0.2:  # For less, even float32's numbers near 0 are too coarse.
        below_half = weights[weights < 0.5]
        assert scipy.stats.kstest(below_half, lambda x: 2 * scipy.stats.beta(alpha, alpha).cdf(x)).pvalue > 1e-3
