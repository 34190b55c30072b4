"""Registers classes with Keras under the package's name, so that saved models load wherever in the package they lie."""

from __future__ import annotations

import keras

register = keras.saving.register_keras_serializable(package="diffstride_hybrid")
"""A decorator for layers, models and other classes that Keras saves."""
