"""`MacsBudget` in `fit`: its schedule, its steps, the settling, and what it refuses."""

from functools import partial
from typing import Any

import keras
import numpy as np
import pytest

from diffstride_hybrid import CropRefresh, DiffStride, MacsBudget, Resnet, macs
from diffstride_hybrid.model_tools.cost_model import CostModel, cost_record, cropping_layers
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.model_tools.settling import settled, stepped, stride_limits

layers = keras.layers
IMAGES = np.random.default_rng(0).normal(size=[12, 16, 16, 1]).astype("float32")
LABELS = np.arange(12) % 3


def network(ramp: float = 1.0, size: int | None = 16, **options: Any) -> keras.Model:
    pooling = partial(DiffStride, smoothness_factor=ramp, **options)
    parts = [layers.Conv2D(4, 3, padding="same"), pooling(1.25), layers.Conv2D(6, 3, padding="same"), layers.ReLU()]
    parts += [pooling(1.5), layers.Conv2D(8, 3, padding="same"), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    model = keras.Sequential([keras.Input((size, size, 1)), *parts])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    return model


def costs_of(model: keras.Model, *shape: int) -> CostModel:
    return CostModel(cropping_layers(model), cost_record(model, shape or None))


class Counts(keras.callbacks.Callback):
    """Notes the MACs at the beginning of each validation, and the scheduled ones."""

    def __init__(self, budget: MacsBudget):
        super().__init__()
        self.budget, self.counts, self.targets = budget, [], []
        self.epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch

    def on_test_begin(self, logs: Any = None) -> None:
        self.counts.append(macs(self.model, (16, 16, 1)).macs)
        self.targets.append(self.budget.macs_target(self.epoch + 1))


def fit(model: keras.Model, budget: MacsBudget, *others: keras.callbacks.Callback, **options: Any) -> Counts:
    counts = Counts(budget)
    options = {"epochs": 4, "batch_size": 6, "verbose": 0, "validation_data": (IMAGES, LABELS), **options}
    model.fit(IMAGES, LABELS, callbacks=[budget, *others, counts], **options)
    return counts


# --- The schedule ----------------------------------------------------------------------------------------------------
def test_the_schedule_is_linear_in_the_logarithm_and_then_constant():
    model, budget = network(), MacsBudget(0.4, epoch=3)
    start = macs(model).macs
    counts = fit(model, budget, epochs=5)
    expected = [start * 0.4 ** min(epochs / 3, 1) for epochs in range(1, 6)]
    assert counts.targets == [round(target) for target in expected]
    assert (budget.macs_target(0), budget.goal, budget.last_epoch) == (start, round(0.4 * start), 3)
    assert counts.counts[2:] == pytest.approx(expected[2:], rel=0.03)
    assert counts.counts[:2] == pytest.approx(expected[:2], rel=0.15)  # No sizes are settled yet.


def test_the_target_is_reached_at_half_of_the_epochs():
    assert [MacsBudget(0.8).last_epoch_of(epochs) for epochs in (1, 3, 4)] == [1, 1, 2]
    fit(network(), budget := MacsBudget(0.8), epochs=2)
    assert budget.last_epoch == 1


def test_a_share_is_of_the_initial_strides_and_not_of_those_at_the_beginning():
    model = network()
    initial = macs(model).macs
    for layer in diffstride_layers(model):
        layer.strides.assign([2.5, 2.5])
    assert macs(model).macs < 0.5 * initial
    budget = MacsBudget(0.6, epoch=2)
    counts = fit(model, budget)  # The cost grows.
    assert budget.goal == round(0.6 * initial)
    assert counts.counts[1:] == pytest.approx([0.6 * initial] * 3, rel=0.03)
    assert counts.counts[0] < counts.counts[1]


def test_a_network_that_is_past_the_schedule_is_let_be_until_the_target_epoch():
    class Shrink(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if not passed:
                passed.append([4.0, 4.0])
                for layer in diffstride_layers(self.model):
                    layer.strides.assign(passed[0])

    passed: list[Any] = []
    model = network()
    model.optimizer.learning_rate = 0.0
    low = fit(model, MacsBudget(0.5, epoch=3), Shrink(), epochs=3).counts
    assert low[0] == low[1] < 0.4 * low[2]


# --- The steps -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("factor", [0.7, 0.9, 1.3])
@pytest.mark.parametrize("options", [{}, {"shared_stride": True}, {"upper_limit_stride": 3.0}])
def test_a_step_goes_along_the_gradient_to_the_wanted_cost(options: dict[str, Any], factor: float):
    model = network(**options)
    strides = [np.full(layer.strides.shape, 1.9, "float32") for layer in diffstride_layers(model)]
    costs = costs_of(model)
    wanted = factor * costs.smooth(strides)
    moved = stepped(costs, strides, stride_limits(costs), wanted)
    assert costs.smooth(moved) == pytest.approx(wanted, rel=1e-5)
    least, most = stride_limits(costs)
    step = np.log(np.concatenate(moved)) - np.log(np.concatenate(strides))
    free = (np.concatenate(moved) > np.concatenate(least)) & (np.concatenate(moved) < np.concatenate(most))
    weights = -step[free] / slopes_of(costs, strides)[free]
    assert free.any()
    assert weights == pytest.approx(np.full(len(weights), weights[0]), rel=5e-3)
    assert np.sign(weights[0]) == np.sign(1 - factor)


def slopes_of(costs: CostModel, strides: list[np.ndarray]) -> np.ndarray:
    """Finite differences of the cost by the logarithms of the strides, one after the other."""
    slopes = []
    for place, component in ((place, i) for place, each in enumerate(strides) for i in range(len(each))):
        ends = []
        for sign in (1, -1):
            moved = [each.astype("float64") for each in strides]
            moved[place][component] *= np.exp(sign * 1e-3)
            ends.append(costs.smooth(moved))
        slopes.append((ends[0] - ends[1]) / 2e-3)
    return np.array(slopes)


def test_strides_that_cost_nothing_are_moved_alike():
    """Beyond the smallest maps no stride changes the cost. A cost that must grow brings them down all the same."""
    model = network()
    costs = costs_of(model)
    limits = stride_limits(costs)
    beyond = [np.full_like(each, 40.0) for each in limits.most]
    least = costs.smooth(beyond)
    moved = stepped(costs, beyond, limits._replace(most=beyond), 2 * least)
    assert costs.smooth(moved) == pytest.approx(2 * least, rel=1e-4)


def test_layers_that_are_not_trained_keep_their_strides():
    model = network()
    first, second = diffstride_layers(model)
    first.trainable = False
    counts = fit(model, MacsBudget(0.7, epoch=1), epochs=2)
    assert first.strides.numpy().tolist() == [1.25, 1.25]
    assert second.strides.numpy().min() > 1.5
    assert counts.counts == pytest.approx(counts.targets, rel=0.03)


# --- The settling ----------------------------------------------------------------------------------------------------
def test_settling_finds_sizes_near_the_wanted_cost_if_there_are_any():
    """On maps of 8 x 8 a size is a quarter less or more, so that there may be none."""
    misses = 0
    for size in (8, 16, 32):
        options = {"num_output_classes": 10, "pooling_cls": partial(DiffStride, smoothness_factor=1.0)}
        model = Resnet([8, 8, 16], [1, 2, 2], **options)
        model.build((None, size, size, 1))
        costs, generator = costs_of(model, size, size, 1), np.random.default_rng(2)
        limits, moved = stride_limits(costs), 0
        for _ in range(20):
            strides = [generator.uniform(1.3, 3.0, 2).astype("float32") for _ in costs.layers]
            wanted = generator.uniform(0.9, 1.1) * costs.whole(strides)
            found = settled(costs, strides, limits, wanted, 0.03)
            moved += any((one != other).any() for one, other in zip(found, strides))
            for one, other, low, high in zip(found, strides, *limits):
                assert ((one == other) | ((one >= low) & (one <= high))).all()
            if abs(costs.whole(found) / wanted - 1) > 0.03:
                misses += 1
                assert size == 8
                assert abs(costs.whole(found) / wanted - 1) <= abs(costs.whole(strides) / wanted - 1)
        assert moved > 5
    assert misses < 6


def test_settling_moves_as_little_as_possible_and_well_into_the_new_size():
    parts = [DiffStride((2.0, 1.9), smoothness_factor=1.0), layers.Conv2D(4, 1)]
    model = keras.Sequential([keras.Input((16, 16, 1)), *parts])
    costs = costs_of(model)
    (strides,) = costs.strides()
    assert costs.whole([strides]) == 4 * 10 * 12
    boundaries = [costs.table(0, axis, (16, 16)).boundaries for axis in (0, 1)]
    # 10 columns in place of 12 cost as much as wanted, and so do 8 rows with 12 columns, nearly: these are farther.
    (found,) = settled(costs, [strides], stride_limits(costs), 4 * 10 * 10, 0.05)
    assert found[0] == strides[0]
    first, second = boundaries[1][boundaries[1] > strides[1]][:2]
    assert found[1] == pytest.approx(min(first * 1.021, np.sqrt(first * second)), rel=1e-6)
    # The widest tolerance needs no move at all.
    (found,) = settled(costs, [strides], stride_limits(costs), 4 * 10 * 10, 0.21)
    assert found.tolist() == strides.tolist()


def test_a_target_between_two_sizes_is_met_as_nearly_as_possible_with_one_warning():
    pooling = DiffStride(1.5, smoothness_factor=1.0, shared_stride=True)
    model = keras.Sequential([keras.Input((8, 8, 1)), pooling, layers.Conv2D(4, 1), layers.GlobalAveragePooling2D()])
    model.compile("sgd", "mse", run_eagerly=True)
    assert macs(model).macs == 8 * 8 * 4
    with pytest.warns(UserWarning, match=r"reached 144 MACs in place of the budget of 190 \(-24\.2%\): maps") as seen:
        model.fit(IMAGES[:, :8, :8], np.zeros([12, 4]), epochs=3, verbose=0, callbacks=[MacsBudget(190)])
    assert len([warning for warning in seen if "budget" in str(warning.message)]) == 1
    assert macs(model).macs == 6 * 6 * 4


def test_a_count_that_contradicts_the_prediction_is_settled_anew(monkeypatch: pytest.MonkeyPatch):
    """As if the layers behind a pooling followed its size in another way than `CostModel` takes for granted."""
    whole = CostModel.whole
    monkeypatch.setattr(CostModel, "whole", lambda self, strides: round(whole(self, strides) ** 1.2 / 5.0))
    model = network()
    fit(model, budget := MacsBudget(0.5 * macs(model).macs, epoch=2))
    assert macs(model).macs == pytest.approx(budget.goal, rel=0.03)


# --- In `fit` --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(partial(keras.optimizers.SGD, 0.1, momentum=0.9), marks=pytest.mark.slow),
        partial(keras.optimizers.Adam, keras.optimizers.schedules.CosineDecay(0.01, 12)),
        partial(keras.optimizers.AdamW, 0.01, use_ema=True, ema_momentum=0.5),
    ],
    ids=["SGD", "Adam", "AdamW"],
)
def test_every_optimizer_ends_at_the_target(optimizer: Any):
    model = network()
    inner = optimizer()
    inner.exclude_from_weight_decay(var_names=["strides"])
    model.compile(inner, model.loss, run_eagerly=True)
    counts = fit(model, MacsBudget(0.5, epoch=2))
    assert counts.counts[1:] == pytest.approx(counts.targets[1:], rel=0.03)
    assert macs(model).macs == pytest.approx(counts.targets[-1], rel=0.03)


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "XLA"])
def test_static_crops_have_the_settled_sizes(jit_compile: bool):
    model = network(static_crop=True)
    model.compile("adam", model.loss, jit_compile=jit_compile)
    counts = fit(model, MacsBudget(0.5, epoch=1), CropRefresh(), epochs=2)
    assert counts.counts == pytest.approx(counts.targets, rel=0.03)
    crops = [layer.crops for layer in diffstride_layers(model)]
    assert macs(model).macs == pytest.approx(counts.targets[-1], rel=0.03)
    assert crops == [layer.crops for layer in diffstride_layers(model)]


def test_a_generator_whose_length_is_not_known_is_settled_at_the_end_of_each_epoch():
    model = network(size=None)
    batches = ((IMAGES[:4], LABELS[:4]) for _ in range(8))
    budget = MacsBudget(0.5, epoch=1, input_shape=(16, 16, 1))
    with pytest.warns(UserWarning, match="ran out of data"):
        model.fit(batches, epochs=1, shuffle=False, verbose=0, callbacks=[budget])
    assert macs(model, (16, 16, 1)).macs == pytest.approx(budget.goal, rel=0.03)


def test_a_training_that_ends_early_is_left_there_with_a_warning():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.stop_training = True

    model = network()
    with pytest.warns(
        UserWarning, match=r"ended after 1 epochs, and the budget of [\d,]+ MACs is for the end of epoch 2"
    ):
        fit(model, MacsBudget(0.4, epoch=2), Stop())


# --- What is refused -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("target", [0, -1, float("nan"), float("inf"), "half", None, True])
def test_a_target_that_is_none_is_refused(target: Any):
    with pytest.raises(ValueError, match=r"^target must be a finite number above 0, got .*: at most 1 for a share"):
        MacsBudget(target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epoch": 0}, "epoch must be a whole number of at least 1, got 0"),
        ({"epoch": 1.5}, "epoch must be a whole number of at least 1, got 1.5"),
        ({"tolerance": 0}, "tolerance must be a number above 0 and below 1, got 0"),
        ({"tolerance": "3 %"}, "tolerance must be a number above 0 and below 1, got '3 %'"),
    ],
)
def test_other_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        MacsBudget(0.5, **arguments)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (MacsBudget(0.5, epoch=5), "must be at least 1 and at most 4, the epochs of this training, got 5"),
        (MacsBudget(0.001), r"cannot be reached: the strides of \w+ give [\d,]+ to [\d,]+ MACs .* 0\.\d+ to 1\.\d+ of"),
        (MacsBudget(1e12), "A budget of 1,000,000,000,000 MACs cannot be reached"),
    ],
)
def test_what_a_training_cannot_reach_is_refused_before_its_first_step(budget: MacsBudget, message: str):
    model = network()
    with pytest.raises(ValueError, match=message) as caught:
        fit(model, budget)
    assert "\n" not in str(caught.value)
    assert model.optimizer.iterations == 0


@pytest.mark.parametrize(
    ("pooling", "found"),
    [
        (layers.AveragePooling2D(2), "has none. Pool"),
        (DiffStride(2.0, trainable=False), "has none that is trainable"),
        (DiffStride(2.0, cropping=False), "has none. Pool"),
    ],
)
def test_a_network_without_strides_to_train_is_refused(pooling: keras.layers.Layer, found: str):
    model = keras.Sequential([keras.Input((16, 16, 1)), pooling, layers.GlobalAveragePooling2D(), layers.Dense(3)])
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=f"needs a DiffStride layer that crops and is trainable; .* {found}"):
        model.fit(IMAGES, np.zeros([12, 3]), verbose=0, callbacks=[MacsBudget(0.5)])
