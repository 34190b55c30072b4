"""Recorded speech as windows of waveform with their voice."""

from __future__ import annotations

import hashlib
import pathlib
import wave
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

RATE = 8000

WINDOW = 4096

MOST_WINDOWS = {"train": 1600, "test": 400}
"""Of one voice. It bounds the training time and gives all voices the same share."""

LEAST_PEAK, LEAST_LEVEL = 0.01, 0.05
"""Of a file, against full scale, and of a window's root mean square, against the file's peak. Below, nobody speaks."""


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
