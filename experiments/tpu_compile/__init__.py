"""Compiles training steps and layers for a TPU without one, for the compiler's estimates."""
