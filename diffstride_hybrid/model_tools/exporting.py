"""Exports a trained model to formats that run without this package, and compares the result with the model.

The strides are fixed at their learned values. Each pooling becomes one or two products with constant matrices, so that
the exported model contains no transform and no unknown size.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from diffstride_hybrid.common.files import without_wildcards
from diffstride_hybrid.model_tools.frozen import computed_in_float32, inference_function

FORMATS = ("saved_model", "litert", "onnx")

QUANTIZATIONS = ("float32", "float16", "int8")

_MODULES = {"saved_model": (), "litert": ("ai_edge_litert",), "onnx": ("tf2onnx", "onnxruntime")}


Predict = Callable[[np.ndarray], np.ndarray]
"""Takes normalized images `[batch, height, width, channels]`, returns the outputs `[batch, classes]` of a model."""


class Comparison(NamedTuple):
    """An exported model compared with the Keras model on the same images.

    Attributes:
        images: number of images.
        largest_difference: largest absolute difference between an output of the one model and of the other.
        accuracy: accuracy of the exported model, from 0 to 1.
        keras_accuracy: accuracy of the Keras model, from 0 to 1.
        size_bytes: size of the exported model on the disk.
        milliseconds: time that the exported model takes for one image, the median of 20 runs.
    """

    images: int
    largest_difference: float
    accuracy: float
    keras_accuracy: float
    size_bytes: int
    milliseconds: float


def check_installed(format: str) -> None:
    """Checks that the packages that write and run a format are installed.

    Args:
        format: 'saved_model', 'litert' or 'onnx'.

    Raises:
        ImportError: a package is missing. The message says what to install.
    """
    missing = [name for name in _MODULES[format] if importlib.util.find_spec(name) is None]
    if missing:
        packages = " and ".join(name.replace("_", "-") for name in missing)
        raise ImportError(
            f"The format {format} needs {packages}, not installed here: pip install 'diffstride_hybrid[export]'."
        )


def check_request(path: str | os.PathLike[str], format: str, quantization: str = "float32") -> None:
    """Checks the arguments of `export` that need no model and no images.

    Args:
        path: the result. It must not exist.
        format: 'saved_model', 'litert' or 'onnx'.
        quantization: 'float32', or for 'litert' also 'float16' and 'int8'.

    Raises:
        ValueError: an argument is not among the allowed values, or two arguments do not go together.
        FileExistsError: `path` exists.
    """
    if format not in FORMATS:
        raise ValueError(f"The format must be one of {', '.join(FORMATS)}, got {format!r}.")
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"The quantization must be one of {', '.join(QUANTIZATIONS)}, got {quantization!r}.")
    if quantization != "float32" and format != "litert":
        raise ValueError(f"The quantization {quantization} needs the format litert, got {format}.")
    if pathlib.Path(path).exists():
        raise FileExistsError(f"{path} exists: choose another name, or move it away.")


def export(
    model: keras.Model,
    path: str | os.PathLike[str],
    format: str,
    image_shape: Sequence[int],
    quantization: str = "float32",
    calibration: np.ndarray | None = None,
) -> None:
    """Writes a model in a format that runs without this package.

    Nothing is left at `path` if the export fails. A model that was trained in half precision computes in float32 in
    'litert' and 'onnx', and as it did in 'saved_model'.

    Args:
        model: a trained model.
        path: the result, a folder for 'saved_model', a file for the other formats. It must not exist.
        format: 'saved_model', 'litert' or 'onnx'.
        image_shape: (height, width, channels) of an image.
        quantization: 'float32', or for 'litert' also 'float16', which keeps the weights in half precision, and 'int8',
            which computes in whole numbers.
        calibration: normalized images `[images, height, width, channels]`, needed for 'int8', which takes its ranges
            from them.

    Raises:
        ValueError: an argument is not among the allowed values, two arguments do not go together, or the format needs
            weights in float32.
        FileExistsError: `path` exists.
        ImportError: the package that writes the format is not installed.

    Example:
        >>> import pathlib, tempfile
        >>> model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     export(model, pathlib.Path(folder) / "export", "saved_model", (8, 8, 1))
        ...     load_export(pathlib.Path(folder) / "export", "saved_model")(np.zeros([2, 8, 8, 1])).shape
        (2, 3)
    """
    check_request(path, format, quantization)
    if quantization == "int8" and calibration is None:
        raise ValueError("The quantization int8 needs images to calibrate with.")
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial.") as folder,
        without_wildcards(pathlib.Path(folder)) as readable,
    ):
        partial = readable / "model"
        # LiteRT and the runtimes of ONNX have no half-precision convolutions for CPUs.
        with contextlib.nullcontext() if format == "saved_model" else computed_in_float32(model):
            _write_saved_model(model, partial, image_shape)
        if format == "litert":
            partial = _to_litert(partial, quantization, calibration)
        elif format == "onnx":
            partial = _to_onnx(partial)
        os.replace(partial, path)


def load_export(path: str | os.PathLike[str], format: str) -> Predict:
    """Loads an exported model in the runtime of its format.

    Args:
        path: the folder or file that `export` has written.
        format: the format of it: 'saved_model', 'litert' or 'onnx'.

    Returns:
        A function from normalized images `[batch, height, width, channels]` to outputs `[batch, classes]`.

    Raises:
        ImportError: the runtime is not installed.
    """
    return {"saved_model": _load_saved_model, "litert": _load_litert, "onnx": _load_onnx}[format](str(path))


def compare(
    model: keras.Model, path: str | os.PathLike[str], format: str, images: np.ndarray, labels: np.ndarray
) -> Comparison:
    """Runs an exported model and its Keras model on the same images.

    Args:
        model: the Keras model.
        path: the folder or file that `export` has written.
        format: the format of it: 'saved_model', 'litert' or 'onnx'.
        images: normalized images `[images, height, width, channels]`.
        labels: one-hot labels `[images, classes]`.

    Returns:
        The comparison.

    Raises:
        ImportError: the runtime of the format is not installed.
    """
    predict = load_export(path, format)
    expected = outputs_of(model, images)
    outputs = _in_batches(predict, images)
    seconds = []
    for _ in range(21):
        began = time.perf_counter()
        predict(images[:1])
        seconds.append(time.perf_counter() - began)
    return Comparison(
        images=len(images),
        largest_difference=float(np.abs(outputs - expected).max()),
        accuracy=accuracy(outputs, labels),
        keras_accuracy=accuracy(expected, labels),
        size_bytes=size_of(path),
        milliseconds=1e3 * float(np.median(seconds[1:])),
    )


def outputs_of(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Runs a Keras model in batches.

    Args:
        model: the model.
        images: normalized images `[images, height, width, channels]`.

    Returns:
        The outputs `[images, classes]`.
    """
    return _in_batches(lambda batch: model(batch, training=False).numpy(), images)


def accuracy(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Computes the share of images whose greatest output is at the class of their label.

    Args:
        outputs: outputs of a model, `[images, classes]`.
        labels: one-hot labels `[images, classes]`.

    Returns:
        A number from 0 to 1.
    """
    return float((outputs.argmax(-1) == labels.argmax(-1)).mean())


def size_of(path: str | os.PathLike[str]) -> int:
    """Measures an exported model on the disk.

    Args:
        path: the file or the folder.

    Returns:
        Its size in bytes.
    """
    path = pathlib.Path(path)
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _in_batches(predict: Predict, images: np.ndarray, size: int = 100) -> np.ndarray:
    return np.concatenate([predict(images[first : first + size]) for first in range(0, len(images), size)])


# --- Writing ---------------------------------------------------------------------------------------------------------
def _write_saved_model(model: keras.Model, path: pathlib.Path, image_shape: Sequence[int]) -> None:
    # Save a plain module: for a Keras model, TensorFlow would also save functions for other sizes.
    module = tf.Module()
    module.weights = [variable.value for variable in model.variables]
    module.serve = inference_function(model, image_shape)
    tf.saved_model.save(module, str(path), signatures={"serve": module.serve.get_concrete_function()})


def _to_litert(saved_model: pathlib.Path, quantization: str, calibration: np.ndarray | None) -> pathlib.Path:
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=["serve"])
    if quantization != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantization == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantization == "int8":
        converter.representative_dataset = lambda: ([image[None]] for image in calibration.astype("float32"))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    result = saved_model.with_name("model.tflite")
    result.write_bytes(converter.convert())
    return result


def _to_onnx(saved_model: pathlib.Path) -> pathlib.Path:
    import tf2onnx

    module = tf.saved_model.load(str(saved_model))
    inputs = module.signatures["serve"].structured_input_signature[1]["images"]
    result = saved_model.with_name("model.onnx")
    tf2onnx.convert.from_function(module.serve, [inputs], opset=17, output_path=str(result))
    return result


# --- Running ---------------------------------------------------------------------------------------------------------
def _load_saved_model(path: str) -> Predict:
    with without_wildcards(pathlib.Path(path)) as folder:
        module = tf.saved_model.load(str(folder))
    return lambda images: module.serve(tf.constant(images, tf.float32)).numpy()


def _load_litert(path: str) -> Predict:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path)
    (inputs,), (outputs,) = interpreter.get_input_details(), interpreter.get_output_details()

    def predict(images: np.ndarray) -> np.ndarray:
        results = []
        interpreter.allocate_tensors()
        for image in images:
            interpreter.set_tensor(inputs["index"], image[None].astype("float32"))
            interpreter.invoke()
            results.append(interpreter.get_tensor(outputs["index"])[0])
        return np.stack(results)

    return predict


def _load_onnx(path: str) -> Predict:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (inputs,) = session.get_inputs()
    return lambda images: session.run(None, {inputs.name: images.astype("float32")})[0]
