"""Prepares a data set of TensorFlow Datasets, from the network or from files that are already here.

python -m diffstride_hybrid.prepare --name=fashion_mnist --source=/usr/share/datasets/fashion-mnist
python -m diffstride_hybrid.prepare --name=cifar10 --source=~/.keras/datasets
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.data.image_folders import is_named_folder
from diffstride_hybrid.data.local_files import prepare_from_files
from diffstride_hybrid.data.sources import DIGITS, check_complete, prepare, tfds_builder

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    flags.DEFINE_string("name", None, "Name of the data set in TensorFlow Datasets.", required=True)
    command_line.path_flag(
        "source",
        "Folder with the files that TensorFlow Datasets would download or asks for; for CIFAR those of Keras and "
        "torchvision do as well. If not given, the files are downloaded.",
    )
    command_line.data_dir_flag()


def main(argv: Sequence[str]) -> None:
    """Prepares the data set of `--name` and says where it is.

    Args:
        argv: the name of the command.
    """
    del argv
    if is_named_folder(FLAGS.name) and not pathlib.Path(FLAGS.name).expanduser().is_dir():
        raise ValueError(f"--name={FLAGS.name} names a folder that does not exist.")
    if FLAGS.name == DIGITS or is_named_folder(FLAGS.name):
        _say_it_is_ready("come with scikit-learn" if FLAGS.name == DIGITS else "are read as they are")
        return
    try:
        builder = tfds_builder(FLAGS.name, FLAGS.data_dir, "--name")
    except ValueError:
        if not pathlib.Path(FLAGS.name).is_dir():
            raise
        _say_it_is_ready("are read as they are")
        return
    if FLAGS.source is None:
        prepare(builder)
    else:
        source = pathlib.Path(FLAGS.source).resolve()
        if not source.is_dir():
            raise ValueError(f"--source must be a folder, got {FLAGS.source}.")
        prepare_from_files(builder, source)
    check_complete(builder)
    sizes = ", ".join(f"{split.num_examples:,} {name}" for name, split in builder.info.splits.items())
    print(f"{builder.name} is prepared under {builder.data_dir}: {sizes} images")


def _say_it_is_ready(where: str) -> None:
    print(f"{FLAGS.name} needs no preparation: its images {where}.")


if __name__ == "__main__":
    command_line.run(main, define_flags)
