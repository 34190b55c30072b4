"""What XLA compiles gives the same."""

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import tensorflow as tf
from support.spectral_cases import (
    DATA_FORMATS,
    ENGINES,
    MASKS,
    SIZES,
    STRIDES,
    assert_close,
    every_mask,
    images,
    in_format,
    kept_at,
)

from diffstride_hybrid import spectral
from diffstride_hybrid.backends.xla import needs_static_shapes, xla_einsum


# --- XLA -------------------------------------------------------------------------------------------------------------
def with_gradients(x: tf.Tensor, strides: tf.Tensor, **options: Any) -> list[tf.Tensor]:
    """The pooled map, and the gradients of half its sum of squares to the inputs and the strides."""
    pools = {
        "diffstride": lambda: spectral.diffstride(x, strides, mask=mask, kept=kept, **options),
        "fixed": lambda: spectral.fixed_spectral_pooling(x, STRIDES, **options),
        "spectral": lambda: spectral.spectral_pooling(x, (6, 5), **options),
    }
    name, mask, kept = options.pop("name"), options.pop("mask", None), options.pop("kept", None)
    with tf.GradientTape() as tape:
        tape.watch([x, strides])
        y = pools[name]()
        loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 2) / 2
    return [y, *tape.gradient(loss, [x, strides], unconnected_gradients="zero")]


@pytest.mark.parametrize(
    ("method", "data_format", "dtype"),
    [
        # The transforms of channels_first are those of channels_last between two transpositions.
        pytest.param(
            method,
            data_format,
            tf.float32,
            marks=[pytest.mark.slow] if (method, data_format) == ("fft", "channels_first") else [],
        )
        for method in ENGINES
        for data_format in DATA_FORMATS
    ]
    + [("matmul", "channels_last", tf.bfloat16)],
    ids=lambda value: getattr(value, "name", value),
)
@pytest.mark.parametrize(
    "options",
    [{"name": "diffstride", "mask": mask} for mask in MASKS] + [{"name": "fixed"}, {"name": "spectral"}],
    ids=["released", "symmetric", "fixed", "spectral"],
)
def test_xla_gives_the_same(options: dict[str, Any], method: str, data_format: str, dtype: tf.DType):
    x = tf.cast(in_format(images(SIZES["odd"]), data_format), dtype)
    if "mask" in options:
        options = {**options, "kept": kept_at((2, *SIZES["odd"], 3), STRIDES, mask=options["mask"])}
    options = {**options, "method": method, "data_format": data_format}
    strides = tf.constant(STRIDES, tf.float32)
    compiled = tf.function(partial(with_gradients, **options), jit_compile=True)(x, strides)
    for actual, expected in zip(compiled, with_gradients(x, strides, **options)):
        assert actual.dtype == expected.dtype
        assert_close(
            tf.cast(actual, tf.float32), tf.cast(expected, tf.float32).numpy(), 1e-5 if dtype == tf.float32 else 3e-2
        )


@every_mask
def test_xla_is_asked_for_the_highest_precision(mask: str):
    x, strides = tf.constant(images((12, 12)), tf.float32), tf.constant(STRIDES, tf.float32)
    options = {"name": "diffstride", "mask": mask, "kept": kept_at(x.shape, STRIDES, mask=mask), "method": "matmul"}
    traced = tf.function(partial(with_gradients, **options), jit_compile=True)
    text = traced.experimental_get_compiler_ir(x, strides)(stage="stablehlo")
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert len(products) >= 8
    for line in products:
        assert "precision = [HIGHEST, HIGHEST]" in line or line.count("precision HIGHEST") == 2, line


def test_graphs_for_xla_are_known_at_any_depth():
    seen = {}

    @tf.custom_gradient
    def identity(x: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        seen["custom gradient"] = needs_static_shapes()

        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            seen["backward"] = needs_static_shapes()
            return upstream

        return identity_of(x), gradient

    @tf.function
    def identity_of(x: tf.Tensor) -> tf.Tensor:
        seen["nested"] = needs_static_shapes()
        return tf.identity(x)

    def step(x: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.cond(x > 0, lambda: identity(x), lambda: x)
        return tape.gradient(y, x)

    for jit_compile in (True, False):
        seen.clear()
        identity_of = tf.function(identity_of.python_function)
        tf.function(step, jit_compile=jit_compile)(tf.constant(1.0))
        assert seen == dict.fromkeys(("custom gradient", "nested", "backward"), jit_compile)
    assert not needs_static_shapes()


# --- TensorFlow's internals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("tensorflow.compiler.tf2xla.python.xla", "dot_general"),
        ("tensorflow.compiler.tf2xla.python.xla", "DotDimensionNumbers"),
        ("tensorflow.compiler.tf2xla.python.xla", "PrecisionConfig"),
        ("tensorflow.python.ops.control_flow_util", "GraphOrParentsInXlaContext"),
    ],
)
def test_this_version_of_tensorflow_has_the_internals_that_xla_py_uses(module: str, name: str):
    found = getattr(importlib.import_module(module), name, None)
    assert found is not None, f"TensorFlow {tf.__version__} has no {module}.{name}: backends/xla.py needs another way"


def test_this_version_of_tensorflow_multiplies_as_xla_py_asks_it_to():
    from tensorflow.compiler.tf2xla.python import xla

    needed = ["lhs", "rhs", "dimension_numbers", "precision_config"]
    taken = list(inspect.signature(xla.dot_general).parameters)
    assert taken[:4] == needed, f"dot_general of TensorFlow {tf.__version__} takes {taken}"
    left, right = tf.random.stateless_normal([2, 3, 4], [1, 2]), tf.random.stateless_normal([5, 4], [3, 4])
    product = tf.function(partial(xla_einsum, "bnc,pc->bpn"), jit_compile=True)(left, right)
    expected = tf.einsum("bnc,pc->bpn", left, right)
    assert_close(product, expected.numpy(), 1e-6, f"TensorFlow {tf.__version__}")
