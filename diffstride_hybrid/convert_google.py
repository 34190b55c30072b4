r"""Converts a checkpoint of the code released with DiffStride into a model of this package.

python -m diffstride_hybrid.convert_google --checkpoint=run/saved_model --gin_file=cifar10_diffstride \
    --output=model.keras
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.common.files import write_model_whole
from diffstride_hybrid.config import gin_files, gin_names
from diffstride_hybrid.model_tools.inspection import diffstride_layers, short_path
from diffstride_hybrid.models import google_checkpoint
from diffstride_hybrid.models.resnet import Resnet

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    command_line.path_flag(
        "checkpoint", "A SavedModel's folder, or a TensorFlow checkpoint without '.index'.", required=True
    )
    command_line.gin_flags()
    command_line.path_flag("output", "The '.keras' file to write.", required=True)


def main(argv: Sequence[str]) -> None:
    """Builds the network of the config, restores the checkpoint, and saves the model.

    Channels and classes are those of the checkpoint. The size of the images, from which the least strides follow, is
    that of the data set that is bound, or 32 x 32.

    Args:
        argv: the name of the command.
    """
    del argv
    output = pathlib.Path(FLAGS.output)
    if output.suffix != ".keras":
        raise ValueError(f"--output must end in '.keras', got {output}.")
    if output.exists():
        raise ValueError(f"{output} exists: choose another name, or move that file away.")
    gin_files.parse([gin_files.find_gin_file(name) for name in FLAGS.gin_file], FLAGS.gin_bindings)
    channels, num_classes = google_checkpoint.channels_and_classes(FLAGS.checkpoint)
    model = gin_names.bound_network((*gin_names.bound_image_size(), channels), num_classes)
    if not isinstance(model, Resnet):
        raise ValueError(f"train.train.model_cls must make a Resnet, as in the release, got {type(model).__name__}.")
    google_checkpoint.restore(model, FLAGS.checkpoint)
    write_model_whole(output, model)
    print(f"{model.count_params():,} parameters, strides:")
    for layer in diffstride_layers(model):
        strides = ", ".join(f"{stride:.3f}" for stride in layer.strides.numpy())
        print(f"  {short_path(model, layer.path):<24}  {strides}")
    print(_normalization(channels))
    print(f"saved {output}")


def _normalization(channels: int) -> str:
    """A line that says which images the model takes, and how `audit` is told so."""
    name, statistics = gin_names.bound_statistics(channels)
    if statistics is None:
        return (
            "it takes images scaled to 0..1 and normalized as in its training; the mean and standard deviation of its "
            "training images are not known here"
        )
    mean, std = ([f"{value:.4f}" for value in values] for values in statistics)
    return (
        f"it takes images scaled to 0..1, less {', '.join(mean)}, over {', '.join(std)}, as those of {name}: audit it "
        f"with --mean={','.join(mean)} --std={','.join(std)}"
    )


if __name__ == "__main__":
    command_line.run(main, define_flags)
