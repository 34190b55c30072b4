r"""Evaluates a model that a run has saved.

python -m diffstride_hybrid.evaluate --workdir=runs/digits_hybrid
python -m diffstride_hybrid.evaluate --workdir=runs/digits_hybrid --model=best.keras --split=validation
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import app, flags

from diffstride_hybrid import command_line, complexity, distribution, run_loading, training

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.", required=True)
_MODEL = flags.DEFINE_enum(
    "model", training.FINAL_MODEL, [training.FINAL_MODEL, training.BEST_MODEL], "Which of the run's models."
)
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "validation", "test"], "Which part of the data.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where TensorFlow Datasets keeps prepared sets, if not as in the run."
)
_STRATEGY = flags.DEFINE_enum(
    "strategy", distribution.STRATEGIES[0], distribution.STRATEGIES, "Where to evaluate, as for training."
)
_TPU = flags.DEFINE_string("tpu", None, "Name or address of the TPU, 'local' on its own machine.")


def main(argv: Sequence[str]) -> None:
    """Loads the model and the data as the run's own config says, and prints accuracy, loss and MACs."""
    del argv
    workdir = pathlib.Path(_WORKDIR.value)
    strategy = distribution.make_strategy(_STRATEGY.value, _TPU.value)
    with strategy.scope(), distribution.naming_lost_workers(strategy, "Start all of them again."):
        run = run_loading.load_run(workdir, _MODEL.value, _DATA_DIR.value)
        results = training.evaluate(run.model, run.loss, run.datasets, _SPLIT.value)
    if not distribution.is_chief(strategy):
        return
    print(
        f"{_SPLIT.value} accuracy {results['accuracy']:.2%}, loss {results['loss']:.4f}, on "
        f"{run.datasets.splits[_SPLIT.value].size:,} images, "
        f"{complexity.macs(run.model, run.datasets.image_shape).macs / 1e9:.3f} G MACs an image, "
        f"{workdir / _MODEL.value}"
    )


if __name__ == "__main__":
    app.run(command_line.reporting_errors(main))
