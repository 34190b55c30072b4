"""Residual layers that compute maps again in the backward pass, in place of keeping them."""

import contextlib
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.memory import median_peak_megabytes
from support.replicas import started_loop, two_cpus

from diffstride_hybrid import DiffStride, FixedSpectralPooling, ResidualLayer, resnet18
from diffstride_hybrid.model_tools.inspection import diffstride_layers, replaced_calls

MAPS = np.random.default_rng(0).normal(size=(3, 14, 13, 4)).astype("float32")


def layer(recompute_pooling: bool, policy: str = "float32", pooling_cls: Any = DiffStride) -> ResidualLayer:
    keras.utils.set_random_seed(1)
    options = {"pooling_cls": pooling_cls, "project": True, "recompute_pooling": recompute_pooling, "dtype": policy}
    made = ResidualLayer(6, strides=(1.7, 2.3), **options)
    made.build(MAPS.shape)
    return made


def step(made: ResidualLayer, training: bool = True) -> list[tf.Tensor]:
    """The output, and its gradients to the maps and to all weights."""
    maps = tf.cast(MAPS, made.compute_dtype)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        outputs = made(maps, training=training)
        loss = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 3)
    return [outputs, *tape.gradient(loss, [maps, *(weight.value for weight in made.trainable_variables)])]


def results(made: ResidualLayer, run: Any, **options: Any) -> list[np.ndarray]:
    found = [*run(made, **options), *(weight.value for weight in made.non_trainable_variables)]
    return [tf.cast(each, tf.float64).numpy() for each in found]


POLICIES = {"float32": 1e-5, "mixed_bfloat16": 3e-2, "mixed_float16": 4e-3, "float64": 1e-12}
"""Each with its tolerance."""


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(
    ("policy", "tolerance", "is_compiled"),
    [
        pytest.param(
            *each,
            is_compiled,
            id=f"{each[0]}-{'compiled' if is_compiled else 'eager'}",
            marks=[pytest.mark.slow] if is_compiled and each[0] in ("mixed_float16", "float64") else [],
        )
        for each in POLICIES.items()
        for is_compiled in (True, False)
    ],
)
def test_it_gives_the_same_numbers(policy: str, tolerance: float, training: bool, is_compiled: bool):
    run = tf.function(step, autograph=False) if is_compiled else step
    found = results(layer(True, policy), run, training=training)
    expected = results(layer(False, policy), run, training=training)
    # Three kernels, two times scale and offset, strides; four averages.
    assert len(found) == len(expected) == 2 + 8 + 4
    for one, other in zip(found, expected):
        assert np.abs(other).max() > 0 or not training
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.abs(other).max())


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "XLA"])
@pytest.mark.parametrize("scope", [contextlib.nullcontext, pytest.param(lambda: two_cpus().scope(), id="replicas")])
def test_a_training_loop_takes_the_same_steps(scope: Any, jit_compile: bool):
    if jit_compile and scope is not contextlib.nullcontext:
        pytest.skip("XLA compiles no steps of two replicas on a CPU.")
    found = {}
    for recompute_pooling in (True, False):
        keras.utils.set_random_seed(1)
        with scope():
            loop = started_loop(pooling_cls=DiffStride, recompute_pooling=recompute_pooling, jit_compile=jit_compile)
            assert loop.train_steps(3)
        strides = [layer.strides.numpy() for layer in diffstride_layers(loop.model)]
        found[recompute_pooling] = [loop.results()["loss"], *np.ravel(strides)]
    np.testing.assert_allclose(found[True], found[False], rtol=1e-5)
    assert 2.0 not in found[True]


def test_a_layer_that_learns_no_stride_is_as_it_was():
    frozen = layer(True)
    frozen.parts()["pooling"].trainable = False
    fixed = layer(True, pooling_cls=FixedSpectralPooling)
    for made in (frozen, fixed):
        graph = tf.function(lambda made=made: step(made), autograph=False).get_concrete_function().graph
        convolutions = [operation for operation in graph.get_operations() if operation.type == "Conv2D"]
        assert len(convolutions) == 3


def test_whoever_watches_the_pooling_sees_its_two_calls():
    made, seen = layer(True), []
    pooling = made.parts()["pooling"]

    def watched(layer: keras.layers.Layer) -> Any:
        call = layer.call
        return lambda *args, **options: seen.append(layer) or call(*args, **options)

    with replaced_calls([pooling], watched):
        step(made)
    assert seen == [pooling, pooling]


def test_a_training_step_of_a_network_holds_less(tmp_path: Path):
    images = tf.random.normal([16, 32, 32, 3], seed=0)

    def network(recompute_pooling: bool) -> keras.Model:
        keras.utils.set_random_seed(1)
        options = {"num_output_classes": 10, "width": 16, "pooling_cls": DiffStride}
        model = resnet18(recompute_pooling=recompute_pooling, **options)
        model.build(images.shape)
        return model

    plain, recomputing = network(False), network(True)
    assert median_peak_megabytes(recomputing, images) < 0.85 * median_peak_megabytes(plain, images)
    recomputing.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_config()["recompute_pooling"] is True
    assert loaded.get_layer("block_2").layers[0].recompute_pooling is True
    np.testing.assert_array_equal(loaded(images[:2]), recomputing(images[:2]))


@pytest.mark.parametrize("is_compiled", [True, False], ids=["compiled", "eager"])
def test_second_derivatives_are_the_same(is_compiled: bool):
    def second(made: ResidualLayer) -> list[tf.Tensor]:
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                loss = tf.reduce_sum(tf.sin(made(MAPS, training=True)))
            gradients = inner.gradient(loss, [weight.value for weight in made.trainable_variables])
            penalty = tf.add_n([tf.reduce_sum(each**2) for each in gradients])
        return outer.gradient(penalty, [weight.value for weight in made.trainable_variables])

    run = tf.function(second, autograph=False) if is_compiled else second
    for one, other in zip(run(layer(True)), second(layer(False)), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-3 * np.abs(other).max())
