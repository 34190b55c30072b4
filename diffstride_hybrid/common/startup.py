"""Starts TensorFlow without the notes that it prints before a command says its first word.

This module is imported before TensorFlow, and so imports nothing that imports it.
"""

from __future__ import annotations

import contextlib
import gc
import glob
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import re
import sys
import threading
import types
from collections.abc import Iterator, Sequence

FLAG = "--startup_notes"
"""With this option a command shows the notes."""

_NOTES = re.compile(
    rb"I\d{4} |WARNING: All log messages before absl::InitializeLog|To enable the following instructions:"
    rb"|\d{4}-\d\d-\d\d [^ ]+ I tensorflow/"
)

_NO_GPU = re.compile(rb"E\d{4} .*cuInit|\d{4}-\d\d-\d\d [^ ]+ E .*cuInit")
"""An error if there is a GPU. If there is none, TensorFlow has looked for one in vain, and that is all."""


def check_backend(allowed: tuple[str, ...] = ("tensorflow", "jax", "torch")) -> None:
    """Refuses a backend of Keras that this package cannot compute with.

    Keras fails with a missing module or, later, with a tensor of the wrong kind.

    Args:
        allowed: the backends that will do.

    Raises:
        ImportError: Keras is set to another backend, or to one that is not installed.
    """
    source, backend = "KERAS_BACKEND", os.environ.get("KERAS_BACKEND")
    if not backend:
        source = os.path.join(os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras"), "keras.json")
        with contextlib.suppress(OSError, ValueError, AttributeError), open(source, encoding="utf-8") as file:
            backend = json.load(file).get("backend")
    backend = backend or "tensorflow"
    if backend in allowed:
        if importlib.util.find_spec(backend) is None:
            raise ImportError(
                f"Keras runs on {backend}, which is not installed: pip install 'diffstride_hybrid[train]', or set the "
                "environment variable KERAS_BACKEND to jax or torch if that is installed."
            )
        return
    needed = "TensorFlow, JAX or PyTorch" if len(allowed) > 1 else "TensorFlow for its commands"
    raise ImportError(
        f"diffstride_hybrid needs Keras with {needed}, and {source} says {backend!r}. Set the environment variable "
        f"KERAS_BACKEND={allowed[0]} before Keras is imported."
    )


def start_tensorflow() -> None:
    """Imports TensorFlow and finds the devices, without notes unless the command line has `--startup_notes`.

    Without that option, TensorFlow's C++ code prints errors only, unless TF_CPP_MIN_LOG_LEVEL says otherwise.

    Raises:
        SystemExit: Keras is set to another backend, or a package is missing. One line says so.
    """
    try:
        check_backend(("tensorflow",))
    except ImportError as error:
        sys.exit(f"error: {error}")
    if missing := [name for name in ("absl", "gin", "tensorflow_datasets") if importlib.util.find_spec(name) is None]:
        sys.exit(f"error: the commands need {', '.join(missing)}: pip install 'diffstride_hybrid[train]'.")
    if FLAG not in sys.argv:
        # While it compiles a step that chooses its engine when it runs, TensorFlow warns of twenty lines of types.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with contextlib.nullcontext() if FLAG in sys.argv else without_notes(), importing_fast():
        import tensorflow as tf

        tf.config.list_physical_devices("GPU")


class _LaterFinder(importlib.abc.MetaPathFinder):
    """Finds what TensorFlow and Keras import only in case that somebody uses it, so that it costs no time.

    Keras draws with pyplot, and gets a module that loads when it is first used. It has wrappers for scikit-learn, and
    TensorFlow converts models of JAX; no command does either, so both packages seem not to be installed.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname in ("jax", "sklearn"):
            raise ModuleNotFoundError(f"{fullname} is imported later", name=fullname)
        if fullname != "matplotlib.pyplot":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = importlib.util.LazyLoader(spec.loader)
        return spec


@contextlib.contextmanager
def importing_fast() -> Iterator[None]:
    """A context in which TensorFlow and Keras can be imported in half of the time.

    Yields:
        Nothing.
    """
    finder = _LaterFinder()
    sys.meta_path.insert(0, finder)
    gc.disable()  # The collector would look through a million new objects again and again, all of which stay.
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        sys.meta_path.remove(finder)


@contextlib.contextmanager
def without_notes() -> Iterator[None]:
    """A context in which notes on standard error are dropped, those of C++ code too. Everything else is passed on.

    Yields:
        Nothing.
    """
    read, write = os.pipe()
    true_error = os.dup(2)
    os.dup2(write, 2)
    os.close(write)
    passing_on = threading.Thread(target=_pass_on, args=(read, true_error), daemon=True)
    passing_on.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(true_error, 2)  # This closes the pipe, so that the thread comes to its end.
        passing_on.join()
        os.close(true_error)


def _pass_on(source: int, target: int) -> None:
    has_gpu = bool(glob.glob("/dev/nvidia*"))
    with os.fdopen(source, "rb") as lines:
        for line in lines:
            if not (_NOTES.match(line) or (_NO_GPU.match(line) and not has_gpu)):
                os.write(target, line)
