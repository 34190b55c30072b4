"""Every export format of a run, beside its Keras model."""
