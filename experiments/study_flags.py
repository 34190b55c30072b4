"""The flags that `experiments.sweep`, `experiments.tables` and `experiments.figures` share."""

from absl import flags

from experiments import records
from experiments.study import Study, load_study, study_names

STUDY = flags.DEFINE_string("study", None, "Name of the study: a module of experiments/studies.")
RUNS = flags.DEFINE_string("runs", "runs", "Where the folders of the runs are, one folder for each study.")
RESULTS = flags.DEFINE_string("results", str(records.RESULTS), "Folder of the CSV files and of the figures.")


def chosen_study() -> Study:
    """The study that `--study` names; raises ValueError where it names none."""
    if STUDY.value is None:
        raise ValueError(f"--study must name a study: there are {', '.join(study_names())}.")
    return load_study(STUDY.value)
