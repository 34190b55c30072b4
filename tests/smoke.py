"""Checks in about a minute that the package works with the installed versions, by its public names and commands."""

import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

import diffstride_hybrid as dh

Checks = dict[str, Callable[[], None]]
IMAGE, SIGNAL = (16, 20, 3), (24, 3)
LAYERS = [dh.DiffStride, dh.SpectralPooling, dh.FixedSpectralPooling, dh.SpatialPooling, dh.FusedBatchNormalization]
SHAPES = dict.fromkeys(LAYERS, IMAGE) | {dh.DiffStride1D: SIGNAL, dh.SpectralPooling1D: SIGNAL}


def failures(checks: Checks) -> int:
    """Runs checks in turn, prints how each ended and how long it took, and returns how many failed."""
    failed = 0
    for name, check in checks.items():
        began, error = time.perf_counter(), ""
        try:
            check()
        except Exception:
            error = traceback.format_exc()
            failed += 1
        ending, seconds = "FAILED" if error else "ok", time.perf_counter() - began
        print(f"{ending:<6} {seconds:5.1f} s  {name}\n{error}", end="", flush=True)
    return failed


def check_model(make: Callable[[], keras.Model], shape: tuple[int, ...], policy: str) -> None:
    """Builds a model, takes a gradient step, saves it, loads it, and compares the outputs of both."""
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(0)
    model, inputs = make(), np.random.default_rng(0).normal(size=(4, *shape)).astype("float32")
    model.build((None, *shape))
    weights, before = model.trainable_variables, model.get_weights()
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(tf.cast(model(inputs, training=True), tf.float32)))
    gradients = tape.gradient(loss, [weight.value for weight in weights])
    assert all(gradient is not None for gradient in gradients), "a weight has no gradient"
    keras.optimizers.SGD(0.1).apply(gradients, weights)
    assert any((new != old).any() for new, old in zip(model.get_weights(), before)), "no weight has changed"
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        loaded = keras.saving.load_model(f"{folder}/model.keras")
    expected, outputs = (tf.cast(each(inputs, training=False), tf.float32).numpy() for each in (model, loaded))
    np.testing.assert_array_equal(outputs, expected)
    assert np.isfinite(outputs).all(), "an output is not finite"


def check_surgery() -> None:
    convolution = keras.layers.Conv2D(4, 3, strides=2, padding="same")
    model = keras.Sequential([keras.Input((32, 32, 3)), convolution, keras.layers.MaxPooling2D(2)])
    replaced = dh.replace_downsampling(model)
    assert sum(isinstance(layer, dh.DiffStride) for layer in replaced.layers) == 2, replaced.layers
    assert dh.macs(replaced).macs > dh.macs(model).macs == 16 * 16 * 3 * 3 * 3 * 4


def check_command(says: str, command: str, *arguments: str) -> None:
    """Runs a command of the package, whose output has to match a pattern."""
    words = [sys.executable, "-m", f"diffstride_hybrid.{command}", *arguments]
    result = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert result.returncode == 0 and re.search(says, result.stdout), result.stdout


def prepare_fashion_mnist(folder: str) -> None:
    """Prepares a few random images as TensorFlow Datasets prepares the images that it downloads."""
    random, registered = np.random.default_rng(0), tfds.builder_cls("fashion_mnist")
    images = [{"image": random.integers(0, 256, (28, 28, 1), "uint8"), "label": i % 10} for i in range(80)]
    splits = {"train": enumerate(images[:64]), "test": enumerate(images[64:])}
    members = {"name": "fashion_mnist", "_split_generators": lambda builder, manager: splits}
    tfds.disable_progress_bar()
    with tfds.core.registered.skip_registration():
        type("FashionMNIST", (registered,), members)(data_dir=folder).download_and_prepare()


def draw_cifar(folder: str) -> None:
    """Draws two images of each class of CIFAR-10 for training and one for testing, as public copies have them."""
    random = np.random.default_rng(0)
    for split, count in (("train", 2), ("test", 1)):
        for name in ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]:
            os.makedirs(f"{folder}/{split}/{name}")
            for i in range(count):
                Image.fromarray(random.integers(0, 256, (32, 32, 3), "uint8")).save(f"{folder}/{split}/{name}/{i}.png")


def checks_of_layers() -> Checks:
    checks: Checks = {"replace_downsampling and macs": check_surgery}
    for policy in ("float32", "mixed_bfloat16"):
        for layer, shape in SHAPES.items():
            convolution = keras.layers.Conv1D if shape == SIGNAL else keras.layers.Conv2D
            model = partial(lambda *layers: keras.Sequential([layers[0](4, 3), layers[1]()]), convolution, layer)
            checks[f"{layer.__name__}, {policy}"] = partial(check_model, model, shape, policy)
        resnet = partial(dh.resnet18, width=2, num_output_classes=10, pooling_cls=dh.DiffStride)
        checks[f"resnet18, {policy}"] = partial(check_model, resnet, IMAGE, policy)
    return checks


def checks_of_commands(folder: str) -> Checks:
    bindings = ["train.train.num_epochs = 1", "resnet.resnet18.width = 2", "data.load_datasets.batch_size = 32"]
    small = [f"--gin_bindings={binding}" for binding in bindings]
    fashion = ["--gin_file=base", "--gin_bindings=data.load_datasets.name = 'fashion_mnist'", f"--data_dir={folder}"]
    run, image, exported = f"--workdir={folder}/digits", f"{folder}/digit.png", f"--output={folder}/exported"
    Image.fromarray(np.arange(64, dtype="uint8").reshape(8, 8)).save(image)
    draw_cifar(cifar := f"{folder}/cifar")
    prepared = ("prepare", "--name=cifar10", f"--source={cifar}", f"--data_dir={folder}")
    own = ["--gin_file=base", f"--gin_bindings=data.load_datasets.name = '{cifar}'", f"--workdir={folder}/own", *small]
    commands = {
        "train on the digits": ("files are in", "train", "--gin_file=digits_hybrid", run, *small),
        "evaluate": ("test accuracy", "evaluate", run),
        "predict": (r"digit\.png: \d \d", "predict", run, image),
        "export to a SavedModel": ("saved", "export", run, "--format=saved_model", exported),
        "prepare CIFAR-10 from PNG files": ("20 train, 10 test", *prepared),
        "train on own images": ("files are in", "train", *own, "--gin_bindings=data.load_datasets.batch_size = 6"),
        "predict own images": (
            "accuracy .* of 10 images",
            "predict",
            f"--workdir={folder}/own",
            "--recursive",
            cifar + "/test",
        ),
        "train on Fashion-MNIST": ("files are in", "train", *fashion, f"--workdir={folder}/fashion", *small),
    }
    return {name: partial(check_command, *command) for name, command in commands.items()}


if __name__ == "__main__":
    # An error if the package calls a deprecated function. It cannot mend what its dependencies call.
    warnings.filterwarnings("error", category=DeprecationWarning, module="diffstride_hybrid")
    packages = ("tensorflow", "keras", "numpy", "tensorflow-datasets", "diffstride_hybrid")
    print(", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in packages)]))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as pool:
        prepare_fashion_mnist(folder)
        # At once, as CI has two processors.
        sys.exit(any(list(pool.map(failures, [checks_of_layers(), checks_of_commands(folder)]))))
