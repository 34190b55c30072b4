"""A training process that notes when its parts end and stops after its second step. It prints one line of JSON.

This file runs in checkouts of other versions too, so it uses nothing but the training command and its loop.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
import time
from typing import Any

ENDS: dict[str, float] = {}
"""Seconds from the start of the process to the end of each part."""


def note(part: str) -> None:
    """Notes that a part ends now."""
    ENDS[part] = time.time() - float(os.environ["FIRST_STEP_BEGAN"])


def import_package() -> None:
    """Imports the package as Python does for `python -m diffstride_hybrid.train`."""
    arguments, sys.argv = sys.argv, ["-m"]
    sys.path.insert(0, os.getcwd())
    importlib.import_module("diffstride_hybrid.training.loop")
    importlib.import_module("diffstride_hybrid.training.run")
    sys.argv = arguments
    note("import")


def watch_training() -> None:
    """Lets the training loop note the ends of its parts."""
    import tensorflow as tf

    from diffstride_hybrid.training import loop, run

    make_loop, run_steps, train_step = run.make_loop, loop.TrainingLoop._run_steps, loop.TrainingLoop.train_step
    traces: list[tuple[float, int]] = []

    def noting_make_loop(*arguments: Any, **options: Any) -> Any:
        note("data")
        made = make_loop(*arguments, **options)
        note("model")
        return made

    def noting_train_step(self: Any, images: Any, labels: Any) -> None:
        began = time.perf_counter()
        train_step(self, images, labels)
        seconds, graph = time.perf_counter() - began, tf.compat.v1.get_default_graph()
        while hasattr(graph.outer_graph, "outer_graph"):
            graph = graph.outer_graph
        traces.append((seconds, graph))

    def noting_run_steps(self: Any, count: int) -> int:
        if "begin" not in ENDS:
            note("begin")
        finished = run_steps(self, count)
        if "first step" not in ENDS:
            note("first step")
            return finished
        note("second step")
        seconds, graph = traces[0]
        definition = graph.as_graph_def()
        inner = sum(len(function.node_def) for function in definition.library.function)
        print(json.dumps({"ends": ENDS, "tracing": seconds, "operations": len(definition.node) + inner}), flush=True)
        os._exit(0)

    run.make_loop = noting_make_loop
    loop.TrainingLoop._run_steps, loop.TrainingLoop.train_step = noting_run_steps, noting_train_step


if __name__ == "__main__":
    import_package()
    watch_training()
    runpy.run_module("diffstride_hybrid.train", run_name="__main__")
