"""Multiply-accumulate operations, against a count by hand."""

from collections.abc import Sequence
from functools import partial

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from diffstride_hybrid import (
    DiffStride,
    FixedSpectralPooling,
    Resnet,
    SpatialPooling,
    SpectralPooling,
    macs,
    resnet18,
    resnet34,
    resnet56,
)
from diffstride_hybrid.model_tools.inspection import diffstride_layers, leaf_layers


def resnet_macs(filters: Sequence[int], layers: Sequence[int], sizes: Sequence[int], pooled: bool, kept: int) -> int:
    """By hand. Pooling leaves the convolution before it at the size of its input, a stride does not.

    Args:
        filters: channels of the first convolution, then of each block.
        layers: residual layers of each block.
        sizes: height and width of the image, after the first convolution, then after each block.
        pooled: whether a pooling downsamples.
        kept: how many of the first blocks have no projection.
    """
    total = sizes[1 - pooled] ** 2 * 9 * 3 * filters[0] + filters[-1] * 10
    for i, count in enumerate(layers):
        (channels_in, channels), (before, after) = filters[i : i + 2], sizes[i + 1 : i + 3]
        first, other = 9 * channels_in * channels, 9 * channels**2
        total += (before if pooled else after) ** 2 * first + (2 * count - 1) * after**2 * other
        if i >= kept:
            total += after**2 * channels_in * channels
    return total


# Sizes after each block that halves them, from 32.
STRIDED, CROPPED, SOFTLY_CROPPED = (16, 8, 4), (16, 8, 4), (24, 20, 18)

# Transforms, as the profiler would take the poolings' matrix products for those of dense layers.
SOFT = partial(DiffStride, static_crop=True, method="fft")

METHODS = {
    "strided": (None, None, STRIDED),
    "spectral": (partial(FixedSpectralPooling, method="fft"), None, CROPPED),
    "diffstride": (SOFT, None, SOFTLY_CROPPED),
    "hybrid": (SOFT, partial(SpectralPooling, method="fft"), SOFTLY_CROPPED),
    "sampled": (SpatialPooling, None, STRIDED),
}

RESNETS = {
    "resnet18": (resnet18, (1, 1, 2, 4, 8), (2, 2, 2, 2), 1),
    "resnet34": (resnet34, (1, 1, 2, 4, 8), (3, 4, 6, 3), 1),
    "resnet56": (resnet56, (1, 1, 2, 4), (9, 9, 9), 0),
}

SLOW = pytest.mark.slow


def built(resnet: str, method: str, width: int, head_placement: str = "before_gap") -> Resnet:
    pooling_cls, head_pooling_cls, _ = METHODS[method]
    options = {"pooling_cls": pooling_cls, "head_pooling_cls": head_pooling_cls, "head_placement": head_placement}
    model = RESNETS[resnet][0](width=width, num_output_classes=10, **options)
    model.build((None, 32, 32, 3))
    return model


def hand_count(resnet: str, method: str, width: int) -> int:
    _, factors, layers, kept = RESNETS[resnet]
    halvings = len(layers) - 1
    sizes = (32, 32, 32, *METHODS[method][2][:halvings])
    return resnet_macs([width * factor for factor in factors], layers, sizes, METHODS[method][0] is not None, kept)


def profiled_macs(model: keras.Model) -> float:
    """What TensorFlow's profiler counts of convolutions and matrix products, two operations each."""
    serve = tf.function(lambda images: model(images, training=False), autograph=False)
    graph = convert_variables_to_constants_v2(serve.get_concrete_function(tf.TensorSpec([1, 32, 32, 3]))).graph
    profiler = tf.compat.v1.profiler
    options = profiler.ProfileOptionBuilder(profiler.ProfileOptionBuilder.float_operation()).with_empty_output()
    counted = options.with_accounted_types(["Conv2D", "MatMul"]).build()
    return profiler.profile(graph, options=counted).total_float_ops / 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("resnet", RESNETS)
def test_each_resnet_costs_what_the_hand_count_says(resnet: str, method: str):
    assert macs(built(resnet, method, width=4)).macs == hand_count(resnet, method, width=4)


@pytest.mark.parametrize("method", [pytest.param(name, marks=SLOW if name != "hybrid" else []) for name in METHODS])
@pytest.mark.parametrize("resnet", ["resnet18", *(pytest.param(name, marks=SLOW) for name in ("resnet34", "resnet56"))])
def test_the_profiler_of_tensorflow_counts_the_same(resnet: str, method: str):
    assert profiled_macs(built(resnet, method, width=4)) == hand_count(resnet, method, width=4)


@pytest.mark.parametrize(("method", "expected"), [("strided", 555_422_720), ("hybrid", 4_186_117_120)])
def test_resnet18_costs_what_the_papers_networks_do(method: str, expected: int):
    placement = {"head_placement": "before_activation"} if method == "hybrid" else {}
    model = built("resnet18", method, width=64, **placement)
    assert macs(model).macs == expected == hand_count("resnet18", method, width=64)
    assert macs(model, (32, 32, 3)).macs == expected


def test_a_small_model_costs_what_the_hand_count_says():
    model = keras.Sequential(
        [
            keras.Input((12, 10, 3)),
            keras.layers.Conv2D(8, (3, 5), padding="same"),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Conv2D(4, 3, strides=2, groups=2, use_bias=False),
            keras.layers.DepthwiseConv2D(3, depth_multiplier=2),
            keras.layers.SeparableConv2D(6, 2, padding="same"),
            keras.layers.Flatten(),
            keras.layers.Dense(7),
        ]
    )
    cost = macs(model)
    assert [(type(entry.layer).__name__, entry.output_shape, entry.macs) for entry in cost.layers] == [
        ("Conv2D", (12, 10, 8), 12 * 10 * 3 * 5 * 3 * 8),
        ("Conv2D", (5, 4, 4), 5 * 4 * 3 * 3 * 4 * 4),
        ("DepthwiseConv2D", (3, 2, 8), 3 * 2 * 3 * 3 * 4 * 2),
        ("SeparableConv2D", (3, 2, 6), 3 * 2 * (2 * 2 * 8 + 8 * 6)),
        ("Dense", (7,), 3 * 2 * 6 * 7),
    ]
    assert cost.macs == sum(entry.macs for entry in cost.layers)
    assert cost.pooling_macs == 0
    assert cost.pooling_sizes() == {}


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (keras.layers.Conv1D(5, 3, padding="same"), (8, 4), 8 * 3 * 4 * 5),
        (keras.layers.Conv2DTranspose(5, 3, strides=2, padding="same"), (4, 6, 3), 4 * 6 * 3 * 3 * 3 * 5),
        (keras.layers.Conv3D(5, 2), (3, 4, 5, 2), 2 * 3 * 4 * 2**3 * 2 * 5),
        (keras.layers.Dense(5), (4, 6, 3), 4 * 6 * 3 * 5),
        (keras.layers.DepthwiseConv1D(3, depth_multiplier=2), (8, 4), 6 * 3 * 4 * 2),
        (keras.layers.DepthwiseConv1D(3, strides=2, data_format="channels_first"), (4, 9), 4 * 3 * 4),
        (keras.layers.SeparableConv1D(6, 3, depth_multiplier=2), (8, 4), 6 * (3 * 4 * 2 + 4 * 2 * 6)),
        (keras.layers.EinsumDense("abc,cd->abd", output_shape=(None, 7)), (4, 3), 4 * 3 * 7),
        (keras.layers.EinsumDense("abcd,cde->abe", output_shape=(None, 5)), (4, 2, 3), 4 * 2 * 3 * 5),
        (keras.layers.EinsumDense("...x,xy->...y", output_shape=(5,)), (4, 6, 3), 4 * 6 * 3 * 5),
        (keras.layers.TimeDistributed(keras.layers.Conv2D(5, 3)), (4, 8, 6, 3), 4 * 6 * 4 * 9 * 3 * 5),
        (keras.layers.SpectralNormalization(keras.layers.Dense(5)), (3,), 3 * 5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.layers.Layer) else None,
)
def test_every_kind_of_convolution_is_counted(layer: keras.layers.Layer, shape: tuple[int, ...], expected: int):
    assert macs(keras.Sequential([keras.Input(shape), layer])).macs == expected


def test_attention_costs_its_projections_and_two_products():
    query, value = keras.Input((6, 8)), keras.Input((5, 7))
    attention = keras.layers.MultiHeadAttention(2, 3, value_dim=4)
    cost = macs(keras.Model([query, value], attention(query=query, value=value)))
    projections = (6 * 8 + 5 * 7) * 2 * 3 + 5 * 7 * 2 * 4 + 6 * 2 * 4 * 8
    assert cost.macs == projections + 6 * 5 * 2 * (3 + 4)


def test_attention_over_some_axes_costs_their_products():
    inputs = keras.Input((4, 6, 8))
    attention = keras.layers.MultiHeadAttention(2, 3, attention_axes=(2,))
    cost = macs(keras.Model(inputs, attention(inputs, inputs)))
    assert cost.macs == 4 * (4 * 6) * 8 * 2 * 3 + (4 * 6) * 6 * 2 * (3 + 3)


def test_grouped_queries_cost_their_products():
    inputs = keras.Input((6, 8))
    attention = keras.layers.GroupQueryAttention(3, 4, 2)
    projections = 6 * 8 * 4 * 3 * 2 + 6 * 8 * 2 * 3 * 2
    assert macs(keras.Model(inputs, attention(inputs, inputs))).macs == projections + 6 * 6 * 4 * (3 + 3)


@pytest.mark.parametrize("attention", [keras.layers.Attention(), keras.layers.AdditiveAttention()])
def test_attention_without_weights_costs_its_two_products(attention: keras.layers.Layer):
    query, value = keras.Input((6, 8)), keras.Input((5, 8))
    assert macs(keras.Model([query, value], attention([query, value]))).macs == 6 * 5 * (8 + 8)


def test_a_product_of_two_layers_is_counted():
    first, second = keras.Input((6, 8)), keras.Input((5, 8))
    assert macs(keras.Model([first, second], keras.layers.Dot(axes=2)([first, second]))).macs == 6 * 5 * 8


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (keras.layers.LSTM(2), (7, 3), 7 * (3 * 8 + 2 * 8)),
        (keras.layers.GRU(2, return_sequences=True), (7, 3), 7 * (3 * 6 + 2 * 6)),
        (keras.layers.SimpleRNN(2), (7, 3), 7 * (3 * 2 + 2 * 2)),
        (keras.layers.Bidirectional(keras.layers.LSTM(2)), (7, 3), 2 * 7 * (3 * 8 + 2 * 8)),
        (
            keras.layers.RNN([keras.layers.LSTMCell(2), keras.layers.GRUCell(4)]),
            (7, 3),
            7 * (3 * 8 + 2 * 8 + 2 * 12 + 4 * 12),
        ),
        (keras.layers.ConvLSTM1D(2, 3), (7, 9, 5), 7 * 7 * (3 * 5 * 8 + 3 * 2 * 8)),
        (
            keras.layers.ConvLSTM2D(2, 3, padding="same", return_sequences=True),
            (7, 9, 8, 5),
            7 * 9 * 8 * (9 * 5 * 8 + 9 * 2 * 8),
        ),
        (
            keras.layers.ConvLSTM1D(2, 3, data_format="channels_first"),
            (7, 5, 9),
            7 * 7 * (3 * 5 * 8 + 3 * 2 * 8),
        ),
        (keras.layers.Embedding(10, 4), (7,), 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, keras.layers.Layer) else None,
)
def test_recurrent_layers_cost_both_kernels_at_every_step(
    layer: keras.layers.Layer, shape: tuple[int, ...], expected: int
):
    assert macs(keras.Sequential([keras.Input(shape), layer])).macs == expected


class OwnDense(keras.layers.Layer):
    def build(self, input_shape: Sequence[int]) -> None:
        self.matrix = self.add_weight(shape=(input_shape[-1], 5), name="matrix")

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return inputs @ self.matrix


class CountedDense(OwnDense):
    def macs(self, input_shape: Sequence[int], output_shape: Sequence[int]) -> int:
        return output_shape[0] * input_shape[0] * 3


def test_a_layer_that_nobody_has_counted_is_named_once():
    model = keras.Sequential([keras.Input((3,)), keras.Sequential([OwnDense(name="mine")], name="inner")], name="net")
    with pytest.warns(UserWarning, match=r"macs counts 0 for layer .*mine of class OwnDense, .*macs\(input_shape, out"):
        cost = macs(model)
    assert cost.layers == []
    macs(model)  # A second warning would be an error.


def test_cells_that_nobody_has_counted_are_named():
    class Cell(keras.layers.Layer):
        state_size = output_size = 2

        def build(self, input_shape: Sequence[int]) -> None:
            self.kernel = self.add_weight(shape=(input_shape[-1], 2), name="kernel")

        def call(self, inputs: tf.Tensor, states: Sequence[tf.Tensor]) -> tuple[tf.Tensor, Sequence[tf.Tensor]]:
            return inputs @ self.kernel, states

    with pytest.warns(UserWarning, match="cell of class Cell, which has a kernel"):
        macs(keras.Sequential([keras.Input((4, 3)), keras.layers.RNN(Cell())]))


def test_products_without_a_layer_are_named_once():
    first, second = keras.Input((6, 8)), keras.Input((8, 5))
    model = keras.Model([first, second], keras.ops.matmul(first, second), name="net")
    with pytest.warns(UserWarning, match="macs counts 0 for matmul.* of net, a product of tensors without a layer"):
        macs(model)
    macs(model)  # A second warning would be an error.


def test_a_model_of_several_inputs_is_counted():
    image, numbers = keras.Input((None, 6, 3), name="image"), keras.Input((5,), name="numbers", dtype="int32")
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(image))
    x = keras.layers.Concatenate()([x, keras.layers.Flatten()(keras.layers.Embedding(9, 2)(numbers))])
    model = keras.Model([image, numbers], keras.layers.Dense(2)(x))
    expected = 6 * 4 * 9 * 3 * 4 + (4 + 10) * 2
    with pytest.raises(ValueError, match="input_shape must be given"):
        macs(model)
    assert macs(model, [(8, 6, 3), (5,)]).macs == expected
    assert macs(model, {"numbers": (5,), "image": (8, 6, 3)}).macs == expected
    assert macs(model, [(9, 6, 3), (5,)]).macs == 7 * 4 * 9 * 3 * 4 + (4 + 10) * 2
    with pytest.raises(ValueError, match="a shape for each of the 2 inputs"):
        macs(model, (8, 6, 3))
    with pytest.raises(ValueError, match="a shape for each of image, numbers, got image, number"):
        macs(model, {"image": (8, 6, 3), "number": (5,)})


def test_a_layer_may_count_itself():
    cost = macs(keras.Sequential([keras.Input((4,)), CountedDense(), keras.layers.Dense(2)]))
    assert [(entry.output_shape, entry.macs) for entry in cost.layers] == [((5,), 5 * 4 * 3), ((2,), 5 * 2)]
    assert cost.macs == 5 * 4 * 3 + 5 * 2
    inputs = keras.Input((4,))
    assert macs(keras.Model(inputs, CountedDense()(inputs=inputs))).macs == 5 * 4 * 3


@pytest.mark.skipif(not hasattr(keras.layers, "ReversibleEmbedding"), reason="a layer of newer versions of Keras")
def test_an_embedding_that_is_reversed_multiplies_by_its_table():
    inputs, embedding = keras.Input((7,), dtype="int32"), keras.layers.ReversibleEmbedding(100, 32)
    cost = macs(keras.Model(inputs, embedding(embedding(inputs), reverse=True)))
    assert [entry.macs for entry in cost.layers] == [0, 7 * 32 * 100]


def test_layers_whose_weights_only_look_like_kernels_are_not_named():
    inputs = keras.Input((6,))
    x = keras.layers.Embedding(10, 4)(inputs)
    x = keras.layers.PReLU()(keras.layers.LayerNormalization(axis=(1, 2))(x))
    x = keras.layers.GroupNormalization(2)(keras.layers.BatchNormalization()(x))
    assert macs(keras.Model(inputs, x)).layers == []


def test_poolings_without_a_name_of_their_own_are_told_apart():
    model = keras.Sequential([keras.Input((16, 16, 3)), SpatialPooling(), SpatialPooling()])
    assert list(macs(model).pooling_sizes().values()) == [((16, 16), (8, 8)), ((8, 8), (4, 4))]


@pytest.mark.parametrize(
    ("layer", "size", "expected"),
    [
        (DiffStride((3.0, 2.5), smoothness_factor=2), (8, 8), 3 * 5 * (2 * 12 * 10 + 4 * 10 * 8 + 2 * 8 * 8)),
        (DiffStride((3.0, 2.5), smoothness_factor=2, mask="symmetric"), (7, 7), 3 * (7 * 12 * 10 + 7 * 7 * 10)),
        (FixedSpectralPooling((3, 2)), (4, 5), 3 * 3 * (2 * 12 * 10 + 4 * 10 * 5 + 2 * 5 * 4)),
        (SpectralPooling((3, 2)), (4, 5), 3 * (4 * 12 * 10 + 4 * 5 * 10)),
        (SpatialPooling((2, 3), (3, 2)), (4, 5), 4 * 5 * 3 * 2 * 3),
    ],
    ids=lambda value: value.name if isinstance(value, keras.layers.Layer) else None,
)
def test_poolings_cost_their_matrix_products(layer: keras.layers.Layer, size: tuple[int, int], expected: int):
    cost = macs(keras.Sequential([keras.Input((12, 10, 3)), layer]))
    assert cost.pooling_sizes() == {layer.path: ((12, 10), size)}
    assert cost.pooling_macs == expected
    assert cost.macs == 0
    assert [entry.is_pooling for entry in cost.layers] == [True]


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (FixedSpectralPooling((3, 2), data_format="channels_first"), 3 * 3 * (2 * 12 * 10 + 4 * 10 * 5 + 2 * 5 * 4)),
        (SpectralPooling((3, 2), data_format="channels_first"), 3 * (12 * 10 * 5 + 4 * 12 * 5)),
    ],
    ids=["complex, as in channels_last", "real, columns first"],
)
def test_poolings_in_channels_first_cost_their_products(layer: keras.layers.Layer, expected: int):
    cost = macs(keras.Sequential([keras.Input((3, 12, 10)), layer]))
    assert cost.pooling_sizes() == {layer.path: ((12, 10), (4, 5))}
    assert cost.pooling_macs == expected


def test_large_maps_cost_the_frequencies_of_equal_weights_once():
    cost = macs(keras.Sequential([keras.Input((64, 60, 3)), DiffStride()]))
    assert list(cost.pooling_sizes().values()) == [((64, 60), (40, 38))]
    pairs, doubled = 21, 6
    products = 2 * pairs * 64 * 60, 2 * (pairs - doubled) * 60 * 38 + 4 * doubled * 60 * 38, 2 * pairs * 40 * 38
    assert cost.pooling_macs == 3 * sum(products)


def test_sizes_are_those_of_the_strides_as_they_are_now():
    model = keras.Sequential([keras.Input((16, 16, 2)), DiffStride(), keras.layers.Conv2D(3, 1)])
    before = macs(model)
    model.layers[0].strides.assign([8.0, 4.0])
    after = macs(model)
    assert [size for _, size in before.pooling_sizes().values()] == [(16, 16)]
    assert [size for _, size in after.pooling_sizes().values()] == [(10, 12)]
    assert (before.macs, after.macs) == (16 * 16 * 2 * 3, 10 * 12 * 2 * 3)


def test_input_shape_overrides_the_models_own():
    model = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(2, 3, padding="same")])
    assert macs(model, (6, 5, 3)).macs == 6 * 5 * 9 * 3 * 2


def test_a_layer_called_twice_is_counted_twice():
    convolution, pooling = keras.layers.Conv2D(3, 3, padding="same"), DiffStride(1.5)
    inputs = keras.Input((12, 12, 3))
    cost = macs(keras.Model(inputs, convolution(pooling(convolution(pooling(inputs))))))
    assert [entry.layer for entry in cost.layers] == [pooling, convolution, pooling, convolution]
    assert len(cost.pooling_sizes()) == 1
    sizes = [entry.output_shape[:2] for entry in cost.layers if entry.layer is convolution]
    assert cost.macs == sum(height * width * 9 * 3 * 3 for height, width in sizes)


def test_layers_inside_layers_are_counted_once_each():
    inner = keras.Sequential([keras.layers.Conv2D(3, 1), keras.layers.Conv2D(3, 1)])
    model = keras.Sequential([keras.Input((4, 4, 3)), keras.Sequential([inner]), keras.layers.Conv2D(3, 1)])
    assert macs(model).macs == 3 * 4 * 4 * 9


def test_counting_leaves_the_model_as_it_was():
    model = resnet18(width=4, num_output_classes=10, pooling_cls=partial(DiffStride, strides=2))
    model.build((None, 16, 16, 3))
    layers = [model, *leaf_layers(model)]
    calls = {layer: layer.call for layer in layers}
    weights = model.get_weights()
    x = tf.ones([1, 16, 16, 3])
    before = model(x)
    macs(model)
    with pytest.raises(ValueError):
        macs(model, (16, 16))
    for layer, call in calls.items():
        assert layer.call == call
        assert layer.call.__func__ is type(layer).call
        assert "call" not in vars(layer)
    for actual, expected in zip(model.get_weights(), weights):
        np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(model(x), before)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_the_count_does_not_depend_on_the_dtype(dtype: str):
    counts = []
    for policy in ("float32", dtype):
        model = Resnet([4, 6], [1, 2], 10, num_layers=1, pooling_cls=DiffStride, dtype=policy)
        model.build((None, 16, 16, 3))
        counts.append((macs(model).macs, macs(model).pooling_macs))
    assert counts[0] == counts[1]


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.pooling = DiffStride()

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        return self.pooling(inputs)


def test_an_unknown_input_shape_is_an_error():
    unknown = keras.Sequential([keras.Input((None, None, 3)), DiffStride()])
    unbuilt = keras.Sequential([DiffStride()])
    for model in (unknown, unbuilt, Subclassed()):
        with pytest.raises(ValueError, match="input_shape must be given"):
            macs(model)
    assert list(macs(Subclassed(), (8, 8, 3)).pooling_sizes().values()) == [((8, 8), (8, 8))]


def test_diffstride_layers_come_once_each_in_the_order_of_the_model():
    first, second = DiffStride(name="first"), DiffStride(name="second")
    inputs = keras.Input((12, 12, 3))
    inner = keras.Sequential([second, keras.layers.ReLU()])
    model = keras.Model(inputs, inner(first(inner(first(inputs)))))
    assert diffstride_layers(model) == [first, second]
    model = resnet18(width=4, num_output_classes=10, pooling_cls=DiffStride)
    model.build((None, 16, 16, 3))
    blocks = [layer.path.split("/")[1] for layer in diffstride_layers(model)]
    assert blocks == ["pooling", "block_2", "block_3", "block_4"]
