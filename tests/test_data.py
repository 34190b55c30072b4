import itertools
import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
import tensorflow_datasets as tfds
from support import tiny_datasets
from support.tiny_datasets import TEST_SIZE, TRAIN_SIZE

from diffstride_hybrid.data import sources
from diffstride_hybrid.data.augmentation import augment, mix_up, mixup_weights
from diffstride_hybrid.data.datasets import ALL, Datasets, Shard
from diffstride_hybrid.data.loading import load_datasets

BATCH = 8
VALIDATION_SIZE = 7  # A tenth of the training images, rounded.
STEPS = (TRAIN_SIZE - VALIDATION_SIZE) // BATCH
RANDOM = {"augment_fn": augment, "mixup_alpha": 0.2, "mixup": "batch"}


@pytest.fixture(params=["in_memory", "streamed"])
def storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "streamed":
        monkeypatch.setattr(sources, "MEMORY_LIMIT_BYTES", 0)
    return request.param


@pytest.fixture
def load(tiny_data_dir: Path) -> Any:
    return partial(load_datasets, "cifar10", batch_size=BATCH, data_dir=str(tiny_data_dir))


def take(dataset: tf.data.Dataset, count: int = -1) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(dataset.take(count).as_numpy_iterator())


def evaluated(datasets: Datasets, split: str, shard: Shard = ALL) -> list[tuple[np.ndarray, np.ndarray]]:
    """The batches of a split without what fills them up."""
    batches = []
    for images, labels, weights in datasets.evaluation(split, shard).as_numpy_iterator():
        assert len(images) == len(labels) == len(weights) == datasets.batch_size // shard.count
        assert not images[weights == 0].any()
        batches.append((images[weights == 1], labels[weights == 1]))
    return batches


def assert_same(batches: Iterable[Any], others: Iterable[Any]) -> None:
    for (images, labels), (other_images, other_labels) in zip(batches, others, strict=True):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


def stored(tiny_data_dir: Path, name: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels as TensorFlow Datasets gives them."""
    dataset = tfds.builder(name, data_dir=tiny_data_dir).as_dataset(split=split, as_supervised=True, batch_size=-1)
    return tuple(part.numpy() for part in dataset)


def unnormalised(datasets: Datasets, images: np.ndarray) -> np.ndarray:
    levels = 255 * (images * np.array(datasets.std) + datasets.mean)
    np.testing.assert_allclose(levels, levels.round(), atol=1e-3)
    return levels.round().astype(np.uint8)


def fingerprints(datasets: Datasets, batches: Iterable[Any]) -> list[bytes]:
    """The images of batches, one after another, as something that can be compared."""
    return [image.tobytes() for images, _ in batches for image in unnormalised(datasets, images)]


# --- Training batches ------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_batches_to_the_bit(load: Any, storage: str):
    first, again = (take(load(seed=3, **RANDOM).train(), 3 * STEPS) for _ in range(2))
    assert_same(first, again)


def test_only_the_seed_given_matters(load: Any, storage: str):
    if storage == "streamed":
        pytest.skip("tf.data's shuffle depends on TensorFlow's global seed as well, which a run sets to the same")
    batches = take(load(seed=3, **RANDOM).train(), 2 * STEPS)
    keras.utils.set_random_seed(99)
    assert_same(batches, take(load(seed=3, **RANDOM).train(), 2 * STEPS))


def test_another_seed_gives_another_order(load: Any, storage: str):
    for (images, _), (others, _) in zip(*(take(load(seed=seed).train(), 3) for seed in (3, 4))):
        assert not np.array_equal(images, others)


def test_each_seed_and_step_draws_its_own_augmentation(load: Any, storage: str):
    def draw(images: tf.Tensor, numbers: tf.Tensor) -> tf.Tensor:
        return tf.zeros_like(images) + tf.random.stateless_uniform([], numbers[0])

    batches = [take(load(seed=seed, augment_fn=draw).train(), 2 * STEPS) for seed in (3, 4)]
    drawn = {float(images.max()) for run in batches for images, _ in run}
    assert len(drawn) == 2 * 2 * STEPS


def test_training_goes_on_from_any_step(load: Any, storage: str):
    datasets = load(seed=3, **RANDOM)
    batches = take(datasets.train(), 2 * STEPS + 5)
    for first_step in (0, 1, STEPS - 1, STEPS, 2 * STEPS + 3):
        assert_same(batches[first_step : first_step + 2], take(datasets.train(first_step), 2))


def test_an_epoch_has_each_training_image_at_most_once_and_its_own_order(load: Any, storage: str):
    datasets = load()
    training_images = fingerprints(datasets, evaluated(datasets, "train"))
    assert datasets.steps_per_epoch == STEPS
    seen = fingerprints(datasets, take(datasets.train(), 3 * STEPS))
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
    batches = take(datasets.train(), STEPS)
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
    (images, labels), *_ = take(datasets.train(), 1)
    assert images.shape == (BATCH, 32, 32, 3)
    assert images.dtype == labels.dtype == np.float32
    np.testing.assert_allclose(labels.sum(axis=1), 1, atol=1e-6)


# --- Shards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("mixup", ["pairs", "batch"])
def test_the_shards_of_a_step_are_the_batch_of_a_single_machine(load: Any, mixup: str, count: int):
    datasets = load(**{**RANDOM, "mixup": mixup})
    shards = [take(datasets.train(3, Shard(i, count)), STEPS) for i in range(count)]
    assert all(len(images) == BATCH // count for batches in shards for images, _ in batches)
    joined = [tuple(np.concatenate(parts) for parts in zip(*step)) for step in zip(*shards)]
    assert_same(joined, take(datasets.train(3), STEPS))


def test_each_machine_streams_a_part_of_its_own(load: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sources, "MEMORY_LIMIT_BYTES", 0)
    datasets = load()
    shards = [fingerprints(datasets, take(datasets.train(0, Shard(i, 2)), 2 * STEPS)) for i in range(2)]
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


# --- Splits, evaluation, normalisation -------------------------------------------------------------------------------


@pytest.mark.parametrize(("fraction", "validation_size"), [(0.0, 0), (0.1, 7)])
def test_splits_are_disjoint_and_complete(
    load: Any, storage: str, tiny_data_dir: Path, fraction: float, validation_size: int
):
    datasets = load(validation_fraction=fraction)
    sizes = {"train": TRAIN_SIZE - validation_size, "validation": validation_size, "test": TEST_SIZE}
    assert {name: split.size for name, split in datasets.splits.items()} == sizes
    images = {name: fingerprints(datasets, evaluated(datasets, name)) for name, size in sizes.items() if size}
    assert {name: len(set(images.get(name, ()))) for name in sizes} == sizes
    assert not set(images["train"]) & set(images.get("validation", ()))
    assert not set(images["train"]) & set(images["test"])
    everything = [image.tobytes() for image in stored(tiny_data_dir, "cifar10", "train")[0]]
    assert images["train"] + images.get("validation", []) == everything


@pytest.mark.parametrize("name", ["cifar10", "digits"])
def test_a_part_of_the_training_images_is_the_first_of_them(load: Any, storage: str, name: str):
    whole, part = (
        load_datasets(name, batch_size=BATCH, data_dir=load.keywords["data_dir"], **images)
        for images in ({"validation_fraction": 0.0}, {"training_images": 40, "validation_fraction": 0.25})
    )
    assert {split: part.splits[split].size for split in ("train", "validation")} == {"train": 30, "validation": 10}
    assert part.splits["test"].size == whole.splits["test"].size
    seen = [image for split in ("train", "validation") for image in fingerprints(part, evaluated(part, split))]
    assert seen == fingerprints(whole, evaluated(whole, "train"))[:40]


def test_the_validation_split_does_not_depend_on_the_seed(load: Any, storage: str):
    first, other = (evaluated(load(seed=seed, **RANDOM), "validation") for seed in (1, 2))
    assert_same(first, other)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_evaluation_gives_each_image_once_in_order(load: Any, storage: str, tiny_data_dir: Path, name: str):
    datasets = load_datasets(name, batch_size=BATCH, data_dir=str(tiny_data_dir), **RANDOM)
    batches = evaluated(datasets, "test")
    assert [len(images) for images, _ in batches] == [8, 8, 7]
    images, labels = (np.concatenate(parts) for parts in zip(*batches))
    expected_images, expected_labels = stored(tiny_data_dir, name, "test")
    assert images.dtype == labels.dtype == np.float32
    np.testing.assert_array_equal(unnormalised(datasets, images), expected_images)
    np.testing.assert_array_equal(labels, np.eye(datasets.num_classes)[expected_labels])


@pytest.mark.parametrize(("name", "channels"), [("digits", 1), ("fashion_mnist", 1), ("cifar100", 3)])
def test_training_images_have_mean_zero_and_unit_deviation(tiny_data_dir: Path, name: str, channels: int):
    datasets = load_datasets(name, batch_size=BATCH, data_dir=str(tiny_data_dir))
    images = np.concatenate([images for images, _ in evaluated(datasets, "train")]).astype("float64")
    assert len(datasets.mean) == len(datasets.std) == channels
    np.testing.assert_allclose(images.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(images.std(axis=(0, 1, 2)), 1, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
        ("imagenet2012", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ],
)
def test_some_sets_have_their_customary_normalisation(
    tiny_data_dir: Path, name: str, mean: tuple[float, ...], std: tuple[float, ...]
):
    datasets = load_datasets(name, batch_size=BATCH, image_size=32, data_dir=str(tiny_data_dir))
    assert (datasets.mean, datasets.std) == (mean, std)


def test_digits_are_real_images_without_a_download():
    datasets = load_datasets("digits", batch_size=100)
    assert datasets.image_shape == (32, 32, 1)
    assert {name: split.size for name, split in datasets.splits.items()} == {
        "train": 1293,
        "validation": 144,
        "test": 360,
    }
    labels = np.concatenate([labels for _, labels in evaluated(datasets, "test")])
    np.testing.assert_allclose(labels.sum(axis=0), 36, atol=1)  # Every class in the share that it has.
    assert load_datasets("digits", image_size=8).image_shape == (8, 8, 1)


def test_images_of_different_sizes_need_image_size(tiny_data_dir: Path):
    load_imagenet = partial(load_datasets, "imagenet2012", batch_size=BATCH, data_dir=str(tiny_data_dir))
    with pytest.raises(ValueError, match=r"'imagenet2012' differ in size: set data\.load_datasets\.image_size"):
        load_imagenet()


def test_images_of_different_sizes_are_resized_whole(storage: str, tiny_data_dir: Path):
    datasets = load_datasets("imagenet2012", batch_size=BATCH, image_size=24, data_dir=str(tiny_data_dir))
    assert datasets.image_shape == (24, 24, 3)
    assert datasets.num_classes == 1000
    assert datasets.splits["test"].size == TEST_SIZE
    assert take(datasets.train(), 1)[0][0].shape == (BATCH, 24, 24, 3)
    resized = np.concatenate([unnormalised(datasets, images) for images, _ in evaluated(datasets, "test")])
    builder = tfds.builder("imagenet2012", data_dir=tiny_data_dir)
    originals = [image for image, _ in builder.as_dataset(split="validation", as_supervised=True).as_numpy_iterator()]
    assert len({image.shape for image in originals}) > TEST_SIZE // 2
    for image, original in zip(resized, originals, strict=True):
        height, width = (round(24 * side / max(original.shape)) for side in original.shape[:2])
        filled = np.argwhere(image.any(axis=-1))
        np.testing.assert_allclose(np.ptp(filled, axis=0) + 1, [height, width], atol=1)
        np.testing.assert_allclose(filled.min(axis=0), [(24 - height) / 2, (24 - width) / 2], atol=1)
        np.testing.assert_allclose(image[tuple(filled.T)].mean(), original.mean(), rtol=0.05)


def test_a_test_split_without_labels_is_not_used(tmp_path: Path):
    tiny_datasets.prepare("imagenet2012", tmp_path, {"train": 20, "validation": 9, "test": 10})
    datasets = load_datasets("imagenet2012", batch_size=4, image_size=8, data_dir=str(tmp_path))
    assert datasets.splits["test"].size == 9


# --- Augmentation and mixup ------------------------------------------------------------------------------------------


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
    for (images, labels), (others, other_labels) in zip(take(plain.train(), 2), take(shifted.train(), 2)):
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
    batches = take(load(mixup_alpha=1.0, mixup="batch").train(), 2 * STEPS)
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


# --- Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cifar11"}, r"Unknown data set 'cifar11': .* Did you mean .*'cifar10'"),
        ({"name": "cifar-10"}, r"Unknown data set 'cifar-10': .* Did you mean .*'cifar10'"),
        ({"name": "diggits"}, r"Unknown data set 'diggits': .* Did you mean 'digits'"),
        ({"name": "qqqqqqqqqq"}, r"Unknown data set 'qqqqqqqqqq': data\.load_datasets\.name is 'digits' or [^?]*$"),
        ({"name": 10}, r"data\.load_datasets\.name .*10"),
        ({"name": "ag_news_subset"}, r"'ag_news_subset' cannot be used: it does not pair images with one class label"),
        ({"name": "wmt14_translate"}, r"'wmt14_translate' cannot be used: it does not pair images with one class"),
        ({"batch_size": 61}, r"batch_size is too large: cifar10 has 60 training images, and one step takes 61\."),
        ({"batch_size": 31, "mixup_alpha": 0.2}, r"batch_size is too large: .* 60 training images, .* takes 62\."),
        ({"batch_size": 0}, r"data\.load_datasets\.batch_size must be a whole number of at least 1, got 0\."),
        ({"batch_size": 2.5}, r"data\.load_datasets\.batch_size must be a whole number of at least 1, got 2\.5\."),
        ({"batch_size": "8"}, r"data\.load_datasets\.batch_size must be a whole number of at least 1, got '8'\."),
        ({"batch_size": None}, r"data\.load_datasets\.batch_size must be a whole number of at least 1, got None\."),
        ({"image_size": 0}, r"data\.load_datasets\.image_size must be a whole number of at least 1, got 0\."),
        ({"mixup": "both"}, r"data\.load_datasets\.mixup must be one of 'pairs', 'batch', got 'both'\."),
        ({"mixup_alpha": -0.1}, r"data\.load_datasets\.mixup_alpha must be a number of at least 0, got -0\.1\."),
        ({"mixup_alpha": np.nan}, r"data\.load_datasets\.mixup_alpha must be a number of at least 0, got nan\."),
        ({"mixup_alpha": "0.2"}, r"data\.load_datasets\.mixup_alpha must be a number of at least 0, got '0\.2'\."),
        ({"validation_fraction": 1.0}, r"validation_fraction must be at least 0 and below 1, got 1\.0\."),
        ({"validation_fraction": -0.1}, r"validation_fraction must be at least 0 and below 1, got -0\.1\."),
        ({"validation_fraction": 0.999}, r"validation_fraction.* no training images"),
        ({"training_images": 68}, r"training_images must be at most the 67 of cifar10, got 68\."),
        ({"training_images": 0}, r"training_images must be a whole number of at least 1, got 0\."),
        (
            {"training_images": 1438, "name": "digits"},
            r"training_images must be at most the 1,437 of digits, got 1,438\.",
        ),
        ({"validation_fraction": 0.9999, "name": "digits"}, r"validation_fraction.* no training images"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_is_wrong_is_named(tiny_data_dir: Path, options: dict[str, Any], message: str):
    arguments = {"name": "cifar10", "batch_size": BATCH, "data_dir": str(tiny_data_dir), **options}
    with pytest.raises(ValueError, match=message):
        load_datasets(**arguments)


@pytest.mark.parametrize("pad_size", [-1, 1.5, "2"])
def test_a_pad_size_that_is_not_a_whole_number_is_refused(load: Any, pad_size: Any):
    with pytest.raises(ValueError, match=rf"pad_size must be a whole number of at least 0, got {pad_size!r}\."):
        load(augment_fn=partial(augment, pad_size=pad_size)).train()


@pytest.mark.parametrize("augment_fn", ["flip", lambda images, seed: images[:, 1:]], ids=["text", "another shape"])
def test_what_does_not_augment_is_refused(load: Any, augment_fn: Any):
    with pytest.raises(ValueError, match=r"data\.load_datasets\.augment_fn must "):
        load(augment_fn=augment_fn)


def test_a_set_without_a_test_split_is_refused(tmp_path: Path):
    tiny_datasets.prepare("cifar10", tmp_path, {"train": 20})
    with pytest.raises(ValueError, match=r"'cifar10' cannot be used: it needs a 'train' and a 'test' .* has train\."):
        load_datasets("cifar10", batch_size=4, data_dir=str(tmp_path))


def test_a_failed_download_says_what_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_network(builder: Any) -> None:
        raise ConnectionError("Network is unreachable\nand more lines")

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", no_network)
    with pytest.raises(OSError) as caught:
        load_datasets("cifar10", batch_size=4, data_dir=str(tmp_path))
    expected = (
        rf"'cifar10' is not prepared under {re.escape(str(tmp_path))}.* not be downloaded: Network is unreachable$"
    )
    assert re.search(expected, str(caught.value))


def test_a_set_that_has_to_be_downloaded_by_hand_says_so(tmp_path: Path):
    with pytest.raises(OSError, match="'imagenet2012' is not prepared under"):
        load_datasets("imagenet2012", batch_size=4, image_size=32, data_dir=str(tmp_path))
