"""`audit` as a user calls it: what it repeats, what it refuses, what it writes."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from support.layer_cases import CASES, SHAPE

from diffstride_hybrid import SpatialPooling, SpectralPooling, SpectralResizing, audit
from diffstride_hybrid.audit.auditing import PASSES
from diffstride_hybrid.audit.poolings import audit_poolings
from diffstride_hybrid.audit.report import Audit, figure_of, markdown_of

random = np.random.default_rng(0)
COLORS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [120, 120, 120]])
LABELS = random.integers(0, 4, 40)
IMAGES = np.clip(COLORS[LABELS][:, None, None] + random.normal(0, 70, (40, 16, 16, 3)), 0, 255).astype(int)
"""Noise in the color of a class."""


def classifier(*, activation: str | None = "softmax", inputs: tuple[int | None, ...] = (16, 16, 3)) -> keras.Model:
    """Tells colors apart at the brightest place of each map, and so depends on what shifts and corruptions change."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input(inputs),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(8, 3, padding="same", activation="relu"),
            SpectralPooling(2.0, norm="forward", name="spectral"),
            keras.layers.MaxPooling2D(2, name="max"),
            keras.layers.GlobalMaxPooling2D(),
            keras.layers.Dense(4, activation=activation),
        ]
    )
    features = keras.Model(model.inputs, model.layers[-2].output).predict(IMAGES.astype("float32"), verbose=0)
    columns = np.concatenate([features, np.ones((40, 1))], 1)
    solution = np.linalg.lstsq(columns, 5 * np.eye(4)[LABELS], rcond=None)[0]
    model.layers[-1].kernel.assign(solution[:-1])
    model.layers[-1].bias.assign(solution[-1])
    return model


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return classifier()


@pytest.fixture(scope="module")
def audited(model: keras.Model) -> Audit:
    return audit(model, IMAGES, LABELS)


def test_the_model_of_these_tests_can_show_a_difference(audited: Audit):
    """Figures that are all 0 or 1 would be equal whatever the code did."""
    results = audited
    assert results.accuracy > 0.6
    shares = [*results.consistency.values(), results.worst_case_consistency, *results.attacks.values()]
    shares += [share for by_level in results.corruptions.values() for share in by_level]
    assert sum(0 < share < 1 for share in shares) > len(shares) / 2
    assert len(set(shares)) > 8


def same_anywhere(results) -> dict:
    chosen = {"milliseconds", "peak_megabytes", "seed", "batch_size"}
    return {name: value for name, value in dataclasses.asdict(results).items() if name not in chosen}


def test_two_audits_agree_to_the_bit_whatever_the_batch_size(model: keras.Model, audited: Audit):
    first = same_anywhere(audited)
    assert same_anywhere(audit(model, IMAGES, LABELS)) == first
    for name, value in same_anywhere(audit(model, IMAGES, LABELS, batch_size=7)).items():
        assert first[name] == value, name
    assert same_anywhere(audit(model, IMAGES, LABELS, seed=1)) != first


def test_every_pass_is_announced(model: keras.Model):
    passes = []
    audit(model, IMAGES[:2], progress=passes.append)
    assert sum(passes) == PASSES


def test_value_ranges_and_preprocessing_give_the_same_pixels(model: keras.Model, audited: Audit):
    """A model of pixels from 0 to 255, the same images from 0 to 1, and from -1 to 1."""
    scaled = audit(model, IMAGES / 255, LABELS, value_range=(0, 1), preprocess=lambda x: 255 * x)
    centered = audit(model, IMAGES / 127.5 - 1, LABELS, value_range=(-1, 1), preprocess=lambda x: 127.5 * (x + 1))
    as_in_keras = audit(model, IMAGES.astype("uint8").tolist(), LABELS[:, None].astype("uint8"))
    for other in (scaled, centered, as_in_keras):
        assert other.accuracy == audited.accuracy
        assert other.consistency == audited.consistency
        assert other.attacks == audited.attacks
        assert other.poolings[0].energy_kept == pytest.approx(audited.poolings[0].energy_kept, abs=1e-4)


def test_channels_first_gives_the_same_figures():
    """Its layers are those that TensorFlow computes on a CPU in both formats."""

    def network(data_format: str) -> keras.Model:
        first = data_format == "channels_first"
        layers = [
            keras.Input((3, 16, 12) if first else (16, 12, 3)),
            SpectralPooling(2.0, data_format=data_format),
            keras.layers.GlobalMaxPooling2D(data_format=data_format),
            keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotNormal(5)),
        ]
        return keras.Sequential(layers)

    images = IMAGES[:, :, :12]
    last = audit(network("channels_last"), images, data_format="channels_last")
    first = audit(network("channels_first"), np.moveaxis(images, -1, 1), data_format="channels_first")
    assert first.consistency == last.consistency and first.attacks == last.attacks
    assert first.image_shape == last.image_shape == (16, 12, 3)
    assert first.poolings[0].energy_kept == pytest.approx(last.poolings[0].energy_kept)


def channels_moved(moves: Callable[[Any], Any]) -> keras.Model:
    """Takes images with the channels last, and computes with the channels first, as a `Resnet` may."""
    images = keras.Input((16, 12, 3))
    maps = SpectralPooling(2.0, data_format="channels_first")(moves(images))
    maps = keras.layers.GlobalMaxPooling2D(data_format="channels_first")(maps)
    return keras.Model(images, keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotNormal(5))(maps))


@pytest.mark.parametrize(
    "moves", [keras.layers.Permute((3, 1, 2)), lambda images: keras.ops.transpose(images, (0, 3, 1, 2))]
)
def test_the_images_may_have_another_layout_than_the_layers(moves: Callable[[Any], Any]):
    head = keras.layers.Dense(3, kernel_initializer=keras.initializers.GlorotNormal(5))
    layers = [SpectralPooling(2.0), keras.layers.GlobalMaxPooling2D(), head]
    images = IMAGES[:, :, :12]
    last = audit(keras.Sequential([keras.Input((16, 12, 3)), *layers]), images)
    moved = audit(channels_moved(moves), images)
    assert moved.consistency == last.consistency and moved.attacks == last.attacks
    assert moved.image_shape == (16, 12, 3)
    with pytest.raises(ValueError, match="takes images with the channels last: give audit such images"):
        audit(channels_moved(moves), images, data_format="channels_first")


def test_a_model_of_any_size_and_a_subclassed_model_are_audited():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = classifier(activation=None, inputs=(None, None, 3))

        def call(self, inputs):
            return self.inner(inputs)

    own = Own()
    own.build((None, 16, 16, 3))
    results = audit(own, IMAGES, LABELS.tolist())
    assert [pooling.kind for pooling in results.poolings] == ["SpectralPooling", "MaxPooling2D"]
    assert results.macs > 0


TWO_INPUTS = [keras.Input((16, 16, 3), name="left"), keras.Input((16, 16, 3), name="right")]


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"labels": np.full(40, 4)}, r"labels must be from 0 to 3, as the model has 4 classes, got 4 to 4"),
        ({"labels": np.full(40, -1)}, "labels must be from 0 to 3"),
        ({"labels": LABELS[:3]}, "an integer for each of the 40 images"),
        ({"labels": np.eye(4)[LABELS]}, r"got float64 of shape \(40, 4\): of .* give labels.argmax\(-1\)\.$"),
        ({"images": IMAGES[:, :15]}, r"takes images of shape \(16, 16, 3\), got shape \(15, 16, 3\)"),
        ({"images": IMAGES[0]}, r"must be numbers of shape \(number, height, width, channels\), got int64 of"),
        ({"images": IMAGES[:0]}, r"must be numbers of shape \(number, height, width, channels\)"),
        ({"images": IMAGES.astype(str)}, r"must be numbers of shape \(number, height, width, channels\), got <U"),
        ({"images": IMAGES / 255}, r"give value_range=\(0, 1\)"),
        ({"images": IMAGES - 128}, "images must have values from 0 to 255, got -128 to"),
        ({"images": IMAGES * np.nan}, "images must have values from 0 to 255, got nan"),
        *(
            ({"value_range": wrong}, "value_range must be the values of black and white, such as")
            for wrong in ((1, 0), None, (0, 1, 2), 255, (-np.inf, np.inf), (0, np.nan))
        ),
        ({"seed": -1}, "seed"),
        ({"batch_size": 0}, "batch_size"),
        ({"data_format": "nhwc"}, "data_format"),
        ({"preprocess": keras.ops.stop_gradient}, "cannot be computed: no gradient reaches the images"),
        ({"preprocess": lambda x: 0 * x}, "is zero: the model and preprocess must be differentiable"),
        ({"preprocess": lambda x: np.asarray(x) + 0.0}, "The model and preprocess must compute with tensors"),
        (
            {"preprocess": lambda x: x[:, ::2]},
            r"takes images of shape \(16, 16, 3\), got shape \(8, .* after preprocess",
        ),
        ({"data_format": "channels_first"}, "takes images with the channels last: give audit such images"),
        ({"model": keras.Model(TWO_INPUTS, keras.layers.Add()(TWO_INPUTS))}, "functional.* has 2 inputs"),
        (
            {"model": keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Conv2D(4, 3)])},
            r"whose outputs have the shape \(batch, classes\)",
        ),
        (
            {"model": keras.Sequential([keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])},
            r"two classes or more; those of .* are \(40, 1\)",
        ),
    ],
)
def test_mistakes_are_named(model: keras.Model, changed: dict, message: str):
    with pytest.raises(ValueError, match=message):
        audit(**{"model": model, "images": IMAGES, "labels": LABELS} | changed)


class Batches(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return IMAGES, LABELS


DATASET = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(16)


@pytest.mark.parametrize(
    ("changed", "name"), [({"images": DATASET}, "images"), ({"labels": DATASET}, "labels"), ({"images": Batches()}, "")]
)
def test_a_data_set_in_place_of_arrays_is_named_with_the_cure(model: keras.Model, changed: dict, name: str):
    (given,) = (type(value).__name__ for value in changed.values())
    with pytest.raises(TypeError, match=f"{name} must be an array, got {given}: gather ") as caught:
        audit(**{"model": model, "images": IMAGES, "labels": LABELS} | changed)
    cure = "images, labels = map(np.concatenate, zip(*dataset))"
    assert str(caught.value).endswith(f"{cure}.")
    gathered = {"np": np, "dataset": DATASET}
    exec(cure, gathered)
    np.testing.assert_array_equal(gathered["images"], IMAGES)
    np.testing.assert_array_equal(gathered["labels"], LABELS)


def test_outputs_that_are_not_finite_are_named():
    broken = classifier()
    broken.layers[-1].bias.assign([0, np.nan, 0, 0])
    with pytest.raises(ValueError, match=r"outputs of .* are not finite"):
        audit(broken, IMAGES)


def test_a_model_that_draws_by_chance_is_named():
    class Noisy(keras.layers.Layer):
        def call(self, inputs):
            return inputs + keras.random.normal(keras.ops.shape(inputs))

    layers = [keras.Input((16, 16, 3)), keras.layers.GlobalAveragePooling2D(), Noisy()]
    with pytest.raises(ValueError, match="gives other outputs for the same images: it draws by chance"):
        audit(keras.Sequential(layers), IMAGES)


def test_an_object_that_is_no_model_is_named():
    with pytest.raises(TypeError, match=r"audit takes a keras.Model, got function"):
        audit(lambda x: x, IMAGES)


def test_an_audit_leaves_the_model_as_it_was():
    before = classifier()
    outputs = before.predict(IMAGES.astype("float32"), verbose=0)
    audit(before, IMAGES)
    assert np.array_equal(before.predict(IMAGES.astype("float32"), verbose=0), outputs)
    assert all("call" not in vars(layer) for layer in before.layers)
    assert before.layers[-1].activation is keras.activations.softmax


def test_a_model_that_compiles_itself_is_audited_like_its_layers():
    class Compiled(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = classifier()
            self.compiled_call = tf.function(self.inner)

        def call(self, inputs):
            return self.compiled_call(inputs)

    own = Compiled()
    own.build((None, 16, 16, 3))
    found, expected = audit(own, IMAGES), audit(own.inner, IMAGES)
    assert (found.macs, found.consistency) == (expected.macs, expected.consistency)
    assert [pooling[2:4] for pooling in found.poolings] == [pooling[2:4] for pooling in expected.poolings]
    assert all("call" not in vars(layer) for layer in own.inner.layers)


@pytest.mark.parametrize("policy", ["float64", "mixed_bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_every_pooling_of_this_package_is_measured(name: str, policy: str):
    layer = CASES[name].layer(dtype=policy)
    model = keras.Sequential([keras.Input(SHAPE[1:]), layer, keras.layers.GlobalMaxPooling2D(dtype=policy)])
    maps = random.normal(size=(16, *SHAPE[1:])).astype("float32")
    found = audit_poolings(model, maps, seed=0)
    if isinstance(layer, SpectralResizing):
        assert found == []
        return
    (pooling,) = found
    assert (pooling.layer, pooling.size_after) == (layer.name, CASES[name].pooled)
    assert 0 <= pooling.energy_kept <= 1 and pooling.shift_error >= 0
    if isinstance(layer, SpatialPooling):
        assert pooling.aliased > 0.1
    else:
        assert pooling.aliased < (1e-4 if "16" in policy else 1e-10)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_is_audited(policy: str):
    layers = [SpectralPooling(2.0, dtype=policy), keras.layers.GlobalMaxPooling2D(dtype=policy)]
    model = keras.Sequential([keras.Input((16, 16, 3)), *layers, keras.layers.Dense(4, dtype=policy)])
    (pooling,) = audit(model, IMAGES).poolings
    assert pooling.aliased < 1e-3 and 0.2 < pooling.energy_kept < 0.5


def test_one_image_is_audited(model: keras.Model):
    results = audit(model, IMAGES[:1], LABELS[:1])
    assert results.accuracy in (0, 1)
    assert [pooling.energy_kept for pooling in results.poolings] == [None, None]  # Of too few maps.
    assert "| 16x16 | 8x8 |  |" in results.to_markdown()
    figure_of(json.loads(results.to_json()))


def test_the_report_has_every_figure(model: keras.Model, audited: Audit):
    results = audited
    values = json.loads(results.to_json())
    assert values["poolings"][0]["layer"] == "spectral" and values["seed"] == 0
    text = markdown_of(values)
    assert text == results.to_markdown()
    assert f"| accuracy | {100 * results.accuracy:.2f} % |" in text
    assert "| `max` | MaxPooling2D | 8x8 | 4x4 |" in text
    assert "keeps its class" not in text
    unlabeled = audit(model, IMAGES)
    assert "share that keeps its class under FGSM" in unlabeled.to_markdown()
    assert "| accuracy" not in unlabeled.to_markdown()
    for each in (results, unlabeled):
        assert len(figure_of(json.loads(each.to_json())).axes) == 3
    assert results.mean_corruption_accuracy == pytest.approx(np.mean(list(results.corruptions.values())))
    assert results.mean_consistency == pytest.approx(np.mean(list(results.consistency.values())))
    assert results.mean_aliased == pytest.approx(np.mean([pooling.aliased for pooling in results.poolings]))


def test_a_network_without_poolings_has_none():
    layers = [keras.Input((16, 16, 3)), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)]
    results = audit(keras.Sequential(layers), IMAGES)
    assert results.poolings == [] and results.mean_aliased is None
    assert "layer | class" not in results.to_markdown()
    figure_of(json.loads(results.to_json()))
