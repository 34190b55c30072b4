import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Iterator

import keras
import pytest


def pytest_configure(config: pytest.Config) -> None:
    # Keras calls np.array on TensorFlow variables and bfloat16 tensors, which do not know NumPy 2's copy keyword.
    config.addinivalue_line(
        "filterwarnings", "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    )


@pytest.fixture(autouse=True)
def fresh_keras() -> Iterator[None]:
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")
    keras.utils.set_random_seed(1)
    yield
    keras.utils.clear_session(free_memory=False)
