"""The package's callbacks in a user's own `fit`."""

from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.replicas import started_loop
from support.tiny_runs import functional, rows_of, small_digits

from diffstride_hybrid import DiffStride, macs
from diffstride_hybrid.model_tools.crop_refresh import CropRefresh, held_crops, refresh_crops
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.runs.logs import MetricsLog, StrideLog
from diffstride_hybrid.spectral.windows import diffstride_windows, kept_bins


def test_the_callbacks_serve_a_users_own_fit(tmp_path: Path):
    model = functional(10)
    model.compile(keras.optimizers.SGD(0.5), "categorical_crossentropy", metrics=["accuracy"])
    images, labels = next(small_digits().training().as_numpy_iterator())
    folder = tmp_path / "fit"
    callbacks = [StrideLog(str(folder)), MetricsLog(folder)]
    model.fit(images, labels, batch_size=32, epochs=2, verbose=0, callbacks=callbacks)

    rows = rows_of(folder / "strides.csv")
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert set(rows[0]) == {
        "epoch",
        "learned/vertical_stride",
        "learned/horizontal_stride",
        "learned/height",
        "learned/width",
        "fixed/height",
        "fixed/width",
        "macs",
    }
    np.testing.assert_array_equal([float(rows[0][f"learned/{name}_stride"]) for name in DIRECTIONS], [2, 2])
    strides = [np.float32(rows[-1][f"learned/{name}_stride"]) for name in DIRECTIONS]
    np.testing.assert_array_equal(strides, model.get_layer("learned").strides.numpy())
    assert strides != [2, 2]
    pooled = model.get_layer("learned")(tf.zeros([1, 14, 14, 4]))
    assert (int(rows[-1]["learned/height"]), int(rows[-1]["learned/width"])) == tuple(pooled.shape[1:3])
    metrics = rows_of(folder / "metrics.csv")
    assert [list(row) for row in metrics] == 2 * [["epoch", "accuracy", "loss"]]


def test_epochs_without_validation_have_empty_fields(tmp_path: Path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    data = np.ones((4, 2)), np.ones((4, 1))
    model.fit(*data, validation_data=data, validation_freq=2, epochs=3, verbose=0, callbacks=[MetricsLog(tmp_path)])
    rows = rows_of(tmp_path / "metrics.csv")
    assert [row["val_loss"] != "" for row in rows] == [False, True, False]
    assert all(row["loss"] for row in rows)


DIRECTIONS = ("vertical", "horizontal")


@pytest.mark.parametrize("static_crop", [False, True])
def test_a_loop_counts_macs_anew_only_after_the_sizes_of_maps_have_changed(static_crop: bool):
    loop = started_loop(pooling_cls=partial(DiffStride, static_crop=static_crop))
    *_, layer = diffstride_layers(loop.model)
    with held_crops(loop.model):
        before = loop.cost()
        assert before.macs == macs(loop.model, (16, 16, 1)).macs
        layer.strides.assign([3.2, 2.0])
        assert (loop.cost().macs == before.macs) == static_crop
        refresh_crops(loop.model, (16, 16, 1))
        after = loop.cost()
        assert after.macs == macs(loop.model, (16, 16, 1)).macs < before.macs
        with mock.patch("diffstride_hybrid.training.loop.macs", side_effect=AssertionError):
            assert loop.cost() is after


@pytest.mark.slow
@pytest.mark.parametrize("jit_compile", [False, True], ids=["plain", "XLA"])
def test_static_crops_follow_the_strides_in_a_users_own_fit(jit_compile: bool):
    model = functional(10)
    layer = model.get_layer("learned")
    if not jit_compile:
        layer.fix_crop()  # With XLA it is fixed by itself.
    model.compile(keras.optimizers.SGD(0.0), "categorical_crossentropy", jit_compile=jit_compile)
    images, labels = next(small_digits().training().as_numpy_iterator())
    refresh = CropRefresh(every_steps=2)
    widths = []

    class Move(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            widths.append(dict(layer.crops))
            layer.strides.assign([2.0, 2.0] if batch < 4 else [4.0, 4.0])

    model.fit(images, labels, batch_size=8, verbose=0, callbacks=[Move(), refresh])
    assert model.jit_compile == jit_compile
    assert refresh.changes == 1
    assert len({str(crops) for crops in widths}) == 2
    assert model.predict(images[:2], verbose=0).shape == (2, 10)
    (crop,) = layer.crops.values()
    windows = diffstride_windows(
        14,
        14,
        layer.strides,
        smoothness_factor=4.0,
        cropping=True,
        lower_limit_stride=None,
        upper_limit_stride=None,
        mask="released",
    )
    assert crop == kept_bins(*windows)
