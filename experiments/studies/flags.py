"""The flags that `experiments.sweep`, `tables`, `figures` and `audits` share."""

from __future__ import annotations

from absl import flags

from diffstride_hybrid import command_line
from experiments import RESULTS
from experiments.studies.study import Study, load_study, study_names

FLAGS = flags.FLAGS
# Makes --help list the flags under the command that calls `define_study_flags`.
flags.disclaim_key_flags()


def define_study_flags() -> None:
    """Defines `--study`, `--runs` and `--results`."""
    flags.DEFINE_string("study", None, "Name of the study: a module of experiments/studies/grids.")
    command_line.path_flag("runs", "Folder of the runs, with a folder for each study.", "runs")
    command_line.path_flag("results", "Folder of the CSV files and of the figures.", str(RESULTS))


def chosen_study() -> Study:
    """Returns the study that `--study` names; raises ValueError if it is not given or names no study."""
    if FLAGS.study is None:
        raise ValueError(f"--study must name a study: there are {', '.join(study_names())}.")
    return load_study(FLAGS.study)
