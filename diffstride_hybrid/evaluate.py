r"""Evaluates a model that a run has saved.

python -m diffstride_hybrid.evaluate --workdir=runs/digits_hybrid
python -m diffstride_hybrid.evaluate --workdir=runs/digits_hybrid --model=best.keras --split=validation
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Sequence

from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.common import distribution
from diffstride_hybrid.config import saved_runs
from diffstride_hybrid.model_tools.frozen import frozen_poolings
from diffstride_hybrid.model_tools.macs import macs
from diffstride_hybrid.training.run import evaluate

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    command_line.workdir_flag()
    command_line.model_flag()
    flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which part of the data.")
    command_line.data_dir_flag("As in the run if not given.")
    command_line.strategy_flags()


def main(argv: Sequence[str]) -> None:
    """Loads the model and the data as the run's own config says, and prints accuracy, loss and MACs.

    Args:
        argv: the name of the command.
    """
    del argv
    workdir = pathlib.Path(FLAGS.workdir)
    strategy = distribution.make_strategy(FLAGS.strategy, FLAGS.tpu)
    with strategy.scope(), distribution.naming_lost_workers(strategy, "Start all of them again."):
        run = saved_runs.load_run(workdir, FLAGS.model, FLAGS.data_dir, FLAGS.split)
        # A replica cannot read the strides.
        is_alone = strategy.num_replicas_in_sync == 1
        with frozen_poolings(run.model) if is_alone else contextlib.nullcontext():
            results = evaluate(run.model, run.loss, run.datasets, FLAGS.split)
    if not distribution.is_chief(strategy):
        return
    print(
        f"{FLAGS.split} accuracy {results['accuracy']:.2%}, loss {results['loss']:.4f}, on "
        f"{run.datasets.splits[FLAGS.split].size:,} images, "
        f"{macs(run.model, run.datasets.image_shape).macs / 1e9:.3f} G MACs an image, "
        f"{workdir / FLAGS.model}"
    )


if __name__ == "__main__":
    command_line.run(main, define_flags)
