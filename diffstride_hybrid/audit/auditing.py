"""`audit`: measures a classifier of images beyond its accuracy."""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from diffstride_hybrid.audit import corruptions, poolings, shifts
from diffstride_hybrid.audit.classifier import Change, Classifier, Preprocess
from diffstride_hybrid.audit.poolings import audit_poolings
from diffstride_hybrid.audit.report import Audit
from diffstride_hybrid.backends import current
from diffstride_hybrid.common.arguments import validated_choice, validated_whole
from diffstride_hybrid.model_tools.macs import macs

ATTACKS = (1, 4)
"""How far the fast gradient sign method moves each pixel, in 255ths of the range from black to white."""

_LATENCY_SECONDS = 2.0
_LATENCY_REPEATS = 30

PASSES = 1 + 8 * shifts.PAIRS + len(shifts.GRID) + 6 * len(corruptions.SEVERITIES) + 1 + len(ATTACKS)
"""How often all images go through the model."""


def audit(
    model: keras.Model,
    images: np.ndarray,
    labels: Sequence[int] | np.ndarray | None = None,
    *,
    value_range: tuple[float, float] = (0, 255),
    preprocess: Preprocess | None = None,
    batch_size: int = 64,
    seed: int = 0,
    data_format: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> Audit:
    """Measures what a classifier of images keeps, loses and withstands, beyond its accuracy.

    - Shift consistency (Zhang, arXiv 1904.11486): the share of pairs of shifted images with the same class, for whole
      and fractional shifts, with mirrored and circular edges, see `shifts.consistency`; and the worst case: the share
      of images whose class stays, and of those whose class is right, at all shifts of up to 2 pixels.
    - For each layer that downsamples: the share of energy that it keeps, the share of its output that is aliased, and
      by how much shifting and pooling differ by their order, on 64 of the images, see `PoolingAudit`.
    - Accuracy on images with noise, blur, less contrast, more brightness, large pixels and JPEG's artifacts at three
      strengths, after CIFAR-10-C (Hendrycks and Dietterich, arXiv 1903.12261), see `corruptions`.
    - Accuracy under the fast gradient sign method (Goodfellow et al., arXiv 1412.6572): each pixel is moved by 1/255
      and by 4/255 of the range, in the direction of the loss's gradient.
    - MACs and parameters; latency and peak memory of an inference, measured here.

    Without labels the classes of the unchanged images take their place, and shares of "right" classes are shares of
    unchanged ones. All figures but latency and memory depend on the arguments alone.

    Args:
        model: a built classifier with one input for images and one output `[batch, classes]` of probabilities or
            logits.
        images: `[number, height, width, channels]`, or with the channels first if `data_format` says so, with values
            in `value_range`.
        labels: integers `[number]` or `[number, 1]`, the right classes. None if they are not known.
        value_range: the values of black and white in `images`.
        preprocess: turns a batch of images, a float32 tensor with values in `value_range`, into what the model takes,
            such as `keras.applications.mobilenet.preprocess_input`. It must be differentiable. None if the model takes
            images as they are.
        batch_size: how many images go through the model at once.
        seed: of shifts and noise.
        data_format: of `images`, which the model takes as they are; `keras.config.image_data_format()` if None. The
            layers of the model may have another one if it moves the axes of its images itself.
        progress: called after each pass of all images through the model with the number of passes since the last call,
            of `PASSES` in all.

    Returns:
        The figures.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range; the images do not fit the model; or the model is no classifier of one
            image, draws by chance, or has no gradient.
        ImportError: Pillow or SciPy is not installed.

    Example:
        >>> from diffstride_hybrid import audit
        >>> layers = [keras.layers.Rescaling(1 / 255), keras.layers.MaxPooling2D(), keras.layers.Flatten()]
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Dense(3, activation="softmax")])
        >>> photos = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1))
        >>> [(pooling.kind, pooling.size_after) for pooling in audit(model, photos).poolings]
        [('MaxPooling2D', (4, 4))]
    """
    _check_libraries()
    validated_whole("batch_size", batch_size, 1)
    validated_whole("seed", seed, 0)
    data_format = validated_choice(
        "data_format", data_format or keras.config.image_data_format(), ("channels_last", "channels_first")
    )
    low, high = _validated_range(value_range)
    pixels = _pixels(images, low, high, data_format)
    classifier = Classifier(model, (low, high), preprocess, min(batch_size, len(pixels)), data_format)
    classifier.check(pixels)
    right = None if labels is None else _labels(labels, len(pixels), classifier.num_classes)
    done = progress or (lambda passes: None)

    def classes(images: np.ndarray, change: Change | None = None) -> np.ndarray:
        found = classifier.classes(images, change)
        done(1)
        return found

    predicted = classes(pixels)
    right = predicted if right is None else right

    def share_right(change: Change) -> float:
        return float(np.mean(classes(pixels, change) == right))

    def share_right_corrupted(kind: str, severity: int) -> float:
        corrupted = corruptions.corruption(kind, severity, seed)
        return share_right(lambda batch, where: corrupted(batch))

    consistency = {f"{boundary}, {kind}": share for boundary, kind, share in shifts.consistency(classes, pixels, seed)}
    on_grid = shifts.classes_on_grid(classes, pixels)
    by_kind = {
        kind: [share_right_corrupted(kind, severity) for severity in corruptions.SEVERITIES]
        for kind in corruptions.STRENGTHS
    }
    signs = classifier.adversarial_signs(pixels, right)
    done(1)

    def attack(strength: int) -> Change:
        return lambda batch, where: np.clip(batch + np.float32(strength / 255) * signs[where], 0, 1)

    attacks = {f"{strength}/255": share_right(attack(strength)) for strength in ATTACKS}
    batch, _ = next(classifier.batches(pixels))
    cost = macs(model, tuple(batch.shape[1:]))
    return Audit(
        images=len(pixels),
        image_shape=tuple(pixels.shape[1:]),
        labeled=labels is not None,
        seed=seed,
        accuracy=None if labels is None else float(np.mean(predicted == right)),
        consistency=consistency,
        worst_case_consistency=float(np.mean((on_grid == on_grid[0]).all(0))),
        worst_case_accuracy=float(np.mean((on_grid == right).all(0))),
        corruptions=by_kind,
        attacks=attacks,
        without_gradient=float(np.mean(~signs.any((1, 2, 3)))),
        poolings=audit_poolings(model, classifier.spread_images(pixels, poolings.IMAGES), seed),
        macs=cost.macs,
        pooling_macs=cost.pooling_macs,
        parameters=model.count_params(),
        batch_size=int(batch.shape[0]),
        milliseconds={str(size): _milliseconds(model, batch[:size]) for size in sorted({1, int(batch.shape[0])})},
        peak_megabytes=current.peak_megabytes(lambda: model.predict_on_batch(batch)),
    )


def _check_libraries() -> None:
    missing = [name for module, name in (("PIL", "pillow"), ("scipy", "scipy")) if not importlib.util.find_spec(module)]
    if missing:
        raise ImportError(f"audit corrupts images with Pillow and SciPy: pip install {' '.join(missing)}")


def _validated_range(value_range: Any) -> tuple[float, float]:
    if np.shape(value_range) != (2,) or not -np.inf < value_range[0] < value_range[1] < np.inf:
        raise ValueError(
            f"value_range must be the values of black and white, such as (0, 255) or (0, 1), got {value_range!r}."
        )
    return float(value_range[0]), float(value_range[1])


def _array(name: str, values: Any) -> np.ndarray:
    """Values as an array. Of a data set NumPy would make an array of one object."""
    array = None if isinstance(values, keras.utils.PyDataset) else np.asarray(values)
    if array is None or (array.ndim == 0 and array.dtype.kind == "O"):
        raise TypeError(
            f"{name} must be an array, got {type(values).__name__}: gather all batches of a data set first, such as by "
            "images, labels = map(np.concatenate, zip(*dataset))."
        )
    return array


def _pixels(images: Any, low: float, high: float, data_format: str) -> np.ndarray:
    """The images as float32 `[number, height, width, channels]` from 0 to 1."""
    images = _array("images", images)
    if images.ndim != 4 or 0 in images.shape or images.dtype.kind not in "fiu":
        raise ValueError(
            f"images must be numbers of shape (number, height, width, channels), got {images.dtype} of {images.shape}."
        )
    least, most = images.min(), images.max()
    if not (low <= least and most <= high):  # NaN fails too.
        raise ValueError(
            f"images must have values from {low:g} to {high:g}, got {least:.6g} to {most:.6g}: give their value_range, "
            "and give images that are normalized as pixels, with a preprocess that normalizes them."
        )
    if images.dtype.kind == "f" and high - low > 100 and most <= 1:
        raise ValueError(f"images have values from {least:.6g} to {most:.6g}: give value_range=(0, 1).")
    if data_format == "channels_first":
        images = np.moveaxis(images, 1, -1)
    return ((images.astype(np.float32) - np.float32(low)) / np.float32(high - low)).astype(np.float32)


def _labels(labels: Any, count: int, num_classes: int) -> np.ndarray:
    labels = _array("labels", labels)
    if labels.shape == (count, 1):  # As the data sets of Keras have them.
        labels = labels[:, 0]
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        cure = ": of one-hot labels give labels.argmax(-1)" if labels.shape == (count, num_classes) else ""
        raise ValueError(
            f"labels must be an integer for each of the {count} images, got {labels.dtype} of shape "
            f"{labels.shape}{cure}."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"labels must be from 0 to {num_classes - 1}, as the model has {num_classes} classes, got "
            f"{labels.min()} to {labels.max()}."
        )
    return labels.astype(np.int64)


def _milliseconds(model: keras.Model, batch: Any) -> float:
    """The median time of an inference. The first one, which compiles, does not count."""
    model.predict_on_batch(batch)
    seconds: list[float] = []
    while len(seconds) < _LATENCY_REPEATS and sum(seconds) < _LATENCY_SECONDS:
        start = time.perf_counter()
        model.predict_on_batch(batch)
        seconds.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(seconds), 3)
