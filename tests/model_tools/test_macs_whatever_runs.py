"""MACs of models that are quantized, fold maps into the batch, have loops of their own, or keep a state."""

from typing import Any

import keras
import numpy as np
import pytest

from diffstride_hybrid import DiffStride, DiffStride1D, macs, refresh_crops
from diffstride_hybrid.model_tools.macs_budget import MacsBudget


def quantized_layers() -> list[keras.layers.Layer]:
    return [keras.layers.Dense(6), keras.layers.EinsumDense("abc,cd->abd", (5, 10))]


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_quantized_layers_cost_what_they_did(mode: str):
    model = keras.Sequential([keras.Input((5, 4)), *quantized_layers(), keras.layers.Flatten(), keras.layers.Dense(3)])
    before = macs(model)
    for i in (0, 1, 3):
        model.layers[i].quantize(mode)
    assert macs(model).macs == before.macs == 5 * 4 * 6 + 5 * 6 * 10 + 5 * 10 * 3
    assert len(macs(model).layers) == 3
    assert "quantized_call" not in vars(model.layers[0])


def test_parts_of_an_image_in_the_batch_axis_cost_all_of_them():
    frames = keras.Input((4, 16, 16, 3))
    convolution, pooling = keras.layers.Conv2D(8, 3, padding="same"), DiffStride(2.0)
    folded = pooling(convolution(keras.ops.reshape(frames, (-1, 16, 16, 3))))
    cost = macs(keras.Model(frames, folded))
    one_by_one = macs(
        keras.Model(frames, keras.layers.TimeDistributed(keras.layers.Conv2D(8, 3, padding="same"))(frames))
    )
    assert cost.macs == one_by_one.macs == 4 * 16 * 16 * 27 * 8
    alone = keras.Sequential([keras.Input((16, 16, 8)), DiffStride(2.0)])
    assert cost.pooling_macs == 4 * macs(alone).pooling_macs


class DenseCell(keras.layers.Layer):
    state_size = output_size = 5

    def build(self, shape: Any):
        self.dense = keras.layers.Dense(5)
        self.dense.build(shape)

    def call(self, inputs: Any, states: Any) -> Any:
        outputs = self.dense(inputs)
        return outputs, [outputs]


@pytest.mark.parametrize("unroll", [False, True])
def test_a_cell_of_ones_own_costs_its_layers_at_each_step(unroll: bool):
    recurrent = keras.layers.RNN(DenseCell(), unroll=unroll)
    assert macs(keras.Sequential([keras.Input((4, 3)), recurrent])).macs == 4 * 3 * 5
    assert recurrent.unroll == unroll


@pytest.mark.parametrize("batch", [1, 8])
def test_counting_leaves_the_state_of_a_recurrent_layer(batch: int):
    layers = [keras.layers.Conv1D(4, 1), DiffStride1D(2.0, static_crop=True), keras.layers.LSTM(5, stateful=True)]
    model = keras.Sequential([keras.Input(batch_shape=(batch, 64, 4)), *layers])
    model(np.random.default_rng(1).normal(size=(batch, 64, 4)).astype("float32"))
    state = [np.array(each) for each in model.layers[-1].states]
    alone = keras.Sequential([keras.Input((64, 4)), keras.layers.Conv1D(4, 1), DiffStride1D(2.0)])
    steps = alone.compute_output_shape((1, 64, 4))[1] or macs(alone).layers[-1].output_shape[0]
    assert macs(model).macs == 64 * 4 * 4 + steps * 4 * 5 * (4 + 5)
    refresh_crops(model)
    assert np.any(state[0])
    for now, before in zip(model.layers[-1].states, state):
        np.testing.assert_array_equal(now, before)


class OwnConvolution(keras.layers.Layer):
    def build(self, shape: Any):
        self.scale = self.add_weight(shape=(1,))

    def call(self, inputs: Any) -> Any:
        return inputs * self.scale


@pytest.mark.parametrize("target", [0.5, 1e6])
def test_a_budget_of_nothing_is_refused(target: float):
    model = keras.Sequential(
        [keras.Input((16, 16, 1)), DiffStride(2.0), OwnConvolution(), keras.layers.GlobalAveragePooling2D()]
    )
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="no MACs that a budget could bound"):
        model.fit(np.zeros([2, 16, 16, 1]), np.zeros([2, 1]), callbacks=[MacsBudget(target)], verbose=0)


def test_two_layers_that_cudnn_runs_as_one_cost_what_they_did(monkeypatch: pytest.MonkeyPatch):
    """On a GPU PyTorch and JAX do not call them."""
    layer = keras.layers.Bidirectional(keras.layers.LSTM(2))
    model = keras.Sequential([keras.Input((7, 3)), layer])
    monkeypatch.setattr(type(layer), "_call_fused_lstm", lambda self, *args: keras.ops.ones((1, 4)), raising=False)
    assert macs(model).macs == 2 * 7 * (3 * 8 + 2 * 8)
    assert layer.forward_layer.use_cudnn == layer.backward_layer.use_cudnn == "auto"
