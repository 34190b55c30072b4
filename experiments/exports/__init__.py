"""Compares every export format of a run with its Keras model."""
