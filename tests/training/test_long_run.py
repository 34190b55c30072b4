"""A long run keeps the resources that it began with."""

import os
from pathlib import Path
from typing import Any

import keras
import pytest
from support.tiny_runs import optimizer, random_digits, small

from diffstride_hybrid.training import run as run_module

pytestmark = pytest.mark.slow


EPOCHS, STEPS = 20, 1000
WARM_UP = 3  # Epochs in which TensorFlow still takes memory that it keeps.
GROWTH_BYTES = 24 << 20
"""What the process may grow by in the 17,000 steps after those: about 1.5 kB a step, well below one batch of images."""


class Resources(keras.callbacks.Callback):
    """Notes what the process holds at the end of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, int, int]] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files, threads = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
        self.rows.append((pages * os.sysconf("SC_PAGE_SIZE"), files, threads))


def test_twenty_thousand_steps_leave_memory_files_and_threads_as_they_were(tmp_path: Path):
    resources = Resources()
    summary = run_module.train(
        load_data_fn=random_digits,
        model_cls=small,
        optimizer_cls=optimizer,
        num_epochs=EPOCHS,
        steps_per_epoch=STEPS,
        backup_every=200,
        workdir=str(tmp_path),
        callbacks=[resources],
    )
    assert summary["steps"] == EPOCHS * STEPS
    print(resources.rows)
    warm, last = resources.rows[WARM_UP - 1], resources.rows[-1]
    assert last[0] - warm[0] < GROWTH_BYTES
    assert last[1] <= warm[1]
    assert last[2] <= warm[2]
