"""Runs an exported model by its own runtime, without this package. Only a SavedModel needs TensorFlow and Keras.

python run_export.py MODEL FORMAT IMAGES.npy OUTPUTS.npy

This script must stand alone, because its environment has only NumPy and the runtime. So it loads LiteRT models itself,
though `diffstride_hybrid.model_tools.exporting` does so too. It writes the model's outputs for the images and prints,
as JSON, the runtime's version and the median time for one image.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import statistics
import sys
import time

import numpy as np

BATCH = 100

TIMED = 100


def load(path, format):
    """Loads a model; returns a function from images `[batch, height, width, channels]` to outputs, and its package."""
    if format == "saved_model":
        import tensorflow as tf

        module = tf.saved_model.load(path)
        return lambda images: module.serve(tf.constant(images)).numpy(), "tensorflow"
    if format == "litert":
        from ai_edge_litert.interpreter import Interpreter

        # Its default is one thread, and the other runtimes take every core.
        interpreter = Interpreter(path, num_threads=os.cpu_count())
        inputs, outputs = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

        def predict(images):
            if interpreter.get_input_details()[0]["shape"][0] != len(images):
                interpreter.resize_tensor_input(inputs, images.shape)
                interpreter.allocate_tensors()
            interpreter.set_tensor(inputs, images)
            interpreter.invoke()
            return interpreter.get_tensor(outputs)

        interpreter.allocate_tensors()
        return predict, "ai-edge-litert"
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {session.get_inputs()[0].name: images})[0], "onnxruntime"


def main(path, format, images_path, outputs_path):
    """Runs the model on all images for its outputs, then on single images for the time."""
    images = np.load(images_path)
    predict, package = load(path, format)
    outputs = [predict(images[first : first + BATCH]) for first in range(0, len(images), BATCH)]
    np.save(outputs_path, np.concatenate(outputs))
    seconds = []
    for i in range(TIMED + 10):
        image = images[i % len(images)][None]
        began = time.perf_counter()
        predict(image)
        seconds.append(time.perf_counter() - began)
    record = {
        "runtime": f"{package} {importlib.metadata.version(package)}",
        "milliseconds": 1e3 * statistics.median(seconds[10:]),
        "loaded": sorted({"diffstride_hybrid", "keras", "tensorflow"} & set(sys.modules)),
        "installed": importlib.util.find_spec("diffstride_hybrid") is not None,
    }
    print(json.dumps(record))


if __name__ == "__main__":
    main(*sys.argv[1:])
