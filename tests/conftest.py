import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import contextlib
import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from absl import logging

# Two devices in place of one, for the strategies that train on several. Nothing runs on the second unasked.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the files that are marked `long`, so that both processes end at about the same time."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """Spares the collector the millions of objects that importing has left, all of which stay: 7 % of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


@pytest.fixture(autouse=True, scope="session")
def untuned_datasets() -> Iterator[None]:
    """Spares the datasets of Keras and of replicas what `datasets.untuned` spares those of this package."""
    from tensorflow.python.data.ops import dataset_ops

    def untuned(dataset: tf.data.Dataset) -> tf.data.Dataset:
        options = tf.data.Options()
        options.autotune.enabled = False
        return dataset_ops._OptionsDataset(dataset, options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset_ops.DatasetV2, "_apply_debug_options", untuned)  # TensorFlow calls it for each iterator.
        yield


@pytest.fixture(autouse=True)
def fresh_keras() -> Iterator[None]:
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")
    keras.utils.set_random_seed(1)
    yield
    keras.utils.clear_session(free_memory=False)


@pytest.fixture(autouse=True)
def fresh_gin() -> Iterator[None]:
    yield
    if "gin" in sys.modules:
        sys.modules["gin"].clear_config()


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The warnings that are logged, in place of the log."""
    messages: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: messages.append(text % values))
    return messages


@pytest.fixture(scope="session")
def tiny_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data sets of `tiny_datasets.SIZES` are prepared."""
    from support import tiny_datasets

    data_dir = tmp_path_factory.mktemp("tensorflow_datasets")
    for name in tiny_datasets.SIZES:
        tiny_datasets.prepare(name, data_dir)
    return data_dir


@contextlib.contextmanager
def run_steps_eagerly() -> Iterator[None]:
    from diffstride_hybrid.training.loop import TrainingLoop

    with pytest.MonkeyPatch.context() as patch:
        for name in ("_train_steps", "_evaluation_steps"):
            patch.setattr(TrainingLoop, name, vars(TrainingLoop)[name].python_function)
        yield


@pytest.fixture(scope="session")
def eager_steps() -> Callable[[], AbstractContextManager[None]]:
    """A context in which the steps of the training loop run eagerly: for one or two, tracing them takes longer."""
    return run_steps_eagerly


@pytest.fixture
def uncompiled() -> Iterator[None]:
    """Runs the test in the context of `eager_steps`."""
    with run_steps_eagerly():
        yield


@pytest.fixture(scope="session")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `support.interrupted_runs` that nothing came between. Its steps run eagerly."""
    from support.interrupted_runs import trained

    folder = tmp_path_factory.mktemp("left_alone")
    keras.config.set_image_data_format("channels_last")  # Whatever the test before has left.
    with run_steps_eagerly(), contextlib.redirect_stdout(None):
        trained(folder)
    return folder
