"""Prepares a data set of TensorFlow Datasets, from the network or from files that are already here.

python -m diffstride_hybrid.prepare --name=fashion_mnist --source=/usr/share/datasets/fashion-mnist
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import app, flags

from diffstride_hybrid import command_line

_NAME = flags.DEFINE_string("name", None, "Data set to prepare, as TensorFlow Datasets calls it.", required=True)
_SOURCE = flags.DEFINE_string(
    "source", None, "Folder that holds the files which TensorFlow Datasets would download. The network where not given."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TensorFlow Datasets keeps prepared sets.")


def main(argv: Sequence[str]) -> None:
    """Prepares the data set of `--name` and says where it is."""
    del argv
    from diffstride_hybrid import data

    builder = data.tfds_builder(_NAME.value, _DATA_DIR.value)
    if _SOURCE.value is not None:
        source = pathlib.Path(_SOURCE.value).resolve()
        if not source.is_dir():
            raise ValueError(f"--source must be a folder, got {_SOURCE.value}.")
        if not hasattr(builder, "URL"):
            raise ValueError(f"{_NAME.value!r} cannot be prepared from a folder: its builder has no single address.")
        builder.URL = f"{source.as_uri()}/"
    data.prepare(builder)
    sizes = ", ".join(f"{split.num_examples:,} {name}" for name, split in builder.info.splits.items())
    print(f"{builder.name} is prepared under {builder.data_dir}: {sizes} images")


if __name__ == "__main__":
    app.run(command_line.reporting_errors(main))
