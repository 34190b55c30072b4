"""Poolings of maps whose size is known only when the graph runs: one graph for all, with both engines in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from diffstride_hybrid import spectral
from diffstride_hybrid.spectral.tensorflow.engines import (
    LEARNED_MAPS,
    LEARNED_SIGNALS,
    RESAMPLED_MAPS,
    Crossover,
    by_faster_engine,
    resolve_method,
)

RNG = np.random.default_rng(0)

STRIDES = tf.constant([1.7, 2.3])


def diffstride(maps: tf.Tensor, **options: Any) -> tf.Tensor:
    return spectral.diffstride(maps, STRIDES, **options)


def fixed_spectral_pooling(maps: tf.Tensor, **options: Any) -> tf.Tensor:
    return spectral.fixed_spectral_pooling(maps, (1.7, 2.3), **options)


def to_half(maps: tf.Tensor, data_format: str, **options: Any) -> tf.Tensor:
    height, width = spectral.spatial_lengths(maps, data_format)
    return spectral.spectral_pooling(maps, (height // 2, width // 2), data_format=data_format, **options)


def to_a_given_size(maps: tf.Tensor, **options: Any) -> tf.Tensor:
    return spectral.spectral_pooling(maps, (6, 7), **options)


every_pooling = pytest.mark.parametrize("pool", [diffstride, fixed_spectral_pooling, to_half, to_a_given_size])


def with_gradient(pool: Callable[..., tf.Tensor], **options: Any) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """The pooled maps, and the gradient of the sum of their cubes to the maps."""

    def pooled(maps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(maps)
            outputs = pool(maps, **options)
            loss = tf.reduce_sum(outputs**3)
        return outputs, tape.gradient(loss, maps)

    return pooled


@every_pooling
@pytest.mark.parametrize("data_format", ["channels_last", pytest.param("channels_first", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("size", "other_engine"), [((9, 12), "fft"), ((60, 70), "matmul"), ((513, 8), "matmul")])
@pytest.mark.parametrize("known", [(None, None), pytest.param((None, True), marks=pytest.mark.slow)])
def test_a_graph_for_any_size_gives_what_either_engine_gives_at_a_known_one(
    known: tuple[bool | None, ...],
    size: tuple[int, int],
    other_engine: str,
    data_format: str,
    pool: Callable[..., tf.Tensor],
):
    last = data_format == "channels_last"
    maps = tf.constant(RNG.normal(size=(2, *size, 3) if last else (2, 3, *size)))
    spatial = [length if is_known else None for length, is_known in zip(size, known)]
    shape = [None, *spatial, 3] if last else [None, 3, *spatial]
    unknown = tf.function(with_gradient(pool, data_format=data_format), [tf.TensorSpec(shape, tf.float64)])
    expected = with_gradient(pool, data_format=data_format, method=other_engine)(maps)
    for one, other in zip(unknown(maps), expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-11 * float(tf.reduce_max(tf.abs(other))))


@pytest.mark.parametrize("crossover", [LEARNED_MAPS, RESAMPLED_MAPS, LEARNED_SIGNALS], ids=["maps", "fixed", "signals"])
def test_the_graph_chooses_as_python_does(crossover: Crossover):
    chosen = set()

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, None])], autograph=False)
    def engine(maps: tf.Tensor) -> tf.Tensor:
        maps = maps[:, 0] if crossover is LEARNED_SIGNALS else maps
        return by_faster_engine(
            maps, "auto", crossover, "channels_last", lambda: tf.constant("fft"), lambda: tf.constant("matmul")
        )

    for _ in range(60):
        batch, channels = (int(2**power) for power in RNG.integers(0, 7, 2))
        width = int(2 ** RNG.uniform(1, 9))
        height = 1 if crossover is LEARNED_SIGNALS else width + int(RNG.integers(0, 4))
        if batch * channels * height * width > 2**22:
            continue
        expected = resolve_method("auto", crossover, height, width, channels, batch)
        assert engine(tf.zeros([batch, height, width, channels])).numpy().decode() == expected
        chosen.add(expected)
    assert chosen == {"fft", "matmul"}


def engines_in(graph: tf.Graph) -> set[str]:
    return {node.op for node in all_nodes(graph)} & {"RFFT2D", "FFT2D", "RFFT", "MatMul", "BatchMatMulV2"}


def all_nodes(graph: tf.Graph) -> list[Any]:
    definition = graph.as_graph_def()
    return [*definition.node, *(node for function in definition.library.function for node in function.node_def)]


@every_pooling
def test_a_graph_of_unknown_size_holds_both_engines_and_one_of_known_size_holds_one(pool: Callable[..., tf.Tensor]):
    def graph(*size: int | None) -> tf.Graph:
        function = tf.function(lambda maps: pool(maps, data_format="channels_last"))
        return function.get_concrete_function(tf.TensorSpec([None, *size, 64], tf.float32)).graph

    assert any("FFT" in name for name in engines_in(graph(None, None)))
    assert any("MatMul" in name for name in engines_in(graph(None, None)))
    assert not any("FFT" in name for name in engines_in(graph(32, 32)))
    assert any("FFT" in name for name in engines_in(graph(4096, 4096)))


@every_pooling
@pytest.mark.parametrize(("at_most", "holds_transforms"), [((32, 32), False), ((2000, 2000), True)])
def test_a_graph_for_small_maps_of_unknown_size_holds_products_alone(
    at_most: tuple[int, int], holds_transforms: bool, pool: Callable[..., tf.Tensor]
):
    function = tf.function(lambda maps: pool(maps, data_format="channels_last", at_most=at_most))
    graph = function.get_concrete_function(tf.TensorSpec([None, None, None, 64])).graph
    assert any("FFT" in name for name in engines_in(graph)) == holds_transforms


@pytest.mark.parametrize("mask", ["released", "symmetric"])
@pytest.mark.parametrize("size", [(9, 12), (60, 70)])
def test_a_bound_changes_no_result(size: tuple[int, int], mask: str):
    """Also beyond the bound, where only the time is another one."""
    maps = tf.constant(RNG.normal(size=(2, *size, 3)))

    def pooled(**options: Any) -> list[tf.Tensor]:
        graph = tf.function(
            with_gradient(diffstride, data_format="channels_last", mask=mask, **options),
            [tf.TensorSpec([None, None, None, 3], tf.float64)],
        )
        return graph(maps)

    for one, other in zip(pooled(at_most=(32, 32)), pooled(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-11 * float(tf.reduce_max(tf.abs(other))))


def test_layers_of_equal_options_share_their_graph():
    def size_of_graph(count: int, mask: str = "released") -> int:
        @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([count, 2])])
        def pooled(maps: tf.Tensor, strides: tf.Tensor) -> list[tf.Tensor]:
            with tf.GradientTape() as tape:
                tape.watch(strides)
                for i in range(count):
                    maps = spectral.diffstride(maps, strides[i], mask=mask)
                loss = tf.reduce_sum(maps**2)
            return tape.gradient(loss, strides)

        return len(all_nodes(pooled.get_concrete_function().graph))

    one, two, four = (size_of_graph(count) for count in (1, 2, 4))
    # What the calls share is much more than a call adds: its strides, the call itself and the call of its gradient.
    assert two - one < one / 20
    assert four - two < 2.5 * (two - one)


def test_known_parts_of_the_shape_stay_known():
    seen = []

    @tf.function(input_signature=[tf.TensorSpec([None, None, 20, 3])], autograph=False)
    def pooled(maps: tf.Tensor) -> tf.Tensor:
        seen.append(spectral.spectral_pooling(maps, (4, 5)).shape)
        seen.append(spectral.fixed_spectral_pooling(maps, (2.0, 2.0)).shape)
        seen.append(spectral.diffstride(maps, STRIDES, cropping=False).shape)
        return maps

    pooled.get_concrete_function()
    assert [shape.as_list() for shape in seen] == [[None, 4, 5, 3], [None, None, 10, 3], [None, None, 20, 3]]


def test_options_that_differ_do_not_share():
    maps = tf.constant(RNG.normal(size=(1, 40, 40, 2)).astype("float32"))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 2])], autograph=False)
    def pooled(maps: tf.Tensor) -> list[tf.Tensor]:
        return [
            spectral.diffstride(maps, STRIDES, upper_limit_stride=limit, norm=norm)
            for limit in (None, 1.5, (1.5, None), (None, 1.5))
            for norm in ("forward", "backward")
        ]

    shapes = [tuple(outputs.shape) for outputs in pooled(maps)]
    assert len(set(shapes)) == 4
    assert float(tf.reduce_mean(pooled(maps)[0])) != float(tf.reduce_mean(pooled(maps)[1]))
