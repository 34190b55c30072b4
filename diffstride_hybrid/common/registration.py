"""Registers classes with Keras under the name of the package, so that saved models find them wherever they move."""

from __future__ import annotations

import keras

register = keras.saving.register_keras_serializable(package="diffstride_hybrid")
