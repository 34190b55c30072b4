"""Graphs in which the poolings are constants."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from diffstride_hybrid import DiffStride, SpectralPooling, SpectralResizing, resnet18
from diffstride_hybrid.model_tools.frozen import frozen_poolings, inference_function
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.model_tools.macs import macs

IMAGES = np.random.default_rng(0).normal(size=(3, 16, 16, 3)).astype("float32")
CHANGES_WITH_STRIDES = {"Range", "RFFT2D", "FFT2D", "Cos", "If", "StatelessIf", "PartitionedCall"}


def network() -> keras.Model:
    model = resnet18(
        num_output_classes=4, width=4, pooling_cls=DiffStride, head_pooling_cls=SpectralPooling, dtype="float32"
    )
    model.build((None, 16, 16, 3))
    return model


def test_it_gives_what_the_model_gives_in_batches_of_any_size():
    model = network()
    infer = inference_function(model, (16, 16, 3))
    for batch in (1, 3):
        np.testing.assert_allclose(infer(IMAGES[:batch]), model(IMAGES[:batch], training=False), rtol=1e-5, atol=1e-5)


def test_its_graph_has_no_window_no_transform_and_no_unknown_size():
    model = network()
    graph = inference_function(model, (16, 16, 3)).get_concrete_function().graph
    assert not CHANGES_WITH_STRIDES & {node.op for node in graph.as_graph_def().node}
    strides = [layer.strides for layer in diffstride_layers(model)]
    captured = {id(external) for external, _ in graph.captures}
    assert not [each for each in strides if id(each.value.handle) in captured]
    products = [op for op in graph.get_operations() if op.type == "BatchMatMulV2"]
    # Seven calls of DiffStride and one of the head, two products each.
    assert len(products) == 16
    assert all(None not in op.outputs[0].shape[1:] for op in products)


def test_afterwards_the_model_follows_its_strides_again():
    model = network()
    infer = inference_function(model, (16, 16, 3))
    before = infer(IMAGES).numpy()
    model.get_layer("pooling").strides.assign([3.0, 3.0])
    np.testing.assert_array_equal(infer(IMAGES), before)
    assert np.abs(model(IMAGES, training=False) - before).max() > 1e-3
    with frozen_poolings(model):
        traced = tf.function(model, autograph=False)(tf.constant(IMAGES))
    np.testing.assert_allclose(traced, model(IMAGES, training=False), rtol=1e-5, atol=1e-5)


def test_calls_may_be_watched_within_the_context():
    """As a run is evaluated whose crops are static: they are settled within it, by counting."""
    model = network()
    before = model(IMAGES, training=False)
    pooling = model.get_layer("pooling")
    with frozen_poolings(model):
        frozen = pooling.call
        assert macs(model, (16, 16, 3)).macs > 0
        assert pooling.call is frozen
    assert "call" not in vars(pooling)
    np.testing.assert_array_equal(model(IMAGES, training=False), before)


def test_an_error_within_the_context_leaves_the_model_as_it_was():
    model = network()
    with pytest.raises(RuntimeError, match="within"), frozen_poolings(model):
        raise RuntimeError("within")
    assert "call" not in vars(model.get_layer("pooling"))


def test_the_other_map_of_a_resizing_may_be_given_by_its_place():
    inputs = keras.Input((16, 16, 3))
    small = SpectralPooling(2)(inputs)
    model = keras.Model(inputs, [SpectralResizing()(small, inputs), SpectralResizing()(small, like=inputs)])
    for found in inference_function(model, (16, 16, 3))(IMAGES):
        np.testing.assert_allclose(found, model(IMAGES)[0], rtol=1e-5, atol=1e-5)


def test_what_a_layer_refuses_is_not_exported():
    model = keras.Sequential([keras.Input((None, None, 3)), SpectralPooling(output_size=8)])
    with pytest.raises(ValueError, match="output_size must not exceed the feature map"):
        inference_function(model, (4, 4, 3))
