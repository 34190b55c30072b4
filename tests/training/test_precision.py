"""Losses, precisions and splits, and the arguments that `train` refuses."""

import contextlib
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
from support.tiny_runs import (
    functional,
    json_of,
    large_batches,
    load,
    rows_of,
    small,
    small_digits,
    train,
    train_a_step,
)

from diffstride_hybrid.common import distribution
from diffstride_hybrid.data.datasets import Datasets
from diffstride_hybrid.training.checks import check_loss
from diffstride_hybrid.training.run import evaluate

pytestmark = pytest.mark.long


def cross_entropy(probabilities: np.ndarray, labels: np.ndarray, label_smoothing: float) -> float:
    targets = labels * (1 - label_smoothing) + label_smoothing / labels.shape[1]
    return float(-(targets * np.log(probabilities)).sum(axis=1).mean())


def test_evaluation_counts_every_image_once(uncompiled: None):
    datasets = small_digits()
    model = small(num_output_classes=10)
    model.build((None, *datasets.image_shape))
    batches = datasets.evaluation("test").as_numpy_iterator()
    images, labels, weights = (np.concatenate(parts) for parts in zip(*batches))
    assert len(weights) > np.sum(weights) == 360
    images, labels = images[weights > 0], labels[weights > 0]
    probabilities = model.predict(images, verbose=0)
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.2)
    results = evaluate(model, loss, datasets)
    assert results["accuracy"] == pytest.approx(np.mean(probabilities.argmax(1) == labels.argmax(1)), abs=1e-6)
    expected = cross_entropy(probabilities, labels, 0.2) + float(sum(model.losses))
    assert results["loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_label_smoothing_takes_effect_in_training(tmp_path: Path, uncompiled: None):
    loss_cls = partial(keras.losses.CategoricalCrossentropy, label_smoothing=0.2)
    train_a_step(tmp_path, load_data_fn=small_digits, loss_cls=loss_cls)
    keras.utils.set_random_seed(1)  # As `train` does, so this model is as that one was at the start.
    model = small(num_output_classes=10)
    model.build((None, 16, 16, 1))
    images, labels = next(small_digits().training().as_numpy_iterator())
    probabilities = np.asarray(model(images, training=True))
    smoothed, plain = (cross_entropy(probabilities, labels, smoothing) for smoothing in (0.2, 0.0))
    loss = float(rows_of(tmp_path / "metrics.csv")[0]["loss"]) - float(sum(model.losses))
    assert loss == pytest.approx(smoothed, rel=1e-4)
    assert loss != pytest.approx(plain, rel=1e-2)


@pytest.mark.parametrize("focal", ["", "Focal"])
@pytest.mark.parametrize(
    ("kind", "activation", "from_logits", "is_refused"),
    [
        ("Categorical", "softmax", True, True),
        ("Categorical", None, False, True),
        ("Categorical", "tanh", False, True),
        ("Categorical", "log_softmax", False, True),
        ("Categorical", "log_softmax", True, False),
        ("Categorical", "softmax", False, False),
        ("Categorical", "sigmoid", False, False),
        ("Categorical", "softplus", False, False),
        ("Categorical", None, True, False),
        ("Binary", "softmax", True, True),
        ("Binary", "sigmoid", True, True),
        ("Binary", "softplus", False, True),
        ("Binary", None, False, True),
        ("Binary", "sigmoid", False, False),
        ("Binary", None, True, False),
    ],
)
@pytest.mark.parametrize("is_layer", [False, True], ids=["of a layer", "a layer"])
def test_cross_entropies_fit_the_outputs_or_are_refused(
    kind: str, focal: str, activation: str | None, from_logits: bool, is_refused: bool, is_layer: bool
):
    loss = getattr(keras.losses, f"{kind}{focal}Crossentropy")(from_logits=from_logits)
    last = [keras.layers.Dense(10, activation=activation)]
    if is_layer:
        own = keras.layers.Softmax() if activation == "softmax" else keras.layers.Activation(activation or "linear")
        last = [keras.layers.Dense(10), keras.Sequential([own])]
    model = keras.Sequential([keras.Input((4,)), *last])
    usual = {"Categorical": "softmax", "Binary": "sigmoid"}[kind]
    given = f"must be '{usual}', or None together with tf.keras.losses.{kind}{focal}Crossentropy.from_logits = True"
    message = rf"{given}; got '{activation or 'linear'}' and {from_logits}\."
    with pytest.raises(ValueError, match=message) if is_refused else contextlib.nullcontext():
        check_loss(loss, model)


@pytest.mark.parametrize(
    ("activation", "from_logits", "message"),
    [("softmax", True, "got 'softmax' and True"), (None, False, "got 'linear' and False")],
)
def test_a_loss_that_does_not_fit_the_outputs_is_refused(
    tmp_path: Path, activation: str | None, from_logits: bool, message: str
):
    with pytest.raises(ValueError, match=rf"output_activation must be 'softmax', .*from_logits = True; {message}"):
        train_a_step(
            tmp_path,
            model_cls=partial(small, output_activation=activation),
            loss_cls=partial(keras.losses.CategoricalCrossentropy, from_logits=from_logits),
        )


@pytest.mark.parametrize(
    "options",
    [
        {
            "model_cls": partial(small, output_activation=None),
            "loss_cls": partial(keras.losses.CategoricalCrossentropy, from_logits=True),
        },
        {"model_cls": partial(small, output_activation="sigmoid"), "loss_cls": keras.losses.BinaryCrossentropy},
        {"model_cls": partial(functional, activation=keras.layers.Softmax())},
    ],
    ids=["logits", "another loss", "a model of one's own"],
)
def test_other_losses_and_models_train(tmp_path: Path, uncompiled: None, options: dict[str, Any]):
    summary = train_a_step(tmp_path, **options)
    assert np.isfinite(summary["test_loss"])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow), "float64"])
def test_other_precisions_train_and_save(tmp_path: Path, request: pytest.FixtureRequest, policy: str):
    if policy != "mixed_float16":  # Whose loss scaling differs between eager and compiled steps.
        request.getfixturevalue("uncompiled")
    scaling = mock.Mock(wraps=distribution.LossScaleOptimizer)
    with mock.patch.object(distribution, "LossScaleOptimizer", scaling):
        summary = train_a_step(tmp_path, dtype_policy=policy)
    assert scaling.call_count == (policy == "mixed_float16")
    assert keras.config.dtype_policy().name == "float32"
    assert json_of(tmp_path / "run.json")["dtype_policy"] == policy
    assert np.isfinite(summary["test_loss"])
    model = load(tmp_path)
    assert model.dtype_policy.name == policy
    start = small(num_output_classes=10, dtype=policy)
    start.build((None, 16, 16, 1))
    for weight, initial in zip(model.trainable_weights, start.trainable_weights, strict=True):
        assert np.isfinite(weight.numpy()).all()
        assert weight.dtype == initial.dtype
        if weight.name != "strides":  # They may have been held at their least value.
            assert not np.array_equal(weight.numpy(), initial.numpy()), weight.path
    results = evaluate(model, keras.losses.CategoricalCrossentropy(), large_batches())
    assert results["accuracy"] == summary["test_accuracy"]


def test_the_global_dtype_policy_is_restored_after_an_error(tmp_path: Path):
    def fail(seed: int) -> Datasets:
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
        raise OSError("no data")

    with pytest.raises(OSError, match="no data"):
        train(tmp_path, load_data_fn=fail, dtype_policy="mixed_bfloat16")
    assert keras.config.dtype_policy().name == "float32"


def test_a_run_without_validation_split(tmp_path: Path, uncompiled: None):
    load_data_fn = partial(large_batches, validation_fraction=0.0)
    summary = train_a_step(tmp_path, draws=True, load_data_fn=load_data_fn)
    assert summary["best_validation_accuracy"] is None
    assert not (tmp_path / "best.keras").exists()
    assert (tmp_path / "figures" / "curves.png").exists()
    assert not [name for name in rows_of(tmp_path / "metrics.csv")[0] if name.startswith("val_")]
    with pytest.raises(ValueError, match="The validation split of digits has no images"):
        evaluate(load(tmp_path), keras.losses.CategoricalCrossentropy(), load_data_fn(), "validation")


def test_a_run_without_learned_strides_has_no_figure_of_them(tmp_path: Path, uncompiled: None):
    train_a_step(tmp_path, draws=True, model_cls=partial(small, pooling_cls=None, head_pooling_cls=None))
    assert (tmp_path / "figures" / "curves.png").exists()
    assert "strides.png" not in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert not (tmp_path / "figures" / "strides.png").exists()
    assert set(rows_of(tmp_path / "strides.csv")[0]) == {"epoch", "macs"}


def test_steps_per_epoch_is_one_pass_over_the_data_unless_given(tmp_path: Path, uncompiled: None):
    summary = train_a_step(tmp_path, steps_per_epoch=None, load_data_fn=partial(small_digits, batch_size=600))
    assert summary["steps"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_epochs": 0}, r"train\.train\.num_epochs must be a whole number of at least 1, got 0\."),
        ({"num_epochs": "three"}, r"train\.train\.num_epochs must be a whole number of at least 1, got 'three'\."),
        ({"num_epochs": None}, r"train\.train\.num_epochs must be a whole number of at least 1, got None\."),
        ({"num_epochs": True}, r"train\.train\.num_epochs must be a whole number of at least 1, got True\."),
        ({"steps_per_epoch": 0}, r"train\.train\.steps_per_epoch must be a whole number of at least 1, got 0\."),
        ({"steps_per_epoch": 1.5}, r"train\.train\.steps_per_epoch must be a whole number of at least 1, got 1\.5\."),
        ({"steps_per_execution": 0}, r"train\.train\.steps_per_execution must be a whole number of at least 1"),
        ({"dtype_policy": "half"}, r"train\.train\.dtype_policy must be one of 'auto', 'float32', .*, got 'half'\."),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(tmp_path: Path, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        train(tmp_path, **options)
