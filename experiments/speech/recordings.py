"""Reads recorded speech as windows of waveform, each labeled with its voice."""

from __future__ import annotations

import hashlib
import pathlib
import wave
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

RATE = 8000
"""Samples a second."""

WINDOW = 4096
"""Samples of a window, about half a second."""

MOST_WINDOWS = {"train": 1600, "test": 400}
"""How many windows one voice has at most. The limit bounds the training time and gives all voices the same share."""

LEAST_PEAK, LEAST_LEVEL = 0.01, 0.05
"""Below these levels nobody speaks: the peak of a file relative to full scale, and the root mean square of a window
relative to the peak of its file."""


class Speech(NamedTuple):
    """Windows of speech.

    Attributes:
        voices: names of the voices, which are those of their folders.
        train: windows to train on, float32 `[windows, samples, 1]`, and for each window the number of its voice.
        test: windows of other prompts to test on, in the same form.
    """

    voices: list[str]
    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def load(source: pathlib.Path, length: int = WINDOW, most: Mapping[str, int] = MOST_WINDOWS) -> Speech:
    """Reads the recordings of all voices.

    Args:
        source: folder that holds a folder of wav files for each voice. A link to a folder that is there already is no
            other voice.
        length: samples of a window.
        most: for 'train' and 'test', how many windows of one voice to keep at most. If there are more, evenly spaced
            ones are kept, in the order of the files' names.

    Returns:
        The windows of both splits.

    Raises:
        ValueError: there are fewer than two voices, a file cannot be read, or a split of a voice is empty.
        FileNotFoundError: there is no such folder.
    """
    needed = "--source must have a folder of wav files for each voice"
    if not source.is_dir():
        raise FileNotFoundError(
            f"There is no folder {source}: {needed}. On Debian: apt-get install --no-install-recommends "
            "asterisk-core-sounds-{en,es,fr,it,ru}-wav, then --source=/usr/share/asterisk/sounds."
        )
    files = {path: sorted(path.rglob("*.wav")) for path in _folders(source)}
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


def _folders(source: pathlib.Path) -> list[pathlib.Path]:
    """Lists the folders in `source` by name, each once: Debian's alternatives link to folders beside them."""
    folders: dict[pathlib.Path, pathlib.Path] = {}
    for path in sorted(source.iterdir(), key=lambda path: (path.is_symlink(), path)):
        if path.is_dir():
            folders.setdefault(path.resolve(), path)
    return sorted(folders.values())


def split_of(name: str) -> str:
    """Returns the split of a file by its name alone: 'test' for about every fifth file, else 'train'."""
    return "train" if int(hashlib.sha256(name.encode()).hexdigest(), 16) % 5 else "test"


def read_wav(path: pathlib.Path) -> np.ndarray:
    """Reads the samples of a wav file, from -1 to 1; raises ValueError if it is not of 16 bits at `RATE`."""
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
    """Cuts a recording into windows `[windows, length]` of mean 0 and mean square 1, and drops those without speech."""
    windows = samples[: len(samples) // length * length].reshape(-1, length)
    peak = np.abs(samples).max(initial=0.0)
    windows = windows - windows.mean(1, keepdims=True)
    level = np.sqrt(np.square(windows).mean(1, keepdims=True))
    spoken = level[:, 0] > (LEAST_LEVEL * peak if peak > LEAST_PEAK else np.inf)
    return windows[spoken] / level[spoken]
