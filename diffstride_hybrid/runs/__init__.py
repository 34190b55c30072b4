"""The files of a training run: its folder, backups, logs, figures and model card."""
