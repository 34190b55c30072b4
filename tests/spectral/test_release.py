"""The functions give the numbers of the released code."""

import json

import numpy as np
import pytest
import tensorflow as tf
from support.paths import REFERENCE
from support.spectral_cases import assert_close, every_engine

import diffstride_hybrid

RELEASE = np.load(REFERENCE / "reference_layers.npz")

RELEASE_CASES = {case["key"]: case for case in json.loads(bytes(RELEASE["meta"]))}


# --- Against the released code ---------------------------------------------------------------------------------------
@every_engine
@pytest.mark.parametrize("key", RELEASE_CASES)
def test_layers_match_the_released_code(key: str, method: str):
    case = RELEASE_CASES[key]
    options = {} if case["layer"] == "SpatialPooling" else {"method": method}
    layer = getattr(diffstride_hybrid, case["layer"])(**case["config"], **options)
    x = tf.constant(RELEASE[f"{key}/x"])
    layer.build(x.shape)
    if case["layer"] == "DiffStride":
        layer.strides.assign(RELEASE[f"{key}/strides"])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    sources = [x, *(weight.value for weight in layer.trainable_weights)]
    gradients = tape.gradient(y, sources, output_gradients=tf.constant(RELEASE[f"{key}/g"]))

    assert y.shape == case["output_shape"]
    assert_close(y, RELEASE[f"{key}/y"], 1e-5)
    assert_close(gradients[0], RELEASE[f"{key}/dx"], 1e-5)
    assert (f"{key}/dstrides" in RELEASE) == (len(gradients) == 2) == (case["layer"] == "DiffStride")
    if len(gradients) == 2:
        assert_close(gradients[1], RELEASE[f"{key}/dstrides"], 1e-5)


def test_the_recorded_cases_are_all_there():
    assert {case["layer"] for case in RELEASE_CASES.values()} == {
        "DiffStride",
        "FixedSpectralPooling",
        "SpatialPooling",
    }
    assert len(RELEASE_CASES) == 15
