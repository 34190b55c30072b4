"""The flags that `experiments.sweep`, `experiments.tables` and `experiments.figures` share."""

from absl import flags

from experiments import records

STUDY = flags.DEFINE_string("study", None, "Name of the study: a module of experiments/studies.", required=True)
RUNS = flags.DEFINE_string("runs", "runs", "Where the folders of the runs are, one folder for each study.")
RESULTS = flags.DEFINE_string("results", str(records.RESULTS), "Folder of the CSV files and of the figures.")
