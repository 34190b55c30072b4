"""The MACs that `CostModel` predicts are those that `macs` counts."""

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
import numpy as np
import pytest

from diffstride_hybrid import DiffStride, DiffStride1D, SpectralPooling, macs, resnet18
from diffstride_hybrid.model_tools.cost_model import CostModel, cost_record, cropping_layers
from diffstride_hybrid.model_tools.length_table import LengthTable

layers = keras.layers


def network(size: int, **options: Any) -> keras.Model:
    ramp = 4.0 if size > 8 else 1.0
    model = resnet18(num_output_classes=10, pooling_cls=partial(DiffStride, smoothness_factor=ramp), **options)
    model.build((None, size, size, 1))
    return model


def sequential() -> keras.Model:
    parts = [layers.Conv2D(8, 3), DiffStride(1.5), layers.Conv2D(16, 3), layers.ReLU()]
    parts += [DiffStride(2.0, smoothness_factor=1.0, mask="symmetric"), layers.Conv2D(8, 3, strides=2, padding="same")]
    return keras.Sequential([keras.Input((28, 28, 1)), *parts, layers.GlobalAveragePooling2D(), layers.Dense(10)])


def functional() -> keras.Model:
    """Two branches behind one pooling, which is called twice, and a factor of two between the poolings."""
    inputs = keras.Input((32, 32, 3))
    pooling = DiffStride(2.0, smoothness_factor=2.0, shared_stride=True)
    x = layers.Conv2D(8, 3, padding="same")(inputs)
    x = layers.Add()([layers.Conv2D(8, 3, padding="same")(pooling(x)), layers.Conv2D(8, 1)(pooling(x))])
    x = layers.DepthwiseConv2D(3, padding="same")(layers.MaxPooling2D(padding="same")(x))
    x = layers.Conv2D(8, 3)(DiffStride(1.5, smoothness_factor=1.0)(x))
    x = DiffStride(2.0, cropping=False)(x)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def signals() -> keras.Model:
    """An axis that is too long for a table."""
    parts = [layers.Conv1D(8, 3, padding="same"), DiffStride1D(1.5), layers.Conv1D(16, 3, padding="same")]
    return keras.Sequential([keras.Input((900, 2)), *parts, DiffStride1D(2.0), layers.Conv1D(8, 3)])


CASES: dict[str, Callable[[], keras.Model]] = {
    f"{'hybrid' if head else 'diffstride'}-{width}-{size}": partial(network, size, width=width, head_pooling_cls=head)
    for width, head, size in [
        *((8, None, 32), (8, SpectralPooling, 28), (8, SpectralPooling, 8)),
        *((16, SpectralPooling, 32), (16, None, 28), (16, None, 8)),
    ]
}
CASES |= {"sequential": sequential, "functional": functional, "signals": signals}


def give(costs: CostModel, generator: np.random.Generator) -> list[np.ndarray]:
    """Gives the layers random strides, within their constraints."""
    for layer in costs.layers:
        strides = generator.uniform(1.0, 4.0, layer.strides.shape).astype("float32")
        layer.strides.assign(layer.strides.constraint(strides))
    return costs.strides()


SLOW_CASES = ("hybrid-8-28", "hybrid-8-8", "diffstride-16-28")


@pytest.mark.parametrize(
    "case", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW_CASES else []) for name in CASES]
)
def test_the_prediction_is_the_count(case: str):
    model = CASES[case]()
    shape = (*model.input_shape[1:],) if case in ("sequential", "functional", "signals") else None
    shape = shape or (int(case.split("-")[2]),) * 2 + (1,)
    costs = CostModel(cropping_layers(model), cost_record(model, shape))
    assert costs.whole(costs.strides()) == macs(model, shape).macs
    generator = np.random.default_rng(1)
    ratios = []
    for _ in range(4):
        strides = give(costs, generator)
        count = macs(model, shape).macs
        # Nothing but a convolution without padding behind a change of size makes the sizes differ.
        assert costs.whole(strides) == pytest.approx(count, rel=0.0 if "-" in case else 0.01)
        ratios.append(costs.smooth(strides) / count)
    if "-8" not in case[-2:]:  # On so small a map a step of two samples is a quarter of it.
        assert np.mean(ratios) == pytest.approx(1.0, abs=0.12)


def test_the_smooth_cost_falls_with_each_stride_and_has_no_steps():
    model = network(32, width=8)
    costs = CostModel(cropping_layers(model), cost_record(model, (32, 32, 1)))
    for place in range(4):
        line = []
        for stride in np.linspace(1.6, 8.0, 400):
            strides = [np.full(2, 1.6) for _ in costs.layers]
            strides[place][0] = stride
            line.append(costs.smooth(strides))
        steps = np.diff(line) / line[0]
        assert (steps <= 0).all() and steps.min() > -0.02
        assert line[-1] < line[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask": "symmetric"},
        {"shared_stride": True},
        {"smoothness_factor": 1.5, "lower_limit_stride": 1.5, "upper_limit_stride": (3.0, None)},
        {"smoothness_factor": 0.0},
    ],
)
@pytest.mark.parametrize("size", [(1, 7), (16, 9), (2, 2), (13, 12), (6, 1)])
def test_the_sizes_of_a_table_are_those_of_the_layer(size: tuple[int, int], options: dict[str, Any]):
    layer = DiffStride(2.0, **options)
    layer.build((None, *size, 1))
    components = layer.strides.shape[0]
    tables = [LengthTable(layer, size, [0, 1] if components == 1 else [axis]) for axis in range(components)]
    boundaries = np.concatenate([table.boundaries for table in tables])
    strides = np.concatenate([boundaries, np.nextafter(boundaries, np.float32(0)), [1.0, 2.2, 50.0]]).astype("float32")
    for stride in strides:
        layer.strides.assign([stride] * components)
        shape = tuple(layer(np.zeros([1, *size, 1], "float32")).shape[1:3])
        lengths = [table.lengths(stride) for table in tables]
        assert shape == (lengths[0][0], lengths[-1][-1])
