from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.batches import BATCH

from diffstride_hybrid.data import sources
from diffstride_hybrid.data.loading import load_datasets


@pytest.fixture(params=["in_memory", "streamed"])
def storage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "streamed":
        monkeypatch.setattr(sources, "MEMORY_LIMIT_BYTES", 0)
    return request.param


@pytest.fixture
def load(tiny_data_dir: Path) -> Any:
    return partial(load_datasets, "cifar10", batch_size=BATCH, data_dir=str(tiny_data_dir))
