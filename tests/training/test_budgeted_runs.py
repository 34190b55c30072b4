"""Runs with a budget of MACs: what they end with, what they record, and how they resume."""

from functools import partial
from pathlib import Path
from typing import Any

import keras
import pytest
import tensorflow as tf
from support.interrupted_runs import Fault, assert_same_run, failing_once, stopped_at, trained
from support.replicas import two_cpus
from support.tiny_runs import json_of, load, rows_of, small, small_digits, train

from diffstride_hybrid import DiffStride, macs
from diffstride_hybrid.training.loop import TrainingLoop

pytestmark = pytest.mark.usefixtures("uncompiled")

SLOW = pytest.mark.slow

sharp = partial(small, pooling_cls=partial(DiffStride, smoothness_factor=1.0))
"""A small hybrid whose maps can become small."""

static = partial(small, pooling_cls=partial(DiffStride, smoothness_factor=1.0, static_crop=True))

run = partial(train, model_cls=sharp, num_epochs=3, steps_per_epoch=3, steps_per_execution=2, macs_budget_epoch=2)
budgeted = partial(trained, model_cls=sharp, macs_budget=0.5, macs_budget_epoch=1)


def counts_of(folder: Path) -> list[int]:
    return [int(row["macs"]) for row in rows_of(folder / "strides.csv")]


def targets_of(folder: Path) -> list[int]:
    return [int(row["macs_target"]) for row in rows_of(folder / "strides.csv")]


def assert_met(folder: Path, first: int, epochs: int, share: float) -> None:
    """The records, the summary and both models have the budget, from the epoch `first` on."""
    summary, counts, targets = json_of(folder / "summary.json"), counts_of(folder), targets_of(folder)
    assert len(counts) == epochs + 1
    assert counts[0] == targets[0]
    assert summary["macs_budget"] == pytest.approx(share * counts[0], abs=1)
    assert set(targets[first:]) == {summary["macs_budget"]}
    for count in (*counts[first:], summary["macs"], *(macs(load(folder, name)).macs for name in MODELS)):
        assert count == pytest.approx(summary["macs_budget"], rel=0.03)


MODELS = ("final.keras", "best.keras")


@pytest.mark.parametrize("share", [pytest.param(0.75, marks=SLOW), 0.5, pytest.param(0.35, marks=SLOW)])
def test_a_run_ends_at_its_target_and_says_so(share: float, tmp_path: Path):
    run(tmp_path, macs_budget=share)
    assert_met(tmp_path, 2, 3, share)
    start, first, goal, _ = targets_of(tmp_path)
    assert first == pytest.approx((start * goal) ** 0.5, rel=1e-4)
    budget = json_of(tmp_path / "summary.json")["macs_budget"]
    assert f"| MACs an image, budget | {budget:,} |" in (tmp_path / "README.md").read_text()
    (events,) = (tmp_path / "tensorboard").glob("*tfevents*")
    values = [value for event in tf.compat.v1.train.summary_iterator(str(events)) for value in event.summary.value]
    recorded = [float(tf.make_ndarray(value.tensor)) for value in values if value.tag == "macs_target"]
    assert recorded == pytest.approx([first, goal, goal])


@SLOW
def test_a_run_without_a_budget_has_no_trace_of_one(tmp_path: Path):
    run(tmp_path, num_epochs=1, macs_budget_epoch=None)
    assert "macs_target" not in rows_of(tmp_path / "strides.csv")[0]
    assert "macs_budget" not in json_of(tmp_path / "summary.json")
    assert "MACs an image, budget" not in (tmp_path / "README.md").read_text()


@SLOW
def test_the_schedule_waits_while_the_strides_rest(tmp_path: Path):
    run(tmp_path, macs_budget=0.5, stride_warmup_epochs=1, num_epochs=4, macs_budget_epoch=3)
    counts, targets = counts_of(tmp_path), targets_of(tmp_path)
    assert counts[:2] == targets[:2] == [counts[0]] * 2
    assert targets[2] == pytest.approx(counts[0] * 0.5**0.5, rel=1e-4)
    assert_met(tmp_path, 3, 4, 0.5)


# --- Resuming --------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, eager_steps: Any) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    keras.config.set_image_data_format("channels_last")
    with eager_steps():
        budgeted(folder)
    return folder


@pytest.mark.parametrize("step", [pytest.param(3, marks=SLOW), pytest.param(7, marks=SLOW), 9])
def test_a_stopped_run_ends_as_one_left_alone(step: int, alone: Path, tmp_path: Path):
    """Before the target is reached, at its first backup behind it, and within the next epoch."""
    stopped_at(step, tmp_path, model_cls=sharp, macs_budget=0.5, macs_budget_epoch=1, backup_every=2)
    budgeted(tmp_path, backup_every=2)
    assert_same_run(tmp_path, alone)


@SLOW
def test_a_run_that_ends_before_its_summary_resumes_there(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(loop: TrainingLoop) -> None:
        raise Fault

    with monkeypatch.context() as patch, pytest.raises(Fault):
        patch.setattr(TrainingLoop, "finalize_weights", fail)
        budgeted(tmp_path)
    budgeted(tmp_path)
    assert_same_run(tmp_path, alone)


@pytest.mark.parametrize("step", [1, pytest.param(6, marks=SLOW)])
def test_a_run_that_rolls_back_knows_the_epoch_and_its_place(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A step of an epoch fails once. The backup is that of the end of the epoch before, or of the beginning."""
    failures = failing_once(monkeypatch, step)
    budgeted(tmp_path, macs_budget_epoch=2, on_not_finite="roll_back")
    assert not failures
    assert_met(tmp_path, 2, 2, 0.5)


# --- Crops, averages, replicas ---------------------------------------------------------------------------------------
@SLOW
def test_static_crops_have_the_settled_sizes(tmp_path: Path):
    run(tmp_path, model_cls=static, macs_budget=0.5)
    assert_met(tmp_path, 2, 3, 0.5)


@SLOW
def test_a_stopped_run_with_static_crops_ends_as_one_left_alone(tmp_path: Path):
    options = {"model_cls": static, "macs_budget": 0.5, "macs_budget_epoch": 1, "backup_every": 2}
    trained(tmp_path / "alone", **options)
    stopped_at(9, tmp_path / "stopped", **options)
    trained(tmp_path / "stopped", **options)
    assert_same_run(tmp_path / "stopped", tmp_path / "alone")


@SLOW
def test_moving_averages_are_settled_at_the_end(tmp_path: Path):
    averaging = partial(keras.optimizers.SGD, 0.01, use_ema=True, ema_momentum=0.99)
    run(tmp_path, optimizer_cls=averaging, macs_budget=0.5)
    summary = json_of(tmp_path / "summary.json")
    assert summary["macs"] == macs(load(tmp_path)).macs == pytest.approx(summary["macs_budget"], rel=0.03)


@SLOW
def test_loss_scaling_and_half_precision_do_not_matter(tmp_path: Path):
    run(tmp_path, macs_budget=0.5, dtype_policy="mixed_float16")
    assert_met(tmp_path, 2, 3, 0.5)


@SLOW
def test_two_replicas_meet_the_budget(tmp_path: Path):
    with two_cpus().scope():
        train(tmp_path, model_cls=sharp, macs_budget=0.5, load_data_fn=small_digits)
    assert_met(tmp_path, 1, 2, 0.5)


# --- What is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"macs_budget": 0}, "macs_budget must be a finite number above 0, got 0: at most 1"),
        ({"macs_budget": "0.5"}, "macs_budget must be a finite number above 0, got '0.5'"),
        ({"macs_budget_epoch": 1}, "macs_budget_epoch = 1 has nothing to act on: bind train.train.macs_budget"),
        ({"macs_budget": 0.5, "macs_budget_epoch": 0}, "macs_budget_epoch must be a whole number of at least 1, got 0"),
        ({"macs_budget": 0.5, "macs_budget_epoch": 3}, "macs_budget_epoch must be at most the 2 epochs, got 3"),
        (
            {"macs_budget": 0.5, "macs_budget_epoch": 1, "stride_warmup_epochs": 1},
            "macs_budget_epoch must be a whole number of at least 2, got 1",
        ),
        ({"macs_budget": 0.5, "stride_warmup_epochs": 2}, "must be below the 2 epochs, got 2"),
    ],
)
def test_a_budget_out_of_range_is_refused(options: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(
        ValueError, match=f"^train.train.{message}|^train.train.macs_budget needs .*{message}"
    ) as caught:
        train(tmp_path, **options)
    assert "\n" not in str(caught.value)
