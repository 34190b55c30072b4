"""Saves models on one backend, or loads those of all backends and compares.

`python -m support.exchange save FOLDER`, `python -m support.exchange load FOLDER`.
"""

import sys
from pathlib import Path

import keras
import numpy as np

from diffstride_hybrid import DiffStride, FixedSpectralPooling, Resnet, SpectralPooling, SpectralResizing

layers = keras.layers


def model() -> keras.Model:
    """All kinds of layers that pool, with strides unlike those that a new layer has."""
    inputs = keras.Input((20, 24, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = layers.MaxPooling2D(2, strides=1, padding="same")(x)  # What stays of a max pooling when it is swapped.
    x = DiffStride(1.7, smoothness_factor=1.0, mask="symmetric", norm="forward", static_crop=True, name="static")(x)
    x = layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same")(x))
    x = DiffStride(2.0, smoothness_factor=2.0, norm="forward", name="learned")(x)
    up = SpectralResizing()(x, like=inputs)
    pooled = FixedSpectralPooling((1.5, 2.0), norm="forward")(up)
    outputs = layers.Dense(5)(layers.GlobalAveragePooling2D()(SpectralPooling(2.0, norm="forward")(pooled)))
    made = keras.Model(inputs, [outputs, up])
    made.get_layer("learned").strides.assign([2.3, 3.1])
    return made


def resnet() -> keras.Model:
    made = Resnet([4, 8], [1, 2], 5, num_layers=1, pooling_cls=DiffStride, head_pooling_cls=SpectralPooling)
    made.build((None, 16, 16, 3))
    return made


MODELS = {"model": model, "resnet": resnet}


def images(size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(2, *size, 3)).astype("float32")


def outputs_of(made: keras.Model, name: str) -> list[np.ndarray]:
    outputs = made(images((20, 24) if name == "model" else (16, 16)), training=False)
    return [keras.ops.convert_to_numpy(each) for each in keras.tree.flatten(outputs)]


def save(folder: Path) -> None:
    for name, make in MODELS.items():
        made = make()
        outputs = outputs_of(made, name)
        made.save(folder / f"{name}_{keras.backend.backend()}.keras")
        np.savez(folder / f"{name}_{keras.backend.backend()}.npz", *outputs)


def load(folder: Path) -> int:
    files = sorted(folder.glob("*.keras"))
    for file in files:
        made = keras.saving.load_model(file)
        expected = np.load(file.with_suffix(".npz"))
        for actual, key in zip(outputs_of(made, file.stem.partition("_")[0]), expected.files, strict=True):
            atol = 1e-5 * np.abs(expected[key]).max()
            np.testing.assert_allclose(actual, expected[key], rtol=0, atol=atol, err_msg=file.name)
    return len(files)


if __name__ == "__main__":
    if sys.argv[1] == "save":
        save(Path(sys.argv[2]))
    else:
        print(f"{load(Path(sys.argv[2]))} files agree")
