"""Compiles training steps and layers for a TPU without having one, and prints the compiler's figures as JSON lines.

python -m experiments.tpu_compile --gin_file=cifar10_hybrid --topology=v5e:2x2
python -m experiments.tpu_compile --gin_file=cifar10_hybrid --topology=v5e:2x2 --part=layer
python -m experiments.tpu_compile --tables_of=experiments/results/tpu_compile.jsonl

`--part=step` compiles the whole training step of a config (forward, backward, optimizer and metrics) for one chip and
the whole batch. `--part=layer` compiles each of its `DiffStride` layers alone, forward and backward, by both methods.
Cycles, operations and memory are the compiler's estimates: nothing runs. Needs `pip install -e '.[tpu-aot]'`.
`--tables_of` makes Markdown tables from the lines that `--output` has kept, and needs no compiler.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import flags

from diffstride_hybrid import command_line
from diffstride_hybrid.config import gin_files
from experiments.tpu_compile import report

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the options of the command."""
    flags.DEFINE_multi_string(
        "gin_file", [], "A gin file: its path, or the name of a shipped one. Repeat it for more files."
    )
    flags.DEFINE_multi_string("gin_bindings", [], "A binding that overrides the files.")
    flags.DEFINE_multi_string("topology", ["v5e:2x2"], "The TPU, in JAX's notation. Repeat it for more.")
    flags.DEFINE_multi_string("dtype_policy", ["float32", "mixed_bfloat16"], "Dtype policy. Repeat it for more.")
    flags.DEFINE_multi_enum("part", ["step"], ["step", "layer"], "What to compile. Repeat it for both.")
    command_line.path_flag("output", "A file to which the JSON lines are appended as well.")
    command_line.path_flag("tables_of", "Print tables of the lines in this file, and compile nothing.")


GIB = 2**30

CHIPS = {
    "v4": {"memory_bytes": 32 * GIB, "accelerator": "v4-8"},
    "v5e": {"memory_bytes": 16 * GIB, "accelerator": "v5litepod-4"},
    "v6e": {"memory_bytes": 32 * GIB, "accelerator": "v6e-4"},
}
"""Memory of each chip (cloud.google.com/tpu/docs/system-architecture), and the machine that the compiler is told."""


def requests() -> Iterator[dict[str, Any]]:
    """Lists the compilations that the flags ask for.

    Yields:
        A request for `compile_one`. Its key 'part' is 'step' or 'layer'; a layer has 'place' and 'method' too.
    """
    for gin_file, topology, policy, part in itertools.product(
        FLAGS.gin_file, FLAGS.topology, FLAGS.dtype_policy, FLAGS.part
    ):
        request = {
            "gin_file": gin_file,
            "gin_bindings": FLAGS.gin_bindings,
            "topology": topology,
            "dtype_policy": policy,
            "part": part,
        }
        if part == "step":
            yield request
            continue
        for place in compile_one({**request, "part": "places"})["places"]:
            for method in report.METHODS:
                yield {**request, "place": place, "method": method}


def compile_one(request: Mapping[str, Any]) -> dict[str, Any]:
    """Compiles one function in a process of its own, since a refusal may end the process.

    Args:
        request: one of those that `requests` yields.

    Returns:
        The request with 'compiled', and either the compiler's figures or its reason under 'refused'.

    Raises:
        ValueError: the process failed before it came to compile. The message is its last line.
    """
    chip = CHIPS[request["topology"].split(":")[0]]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": chip["accelerator"],
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    command = [sys.executable, "-m", "experiments.tpu_compile.compiler", json.dumps(request)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    asked = {name: value for name, value in request.items() if name != "gin_bindings" or value}
    if ended.returncode < 0:
        last_words = [line.strip() for line in ended.stderr.splitlines() if line.startswith("F")]
        refused = last_words[-1] if last_words else signal.strsignal(-ended.returncode)
        return {**asked, "compiled": False, "refused": refused[:400]}
    if ended.returncode > 0:
        raise ValueError((ended.stderr.strip() or "The compilation ended without a word.").splitlines()[-1])
    answer = json.loads(ended.stdout.splitlines()[-1])
    if "places" in answer:
        return answer
    if "refused" in answer:
        return {**asked, "compiled": False, **answer}
    fits = answer["memory_bytes"] <= chip["memory_bytes"]
    return {**asked, "compiled": True, **answer, "chip_memory_bytes": chip["memory_bytes"], "fits": fits}


def main(argv: Sequence[str]) -> None:
    """Compiles what the flags ask for and prints a JSON line for each compilation, or prints tables of such lines."""
    del argv
    if FLAGS.tables_of:
        tables = report.tables(report.read_lines(pathlib.Path(FLAGS.tables_of)))
        print("\n\n".join(tables.values()))
        return
    if not FLAGS.gin_file:
        raise ValueError("--gin_file must be given: a path, or the name of a shipped config.")
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError("The TPU's compiler is not installed: pip install -e '.[tpu-aot]'.")
    for topology in FLAGS.topology:
        if topology.split(":")[0] not in CHIPS or ":" not in topology:
            raise ValueError(
                f"--topology must be one of {', '.join(CHIPS)} and a shape, as in v5e:2x2, got {topology}."
            )
    for gin_file in FLAGS.gin_file:
        gin_files.find_gin_file(gin_file)
    for request in requests():
        line = json.dumps(compile_one(request))
        print(line, flush=True)
        if FLAGS.output:
            with pathlib.Path(FLAGS.output).open("a", encoding="utf-8") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    command_line.run(main, define_flags)
