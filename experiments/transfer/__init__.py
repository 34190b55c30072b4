"""Replaces the max poolings of a trained network by spectral poolings, and trains it on."""
