"""Training with XLA and with static crops."""

from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.tiny_runs import Stop, hybrid, large_batches, load, rows_of, small, small_digits, train

from diffstride_hybrid import DiffStride, FixedSpectralPooling, Resnet, macs
from diffstride_hybrid.config import gin_files, gin_names
from diffstride_hybrid.data.augmentation import augment
from diffstride_hybrid.model_tools.crop_refresh import CropRefresh, refresh_crops
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.training.loop import TrainingLoop
from diffstride_hybrid.training.run import make_loop

pytestmark = pytest.mark.long


METHODS = {
    "strided": {},
    "spectral": {"pooling_cls": FixedSpectralPooling},
    "DiffStride": {"pooling_cls": DiffStride},
    "hybrid": hybrid,
    "hybrid before the activation": {**hybrid, "head_placement": "before_activation"},
}


def loop_of(jit_compile: bool = False, **options: Any) -> TrainingLoop:
    keras.utils.set_random_seed(1)
    loop = make_loop(
        small_digits(augment_fn=augment),
        partial(Resnet, [4, 6], num_layers=1, **{"strides": [1, 2], **options, "output_activation": "softmax"}),
        partial(keras.optimizers.SGD, 0.01, momentum=0.9),
        keras.losses.CategoricalCrossentropy,
        jit_compile=jit_compile,
    )
    loop.start(0)
    return loop


def losses_of(loop: TrainingLoop, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        loop.train_steps(1)
        losses.append(loop.results()["loss"])
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("options", METHODS.values(), ids=METHODS)
def test_xla_trains_every_method_to_the_same_losses(options: dict[str, Any], eager_steps: Any):
    compiled = loop_of(jit_compile=True, **options)
    losses, results = losses_of(compiled, 10), compiled.evaluate("test")
    with eager_steps():
        plain = loop_of(**options)
        expected, expected_results = losses_of(plain, 10), plain.evaluate("test")
    assert max(expected) - min(expected) > 1e-2
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert results["loss"] == pytest.approx(expected_results["loss"], rel=1e-3)


@pytest.mark.slow
def test_xla_trains_in_bfloat16(eager_steps: Any):
    keras.config.set_dtype_policy("mixed_bfloat16")
    compiled = losses_of(loop_of(jit_compile=True, **hybrid), 10)
    with eager_steps():
        plain = losses_of(loop_of(**hybrid), 10)
    np.testing.assert_allclose(compiled, plain, rtol=3e-2)  # A few of bfloat16's steps of 2^-8.


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True], ids=["plain", "XLA"])
def test_a_static_crop_that_must_change_goes_on_as_the_dynamic_one(jit_compile: bool):
    """With a look before each step and no hysteresis both crop alike, so that they differ by rounding only.

    Rounding grows to some 1e-4 of the greatest weight in eight steps; a crop off by one bin makes 1e-2 of it.
    """
    dynamic = loop_of(strides=[1.4, 2.2], pooling_cls=DiffStride)
    static = loop_of(jit_compile, strides=[1.4, 2.2], pooling_cls=partial(DiffStride, static_crop=True))
    for loop in (dynamic, static):
        for step in range(8):
            if step == 4:
                for layer in diffstride_layers(loop.model):
                    layer.strides.assign([2.9, 1.8])
            refresh_crops(loop.model, (16, 16, 1))
            loop.train_steps(1)
    assert (static.retraces, dynamic.retraces) == (1, 0)
    for weight, other in zip(static.model.weights, dynamic.model.weights, strict=True):
        scale = max(np.abs(other.numpy()).max(), 0.1)
        np.testing.assert_allclose(weight.numpy(), other.numpy(), rtol=1e-3, atol=1e-3 * scale, err_msg=weight.path)
    assert static.results()["loss"] == pytest.approx(dynamic.results()["loss"], rel=1e-4)


def test_a_run_with_static_crops_refreshes_them_and_counts_the_retraces(tmp_path: Path):
    strides = [[1.6, 1.6], [2.9, 1.9], [2.9, 1.9]]  # At the start, and as they become during each epoch.

    class Move(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            for layer in diffstride_layers(self.model):
                layer.strides.assign(strides[epoch])

    options = {"model_cls": partial(small, pooling_cls=partial(DiffStride, static_crop=True)), "callbacks": [Move()]}
    summary = train(tmp_path, num_epochs=3, **options)
    assert summary["retraces"] == 1
    rows = rows_of(tmp_path / "strides.csv")
    sizes = [(row["pooling/height"], row["pooling/width"]) for row in rows]
    assert sizes[1] != sizes[2] == sizes[3]
    model = load(tmp_path)
    for layer in diffstride_layers(model):
        assert layer.crops
    poolings = [tuple(pooling["output_size"]) for pooling in summary["poolings"]]
    assert [size for _, size in macs(model, (16, 16, 1)).pooling_sizes().values()] == poolings


@pytest.mark.slow
def test_a_compiled_run_meets_its_budget(tmp_path: Path):
    options = {"model_cls": partial(small, pooling_cls=partial(DiffStride, smoothness_factor=1.0)), "num_epochs": 3}
    summary = train(tmp_path, jit_compile=True, macs_budget=0.5, macs_budget_epoch=2, **options)
    counts = [int(row["macs"]) for row in rows_of(tmp_path / "strides.csv")[2:]]
    for count in (*counts, summary["macs"], macs(load(tmp_path), (16, 16, 1)).macs):
        assert count == pytest.approx(summary["macs_budget"], rel=0.03)
    assert 1 <= summary["retraces"] <= 3


@pytest.mark.slow
def test_a_stopped_run_keeps_its_static_crops(tmp_path: Path, uncompiled: None):
    """Strides that have gone back over the edge, but not far enough, alone do not tell the crop."""
    looks = []

    class Waver(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            for layer in diffstride_layers(self.model):
                layer.strides.assign([2.9, 2.0] if epoch == 0 else [2.66, 2.0])  # The edge is at 8 / 3.

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            looks.append([layer.crops for layer in diffstride_layers(self.model)])

    options = {
        "load_data_fn": large_batches,
        "steps_per_epoch": 2,
        "steps_per_execution": 1,
        "num_epochs": 3,
        "optimizer_cls": partial(keras.optimizers.SGD, 1e-6),
        "model_cls": partial(small, pooling_cls=partial(DiffStride, static_crop=True)),
    }
    train(tmp_path / "whole", callbacks=[Waver()], **options)
    expected, looks = looks, []
    with pytest.raises(InterruptedError):
        train(tmp_path / "stopped", callbacks=[Waver(), Stop("on_epoch_begin", 2)], **options)
    summary = train(tmp_path / "stopped", callbacks=[Waver()], **options)
    assert looks == expected
    # Run eagerly, each step counts as a trace, of which all but the first of each sitting are retraces.
    assert summary["retraces"] == 4 - 1 + 2 - 1
    fresh = load(tmp_path / "stopped")
    before = [layer.crops for layer in diffstride_layers(fresh)]
    assert refresh_crops(fresh, (16, 16, 1))
    assert [layer.crops for layer in diffstride_layers(fresh)] != before


def test_a_resumed_run_looks_at_the_crops_at_the_same_steps():
    def looks(first_epoch: int) -> list[tuple[int, int]]:
        refresh, found = CropRefresh(every_steps=22), []
        refresh.set_params({"steps": 22})
        for epoch in range(first_epoch, 4):
            refresh.on_epoch_begin(epoch)
            for batch in (7, 15, 21):
                with mock.patch.object(refresh, "_refresh", partial(found.append, (epoch, batch))):
                    refresh.on_train_batch_end(batch)
        return found

    assert looks(0) == [(epoch, 21) for epoch in range(4)]
    assert looks(2) == looks(0)[2:]


def test_a_map_of_another_size_is_no_change_of_the_crops():
    model = small(num_output_classes=10, pooling_cls=partial(DiffStride, static_crop=True))
    model.build((None, 16, 16, 1))
    refresh_crops(model, (16, 16, 1))
    model(tf.zeros([1, 12, 12, 1]))
    assert not refresh_crops(model, (16, 16, 1))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [40, 8])
def test_retraces_over_a_full_digits_run_stay_under_ten(tmp_path: Path, steps: int):
    gin_files.parse([gin_files.find_gin_file("digits_hybrid")], ["pooling.DiffStride.static_crop = True"])
    summary = gin_names.configured_train(workdir=str(tmp_path), crop_refresh_steps=steps)
    assert summary["test_accuracy"] > 0.98
    assert summary["retraces"] < 10
