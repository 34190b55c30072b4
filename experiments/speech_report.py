"""Voices told apart in recorded speech: one small network for signals, trained with three poolings.

The recordings are the prompts of a telephone system, read in five languages, as wav files of 8 kHz in Debian's packages
asterisk-core-sounds-*-wav. A voice is a folder, which is one language and one speaker: telling voices apart is as much
to know the speaker and the recording as the language. English and Spanish are read by the same speaker, going by the
names of their folders.

The network sees half a second of the waveform, brought to mean 0 and mean square 1, so that no voice is known by how
loud it is recorded. A prompt of one name is in the training or in the test windows of all voices. Everything but the
pooling is the same for the three methods, and nothing was tuned for any of them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import pathlib
import statistics
import time
import wave
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from diffstride_hybrid import DiffStride1D, SpectralPooling1D, complexity
from diffstride_hybrid.callbacks import CropRefresh

RESULTS = pathlib.Path(__file__).parent / "results" / "speech.csv"

RATE = 8000
WINDOW = 4096
MOST_WINDOWS = {"train": 1600, "test": 400}
"""Of one voice. It bounds the training time and gives all voices the same share."""

LEAST_PEAK, LEAST_LEVEL = 0.01, 0.05
"""Of a file, against full scale, and of a window's root mean square, against the file's peak. Below, nobody speaks."""

BATCH, LEARNING_RATE = 64, 0.002
FILTERS, KERNELS, STRIDE = (8, 16, 32, 64, 64), (32, 8, 8, 8, 8), 4
PACKAGES = ("diffstride_hybrid", "tensorflow", "keras", "numpy")

POOLINGS: dict[str, Callable[..., keras.layers.Layer]] = {
    "max": lambda **name: keras.layers.MaxPooling1D(STRIDE, **name),
    "diffstride": lambda **name: DiffStride1D(STRIDE, mask="symmetric", norm="forward", **name),
    "spectral": lambda **name: SpectralPooling1D(STRIDE, norm="forward", **name),
}

Row = Mapping[str, Any]


class Speech(NamedTuple):
    """What there is to learn.

    Attributes:
        voices: names of the folders.
        train: windows to train on, float32 of shape (windows, samples, 1), and the number of each one's voice.
        test: likewise, of other prompts.
    """

    voices: list[str]
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def load(source: pathlib.Path, length: int = WINDOW, most: Mapping[str, int] = MOST_WINDOWS) -> Speech:
    """Reads all voices.

    Args:
        source: folder with a folder of wav files for each voice.
        length: samples of a window.
        most: windows of one voice at most, for 'train' and 'test'. Where there are more, they are taken at even
            distances from all of them, in the order of the files' names.

    Returns:
        The windows of both splits.

    Raises:
        ValueError: there are fewer than two voices, a file cannot be read, or a split of a voice is empty.
        OSError: the folder is not there.
    """
    needed = "--source must have a folder of wav files for each voice"
    if not source.is_dir():
        raise FileNotFoundError(
            f"There is no folder {source}: {needed}. On Debian: apt-get install "
            "asterisk-core-sounds-{en,es,fr,it,ru}-wav, then --source=/usr/share/asterisk/sounds."
        )
    files = {path: sorted(path.rglob("*.wav")) for path in sorted(source.iterdir()) if path.is_dir()}
    files = {folder: found for folder, found in files.items() if found}
    if len(files) < 2:
        raise ValueError(f"{source} has wav files of {len(files)} voices, at least 2 are needed: {needed}.")
    signals: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for folder, found in files.items():
        for split, chosen in signals.items():
            of_split = [path for path in found if split_of(path.relative_to(folder).as_posix()) == split]
            windows = np.concatenate([np.zeros([0, length]), *(cut(read_wav(path), length) for path in of_split)])
            if not len(windows):
                raise ValueError(
                    f"{folder} has no speech of {length / RATE:.2f} s in the {len(of_split)} files of its {split} "
                    "split: give more files, or longer ones."
                )
            evenly = np.linspace(0, len(windows) - 1, min(len(windows), most[split])).astype(int)
            chosen.append(windows[evenly, :, None].astype(np.float32))
    labels = {split: np.repeat(range(len(files)), [len(part) for part in parts]) for split, parts in signals.items()}
    return Speech([folder.name for folder in files], *((np.concatenate(signals[s]), labels[s]) for s in signals))


def split_of(name: str) -> str:
    """'test' for every fifth file or so, 'train' for the others, by the file's name alone."""
    return "train" if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 5 else "test"


def read_wav(path: pathlib.Path) -> np.ndarray:
    """The samples of a wav file, between -1 and 1; raises ValueError where it is not what this script can read."""
    try:
        with wave.open(str(path), "rb") as file:
            form = file.getnchannels(), 8 * file.getsampwidth(), file.getframerate()
            samples = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} is not a wav file that can be read ({error}): mend it or take it away.") from error
    if form != (1, 16, RATE):
        raise ValueError(
            f"{path} has {form[0]} channels of {form[1]} bits at {form[2]:,} Hz: convert it to 1 channel of 16 bits at "
            f"{RATE:,} Hz, or take it away."
        )
    return np.frombuffer(samples[: len(samples) // 2 * 2], "<i2").astype(np.float32) / 2**15


def cut(samples: np.ndarray, length: int) -> np.ndarray:
    """The windows of a recording in which somebody speaks, (windows, length), each of mean 0 and mean square 1."""
    windows = samples[: len(samples) // length * length].reshape(-1, length)
    peak = np.abs(samples).max(initial=0.0)
    windows = windows - windows.mean(1, keepdims=True)
    level = np.sqrt(np.square(windows).mean(1, keepdims=True))
    spoken = level[:, 0] > (LEAST_LEVEL * peak if peak > LEAST_PEAK else np.inf)
    return windows[spoken] / level[spoken]


def network(method: str, length: int, voices: int) -> keras.Model:
    """Five convolutions with a pooling between each two, which is to leave a quarter of the samples.

    There is none behind the last: the average over the time would undo what a stride does, and leave it no gradient.
    """
    layers: list[Any] = [keras.Input((length, 1))]
    for i, (filters, kernel) in enumerate(zip(FILTERS, KERNELS)):
        layers += [POOLINGS[method](name=f"pooling_{i}")] if i else []
        layers.append(keras.layers.Conv1D(filters, kernel, padding="same", use_bias=False))
        layers += [keras.layers.BatchNormalization(), keras.layers.ReLU()]
    layers += [keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(voices, activation="softmax")]
    return keras.Sequential(layers)


def run(method: str, seed: int, speech: Speech, epochs: int) -> Row:
    """Trains and tests one network; returns its row of the CSV file."""
    (train, train_labels), (test, test_labels) = speech.train, speech.test
    keras.utils.set_random_seed(seed)
    model = network(method, train.shape[1], len(speech.voices))
    rate = keras.optimizers.schedules.CosineDecay(LEARNING_RATE, epochs * -(-len(train) // BATCH))
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    start = time.perf_counter()
    model.fit(train, train_labels, batch_size=BATCH, epochs=epochs, verbose=0, callbacks=[CropRefresh()])
    seconds = time.perf_counter() - start
    right = model.predict(test, BATCH, verbose=0).argmax(1) == test_labels
    recalls = [right[test_labels == i].mean() for i in range(len(speech.voices))]
    cost = complexity.macs(model)
    strides = [stride for (stride,) in complexity.strides_by_path(model).values()] or [STRIDE] * len(FILTERS[1:])
    return {
        "method": method,
        "seed": seed,
        "test_accuracy": f"{right.mean():.5f}",
        "test_recalls": "; ".join(f"{voice} {recall:.4f}" for voice, recall in zip(speech.voices, recalls)),
        "macs": cost.macs,
        "pooling_macs": cost.pooling_macs,
        "strides_at_end": " ".join(f"{stride:.3f}" for stride in strides),
        "lengths_at_end": " ".join(map(str, pooled_lengths(model))),
        "parameters": model.count_params(),
        "epochs": epochs,
        "training_seconds": f"{seconds:.1f}",
        "train_windows": len(train),
        "test_windows": len(test),
        "versions": "; ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES),
    }


def pooled_lengths(model: keras.Model) -> list[int]:
    """Samples behind each pooling, as the strides stand."""
    lengths, outputs = [], tf.zeros([1, *model.input_shape[1:]])
    for layer in model.layers:
        outputs = layer(outputs)
        if layer.name.startswith("pooling_"):
            lengths.append(outputs.shape[1])
    return lengths


def table(rows: Sequence[Row]) -> str:
    """The methods as Markdown: accuracy with its standard deviation over the seeds, and the means of the rest.

    MACs are those of convolutions and dense layers for one window, after training; after a plus stand those that the
    poolings take as matrix products, in whose place `method='auto'` takes transforms of signals beyond 512 samples.
    """
    lines = ["| pooling | test accuracy | MACs | strides at the end | lengths at the end | training | runs |"]
    lines.append("| --- " * 7 + "|")
    for method in dict.fromkeys(row["method"] for row in rows):
        here = [row for row in rows if row["method"] == method]
        accuracies = [100 * float(row["test_accuracy"]) for row in here]
        accuracy = f"{statistics.mean(accuracies):.2f}"
        if len(here) > 1:
            accuracy += f" ± {statistics.stdev(accuracies):.2f}"
        macs, pooling_macs, seconds = (
            statistics.mean(float(row[column]) for row in here)
            for column in ("macs", "pooling_macs", "training_seconds")
        )
        strides, lengths = (
            [statistics.mean(map(float, of_layer)) for of_layer in zip(*(row[column].split() for row in here))]
            for column in ("strides_at_end", "lengths_at_end")
        )
        cost = f"{macs / 1e6:.1f} M" + (f" + {pooling_macs / 1e6:.1f} M" if pooling_macs else "")
        cells = [f"`{method}`", f"{accuracy} %", cost]
        cells += [", ".join(f"{stride:.2f}" for stride in strides), ", ".join(f"{length:.0f}" for length in lengths)]
        lines.append(f"| {' | '.join([*cells, f'{seconds:.0f} s', str(len(here))])} |")
    return "\n".join(lines)
