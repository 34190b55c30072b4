"""The speech experiment: its recordings, its networks and its command."""

import math
import shutil
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags, logging
from absl.testing import flagsaver
from support.command_flags import defined_flags

from diffstride_hybrid import command_line
from diffstride_hybrid.common.files import read_rows
from diffstride_hybrid.model_tools.inspection import diffstride_layers
from diffstride_hybrid.model_tools.macs import macs
from experiments.speech import __main__, network, recordings
from experiments.speech import report as speech_report

LENGTH = 256
NAMES = [f"digits/{i}.wav" for i in range(20, 32)]

TRAIN, TEST = ([name for name in NAMES if recordings.split_of(name) == split] for split in ("train", "test"))


def tone(hertz: float, samples: int, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * hertz * np.arange(samples) / recordings.RATE)


def write_wav(path: Path, samples: np.ndarray, rate: int = recordings.RATE, channels: int = 1, width: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(np.round(samples * (2**15 - 1)).astype("<i2").tobytes())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Two voices that read the same prompts, one higher and louder than the other, and a third name without files."""
    for voice, hertz, level in (("low", 300, 0.1), ("high", 900, 0.9)):
        for i, name in enumerate(NAMES):
            write_wav(tmp_path / "voices" / voice / name, tone(hertz + i, 3 * LENGTH + 9, level))
    (tmp_path / "voices" / "empty").mkdir()
    (tmp_path / "voices" / "notes.txt").write_text("mine")
    return tmp_path / "voices"


@pytest.fixture
def eager() -> Iterator[None]:
    """Tracing takes longer than the one or two steps that a test trains."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


# --- Recordings ------------------------------------------------------------------------------------------------------
def test_a_wav_file_is_read_as_it_was_written(tmp_path: Path):
    samples = tone(440, 500)
    write_wav(tmp_path / "a.wav", samples)
    np.testing.assert_allclose(recordings.read_wav(tmp_path / "a.wav"), samples, atol=2**-14)


def test_windows_follow_each_other_and_the_rest_is_left_out():
    samples = np.random.default_rng(1).normal(scale=0.1, size=3 * LENGTH + 9).astype(np.float32)
    windows = recordings.cut(samples, LENGTH)
    assert windows.shape == (3, LENGTH)
    for window, piece in zip(windows, np.split(samples[: 3 * LENGTH], 3)):
        np.testing.assert_allclose(window, (piece - piece.mean()) / piece.std(), atol=1e-4)


def test_neither_loudness_nor_an_offset_is_left_in_a_window():
    quiet, loud = (
        recordings.cut(tone(440, LENGTH, level) + offset, LENGTH) for level, offset in ((0.05, 0.02), (0.8, 0))
    )
    np.testing.assert_allclose(quiet, loud, atol=1e-5)
    np.testing.assert_allclose(np.square(loud).mean(), 1, atol=1e-5)


def test_silence_is_left_out():
    spoken, hiss = tone(440, LENGTH), np.random.default_rng(1).normal(scale=0.003, size=LENGTH)
    windows = recordings.cut(np.concatenate([hiss, spoken, np.zeros(LENGTH), spoken + 0.2]), LENGTH)
    assert len(windows) == 2
    np.testing.assert_allclose(windows[0], windows[1], atol=1e-5)


@pytest.mark.parametrize("samples", [[], np.zeros(LENGTH), tone(440, LENGTH, 0.009), tone(440, LENGTH - 1)], ids=len)
def test_a_file_that_is_silent_or_short_has_no_windows(samples: Any):
    assert recordings.cut(np.asarray(samples, np.float32), LENGTH).shape == (0, LENGTH)


def test_files_are_split_by_their_names_alone():
    names = [f"prompt-{i}.wav" for i in range(1000)]
    splits = [recordings.split_of(name) for name in names]
    assert set(splits) == {"train", "test"}
    assert 0.16 < splits.count("test") / len(names) < 0.24
    # Fixed, or what was measured could not be measured again.
    assert TEST == ["digits/27.wav", "digits/29.wav"]


def test_all_voices_have_the_same_prompts_in_each_split(source: Path):
    found = recordings.load(source, LENGTH)
    assert found.voices == ["high", "low"]
    for (signals, labels), names in ((found.train, TRAIN), (found.test, TEST)):
        assert signals.shape == (2 * 3 * len(names), LENGTH, 1)
        assert signals.dtype == np.float32
        np.testing.assert_array_equal(labels, np.repeat([0, 1], 3 * len(names)))
        expected = [recordings.cut(recordings.read_wav(source / "low" / name), LENGTH) for name in sorted(names)]
        np.testing.assert_allclose(signals[labels == 1, :, 0], np.concatenate(expected), atol=1e-6)


def test_a_link_to_a_voice_is_no_other_voice(source: Path, tmp_path: Path):
    """Debian's alternatives have one: es leads to es_MX."""
    (source / "alias").symlink_to(source / "low")
    (source / "elsewhere").symlink_to(tmp_path / "elsewhere")
    (source / "also_elsewhere").symlink_to(tmp_path / "elsewhere")
    shutil.copytree(source / "high", tmp_path / "elsewhere")
    assert recordings.load(source, LENGTH).voices == ["also_elsewhere", "high", "low"]


def test_windows_beyond_the_most_are_left_out_evenly(source: Path):
    every, some = (recordings.load(source, LENGTH, {"train": most, "test": 4}) for most in (99, 3))
    assert [len(labels) for _, labels in (some.train, some.test)] == [2 * 3, 2 * 4]
    of_first = every.train[0][every.train[1] == 0]
    np.testing.assert_array_equal(some.train[0][:3], of_first[[0, (len(of_first) - 1) // 2, -1]])


# --- Networks --------------------------------------------------------------------------------------------------------
def test_but_for_the_pooling_the_networks_are_the_same():
    models = []
    for method in network.POOLINGS:
        keras.utils.set_random_seed(1)
        models.append(network.network(method, LENGTH, 3))
    weights = [[weight for weight in model.trainable_weights if "strides" not in weight.path] for model in models]
    for of_others in weights[1:]:
        for weight, other in zip(weights[0], of_others, strict=True):
            np.testing.assert_array_equal(weight, other)
    assert [len(diffstride_layers(model)) for model in models] == [0, 4, 0]


@pytest.mark.parametrize("method", network.POOLINGS)
def test_a_step_reaches_every_weight_and_every_stride(method: str):
    model = network.network(method, LENGTH, 3)
    signals = np.random.default_rng(1).normal(size=(6, LENGTH, 1)).astype(np.float32)
    with tf.GradientTape() as tape:
        probabilities = model(signals, training=True)
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(np.array([0, 1, 2, 0, 1, 2]), probabilities))
    np.testing.assert_allclose(tf.reduce_sum(probabilities, 1), 1, atol=1e-5)
    gradients = tape.gradient(loss, [weight.value for weight in model.trainable_weights])
    for weight, gradient in zip(model.trainable_weights, gradients):
        assert np.all(np.isfinite(gradient)), weight.path
        assert np.any(gradient), weight.path


def test_maps_are_as_long_as_the_poolings_leave_them():
    lengths = {method: network.pooled_lengths(network.network(method, 1024, 3)) for method in network.POOLINGS}
    assert lengths["max"] == lengths["spectral"] == [256, 64, 16, 4]
    model = network.network("diffstride", 1024, 3)
    assert lengths["diffstride"] == [after for _, (_, after) in macs(model).pooling_sizes().values()]


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`:UserWarning")
@pytest.mark.parametrize("method", network.POOLINGS)
def test_a_run_is_told_in_a_row(source: Path, eager: None, method: str):
    found = recordings.load(source, LENGTH, {"train": 6, "test": 4})
    row = network.run(method, 1, found, epochs=1)
    assert (row["method"], row["seed"], row["epochs"]) == (method, 1, 1)
    assert (row["train_windows"], row["test_windows"]) == (12, 8)
    high, low = (float(part.split()[1]) for part in row["test_recalls"].split("; "))
    assert float(row["test_accuracy"]) == pytest.approx((high + low) / 2)
    strides = [float(stride) for stride in row["strides_at_end"].split()]
    lengths = [int(length) for length in row["lengths_at_end"].split()]
    assert (len(strides), len(lengths)) == (4, 4)
    if method == "diffstride":
        assert all(0 < abs(stride - 4) < 0.1 for stride in strides)
    else:
        assert (strides, lengths) == ([4.0] * 4, [64, 16, 4, 2 if method == "spectral" else 1])
    samples = [LENGTH, *lengths]
    convolutions = zip(samples, (1, *network.FILTERS), network.FILTERS, network.KERNELS)
    assert row["macs"] == sum(map(math.prod, convolutions)) + network.FILTERS[-1] * 2
    products = sum(map(math.prod, zip(samples, lengths, network.FILTERS)))
    assert row["pooling_macs"] == (0 if method == "max" else products)


@pytest.mark.filterwarnings("ignore:Even though the `tf.config.experimental_run_functions_eagerly`:UserWarning")
def test_a_seed_gives_the_same_run_again_and_another_seed_another(
    source: Path, eager: None, monkeypatch: pytest.MonkeyPatch
):
    models, make = [], network.network
    monkeypatch.setattr(network, "network", lambda *arguments: models.append(make(*arguments)) or models[-1])
    found = recordings.load(source, LENGTH, {"train": 6, "test": 4})
    for seed in (1, 1, 2):
        network.run("max", seed, found, epochs=1)
    first, again, other = (model.get_weights()[0] for model in models)
    np.testing.assert_allclose(again, first, atol=1e-5)
    assert np.abs(other - first).max() > 0.01


# --- The command -----------------------------------------------------------------------------------------------------

ROW = {"macs": 4_000_000, "pooling_macs": 0, "strides_at_end": "4.000 4.000", "lengths_at_end": "64 16"}
ROW |= {"method": "max", "test_accuracy": "0.90000", "training_seconds": "10.0"}


def test_the_table_has_means_and_deviations_over_the_seeds():
    learned = {**ROW, "method": "diffstride", "pooling_macs": 500_000, "strides_at_end": "3.500 4.250"}
    rows = [ROW, learned, {**ROW, "test_accuracy": "0.92000", "training_seconds": "14.0", "lengths_at_end": "66 18"}]
    assert speech_report.table(rows).splitlines()[2:] == [
        "| `max` | 91.00 ± 1.41 % | 4.0 M | 4.00, 4.00 | 65, 17 | 12 s | 2 |",
        "| `diffstride` | 90.00 % | 4.0 M + 0.5 M | 3.50, 4.25 | 64, 16 | 10 s | 1 |",
    ]


def run_command(**values: Any) -> None:
    verbosity = logging.get_verbosity()
    flags.FLAGS.mark_as_parsed()
    try:
        with defined_flags(__main__.define_flags, command_line.traceback_flag), flagsaver.flagsaver(**values):
            command_line.reporting_errors(__main__.main)(["speech"])
    finally:
        logging.set_verbosity(verbosity)


def test_every_method_runs_with_every_seed_and_the_table_is_of_the_csv_file(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    found = recordings.load(source, LENGTH)
    monkeypatch.setattr(recordings, "load", lambda folder: {source: found}[folder])
    runs = []

    def run(method: str, seed: int, of: recordings.Speech, epochs: int) -> speech_report.Row:
        assert of is found
        runs.append((method, seed, epochs))
        return {**ROW, "method": method, "seed": seed}

    monkeypatch.setattr(network, "run", run)
    run_command(source=str(source), seeds=2, epochs=3, csv=str(tmp_path / "new" / "rows.csv"))
    assert sorted(runs) == sorted((method, seed, 3) for method in network.POOLINGS for seed in (1, 2))
    rows = read_rows(tmp_path / "new" / "rows.csv")
    assert [(row["method"], int(row["seed"])) for row in rows] == [run[:2] for run in runs]
    out = capsys.readouterr().out
    assert out.startswith("2 voices, 60 train and 12 test windows\n")
    assert out.endswith(speech_report.table(rows) + "\n")


def no_folder(source: Path) -> Path:
    return source / "nowhere"


def one_voice(source: Path) -> Path:
    for name in NAMES:
        (source / "low" / name).unlink()
    return source


def not_a_wav(source: Path) -> Path:
    (source / "low" / NAMES[0]).write_bytes(b"RIFF, but not of sound")
    return source


def nothing(source: Path) -> Path:
    (source / "low" / NAMES[0]).write_bytes(b"")
    return source


def of_another_rate(source: Path) -> Path:
    write_wav(source / "low" / NAMES[0], tone(440, 2 * LENGTH), rate=44100, channels=2)
    return source


def of_three_bytes(source: Path) -> Path:
    write_wav(source / "low" / NAMES[0], tone(440, 3 * LENGTH), width=3)
    return source


def without_test_files(source: Path) -> Path:
    for name in TEST:
        (source / "high" / name).unlink()
    return source


@pytest.mark.parametrize(
    ("spoil", "culprits"),
    [
        (no_folder, ["There is no folder", "nowhere", "--source", "apt-get install"]),
        (one_voice, ["voices has wav files of 1 voices", "at least 2", "--source"]),
        (not_a_wav, ["low/digits/20.wav is not a wav file", "mend it or take it away"]),
        (nothing, ["low/digits/20.wav is not a wav file", "mend it or take it away"]),
        (of_another_rate, ["low/digits/20.wav has 2 channels of 16 bits at 44,100 Hz", "1 channel", "8,000 Hz"]),
        (of_three_bytes, ["low/digits/20.wav has 1 channels of 24 bits at 8,000 Hz", "16 bits"]),
        (without_test_files, ["high has no speech of 0.51 s in the 0 files of its test split", "give more"]),
    ],
)
def test_a_mistake_ends_in_one_clear_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, culprits: list[str]
):
    for path in source.rglob("*.wav"):
        write_wav(path, tone(440, recordings.WINDOW))
    with pytest.raises(SystemExit):
        run_command(source=str(spoil(source)), seeds=1, epochs=1, csv=str(tmp_path / "rows.csv"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for culprit in culprits:
        assert culprit in line
    assert not (tmp_path / "rows.csv").exists()
