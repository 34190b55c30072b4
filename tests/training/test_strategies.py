"""Choosing where to run."""

import os
import subprocess
import sys
from unittest import mock

import pytest
import tensorflow as tf

from diffstride_hybrid.common import distribution


def test_one_device_is_the_default():
    assert distribution.make_strategy() is tf.distribute.get_strategy()
    strategy = tf.distribute.get_strategy()
    assert distribution.is_chief(strategy)
    assert distribution.worker_count(strategy) == 1
    assert distribution.strategy_name(strategy) == "one_device"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("many",), r"--strategy must be one of 'one_device', .*, got 'many'"),
        (("tpu",), r"--strategy=tpu and --tpu=NAME go together, got --strategy=tpu and --tpu=None"),
        (("mirrored", "local"), r"go together, got --strategy=mirrored and --tpu=local"),
        (("multi_worker",), r"needs the environment variable TF_CONFIG, such as \{"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match=message):
        distribution.make_strategy(*arguments)


@pytest.mark.parametrize(
    "text",
    [
        '{"cluster": ["a:1"], "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": "a:1"}, "task": {"type": "worker", "index": 0}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": -1}}',
        "{",
        "[]",
        "{}",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
    ],
)
def test_a_wrong_tf_config_is_named(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG must look like"):
        distribution.make_strategy("multi_worker")


def test_a_tpu_that_is_not_there_is_named():
    command = [
        sys.executable,
        "-m",
        "diffstride_hybrid.train",
        "--gin_file=digits_hybrid",
        "--strategy=tpu",
        "--tpu=local",
    ]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env={**os.environ, "TPU_SKIP_MDS_QUERY": "1"}
    )
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert [line for line in ended.stderr.splitlines() if line.startswith("error: No TPU 'local' could be reached: ")]


@pytest.mark.parametrize(
    ("capability", "policy"),
    [
        (None, "float32"),
        ((6, 1), "float32"),
        ((7, 5), "mixed_float16"),
        ((8, 0), "mixed_bfloat16"),
        ((9, 0), "mixed_bfloat16"),
    ],
)
def test_the_default_precision_is_what_the_card_has(capability: tuple[int, int] | None, policy: str):
    cards = [] if capability is None else ["GPU:0"]
    with (
        mock.patch.object(tf.config, "list_physical_devices", return_value=cards),
        mock.patch.object(
            tf.config.experimental, "get_device_details", return_value={"compute_capability": capability}
        ),
    ):
        assert distribution.default_dtype_policy(tf.distribute.get_strategy()) == policy


def test_gpus_take_memory_as_they_need_it():
    grown = []
    with (
        mock.patch.object(tf.config, "list_physical_devices", return_value=["GPU:0", "GPU:1"]),
        mock.patch.object(tf.config.experimental, "set_memory_growth", lambda card, grows: grown.append((card, grows))),
    ):
        distribution.make_strategy()
    assert grown == [("GPU:0", True), ("GPU:1", True)]
