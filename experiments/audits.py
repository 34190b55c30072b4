"""Audits the finished runs of a study: what shifts, corruptions and attacks leave of them, what their poolings alias.

python -m experiments.audits --study=fashion_mnist_small
python -m experiments.audits --study=cifar_small --runs=../study/runs

Writes `experiments/results/STUDY_audits.csv`, with a row for each run, and `STUDY_audits.png`. Runs that the CSV file
has are not audited again, unless their config, their commit or the number of images has changed.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.audit.auditing import audit
from diffstride_hybrid.audit.report import Audit
from diffstride_hybrid.common.files import rows_as_text, whole_file, write_whole
from diffstride_hybrid.config import saved_runs
from diffstride_hybrid.runs.folder import FINAL_MODEL
from experiments.studies import audited, fingerprint
from experiments.studies.flags import chosen_study, define_study_flags
from experiments.studies.records import commit_of, key_of, key_of_row, read_whole_rows

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    define_study_flags()
    flags.DEFINE_integer("images", 2000, "How many test images, spread evenly over all.", lower_bound=1)
    command_line.path_flag("data_dir", "Where TensorFlow Datasets keeps prepared sets. As in the runs if not given.")


def main(argv: Sequence[str]) -> None:
    """Audits the runs, writes a row after each, prints the table and draws the figure."""
    del argv
    study, results = chosen_study(), pathlib.Path(FLAGS.results)
    path = audited.audits_path(study, results)
    recorded = read_whole_rows(path)
    rows = audited.still_valid(recorded, study, FLAGS.runs, FLAGS.images)
    places = {key_of(cell): place for place, cell in enumerate(study.cells())}
    for cell in study.cells():
        if not cell.is_finished(FLAGS.runs) or key_of(cell) in map(key_of_row, rows):
            continue
        fingerprint.check_unchanged(cell, FLAGS.runs)
        found = audit_of_run(cell.folder(FLAGS.runs), FLAGS.images, FLAGS.data_dir)
        rows.append(audited.row_of(cell, found, commit_of(cell, FLAGS.runs)))
        rows.sort(key=lambda row: places[key_of_row(row)])
        write_whole(path, rows_as_text(list(rows[0]), rows))
        print(f"{cell.name}: accuracy {rows[-1]['accuracy']}", flush=True)
    if not rows:
        raise ValueError(f"No run of {study.name} is finished in {FLAGS.runs}, and there is no {path}.")
    if len(rows) < len(recorded):
        write_whole(path, rows_as_text(list(rows[0]), rows))
    print(audited.table(study, rows))
    with whole_file(path.with_suffix(".png")) as partial:
        audited.drawing(study, rows).savefig(partial, dpi=150)


def audit_of_run(folder: pathlib.Path, images: int, data_dir: str | None = None) -> Audit:
    """Audits the final model of a run on its test images.

    Args:
        folder: of the run.
        images: how many images.
        data_dir: folder of prepared sets. None for that of the run.

    Returns:
        The figures.
    """
    run = saved_runs.load_run(folder, FINAL_MODEL, data_dir)
    pixels, labels = run.datasets.some_images("test", images)
    return audit(run.model, pixels, labels, batch_size=250, **saved_runs.pixel_options(run))


if __name__ == "__main__":
    command_line.run(main, define_flags)
