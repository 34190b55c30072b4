"""Compiles one function for a TPU, without a TPU. `experiments.tpu_compile` runs this module as a process.

The argument is a request in JSON, and the last line of output is the answer. TensorFlow lowers the function to
StableHLO as for a CPU, and the TPU's own compiler from `jax[tpu]` compiles that. This uses private modules of JAX, so
the extra `tpu-aot` fixes the version of JAX. A function that the compiler refuses may end the process.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import gin
import keras
import numpy as np
import tensorflow as tf

from diffstride_hybrid.config import gin_files, gin_names
from diffstride_hybrid.data.datasets import Datasets
from diffstride_hybrid.model_tools.inspection import diffstride_layers, short_path
from diffstride_hybrid.model_tools.macs import macs
from diffstride_hybrid.training.run import make_loop


def main() -> None:
    """Answers the request."""
    request = json.loads(sys.argv[1])
    gin_files.parse([gin_files.find_gin_file(request["gin_file"])], request["gin_bindings"])
    datasets = _datasets_of_shapes()
    keras.config.set_dtype_policy(request["dtype_policy"])
    run = gin.get_bindings("train.train")
    loop = make_loop(datasets, run["model_cls"], run["optimizer_cls"], run["loss_cls"], jit_compile=True)
    if request["part"] == "places":
        answer = {"places": list(_places(loop.model, datasets.image_shape))}
    elif request["part"] == "step":
        images = tf.TensorSpec([datasets.batch_size, *datasets.image_shape])
        labels = tf.TensorSpec([datasets.batch_size, datasets.num_classes])
        answer = _compile(loop.compiled(loop.train_step), (images, labels), request["topology"])
        answer |= {"batch": datasets.batch_size}
    else:
        layer, shape = _places(loop.model, datasets.image_shape)[request["place"]]
        inputs = tf.TensorSpec([datasets.batch_size, *shape], layer.compute_dtype)
        function = _forward_and_backward(layer, request["method"])
        answer = _compile(function, (inputs,), request["topology"], own_layouts=True)
        answer |= {"batch": datasets.batch_size, "map": "x".join(map(str, shape))}
    print(json.dumps(answer))


def _datasets_of_shapes() -> Datasets:
    """Makes a data set without images, because a compiled step depends only on shapes. The real set may be missing."""
    bound = gin.get_bindings("data.load_datasets")
    image_shape, num_classes = gin_names.bound_shapes()
    return Datasets(
        name=bound["name"],
        image_shape=image_shape,
        class_names=tuple(str(label) for label in range(num_classes)),
        batch_size=bound.get("batch_size", 32),
        mean=(0.0,) * image_shape[-1],
        std=(1.0,) * image_shape[-1],
        splits={},
        mixup_alpha=0.0,
        mixup="pairs",
        augment_fn=None,
        seed=1,
    )


def _places(model: keras.Model, image_shape: tuple[int, int, int]) -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Finds each `DiffStride` layer and the shape of the map that it pools on the main path, by the layer's path."""
    found: dict[str, tuple[Any, tuple[int, ...]]] = {}
    learned = diffstride_layers(model)
    for cost in macs(model, image_shape).layers:
        if cost.layer in learned:
            found.setdefault(short_path(model, cost.layer.path), (cost.layer, cost.input_shape))
    return found


def _forward_and_backward(layer: Any, method: str) -> Callable[[tf.Tensor], Any]:
    layer.method = method

    def run(inputs: tf.Tensor) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs)
        return outputs, tape.gradient(outputs, [inputs, layer.strides.value], output_gradients=outputs)

    return tf.function(run, autograph=False, jit_compile=True)


def _compile(
    function: Any, specs: tuple[tf.TensorSpec, ...], topology: str, own_layouts: bool = False
) -> dict[str, Any]:
    """Compiles a function for one chip.

    Args:
        function: a `tf.function` that XLA can compile, with static shapes.
        specs: shapes and dtypes of its arguments.
        topology: the TPU, in JAX's notation.
        own_layouts: whether the compiler may choose the layouts of arguments and results, as it may within a network.

    Returns:
        The compiler's figures, or its reason for refusing the function under the key 'refused'.
    """
    from jax.experimental import topologies

    text = _stablehlo(function, specs)
    if own_layouts:
        text = re.sub(r"func\.func (public )?@main\(.*", _with_own_layouts, text)
    chip = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    began = time.perf_counter()
    try:
        executable = _executable(text, chip)
    except Exception as error:  # Of many kinds: every message of the compiler is an answer.
        return {"refused": " ".join(str(error).split())[:400]}
    seconds = time.perf_counter() - began
    cost, memory = executable.cost_analysis(), executable.get_compiled_memory_stats()
    program = executable.hlo_modules()[0].to_string()
    return {
        "chip": chip.device_kind,
        "seconds": round(seconds, 1),
        "flops": _whole(cost, "flops"),
        "bytes_accessed": _whole(cost, "bytes accessed"),
        "estimated_cycles": _estimated_cycles(program),
        "memory_bytes": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes,
    }


def _stablehlo(function: Any, specs: tuple[tf.TensorSpec, ...]) -> str:
    """Lowers a function to StableHLO, as for a CPU."""
    text = function.experimental_get_compiler_ir(*specs)(stage="stablehlo")
    # If the function updates a variable, TensorFlow leaves copies in a dialect that the TPU's compiler does not know.
    return re.sub(
        r'"?mhlo\.copy"?\(?\s*(%\w+)\)?( \{[^}]*\})? : (?:\(tensor<[^>]*>\) -> )?(tensor<[^>]*>)',
        r"stablehlo.reshape \1 : (\3) -> \3",
        text,
    )


def _executable(text: str, chip: Any) -> Any:
    """Compiles StableHLO for a chip."""
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax._src.lib.mlir import ir

    options = compiler.get_compile_options(
        num_replicas=1, num_partitions=1, device_assignment=np.array([[chip.id]]), backend=chip.client
    )
    with mlir.make_ir_context():
        module = ir.Module.parse(text)
        return chip.client.compile(module, executable_devices=xla_client.DeviceList((chip,)), compile_options=options)


def _estimated_cycles(program: str) -> int | None:
    """Sums the cycles of a program's instructions; None if the compiler gives one of them an impossible number."""
    cycles = [int(cycles) for cycles in re.findall(r'"estimated_cycles":"?(\d+)', program)]
    return sum(cycles) if max(cycles, default=2**48) < 2**48 else None


def _with_own_layouts(signature: re.Match[str]) -> str:
    """Adds the layout mode 'auto' to each argument and result in the first line of a StableHLO function."""
    arguments, results = signature[0].split(" -> ")
    mode = r'\1 {mhlo.layout_mode = "auto"}'
    return f"{re.sub(r'(tensor<[^>]*>)', mode, arguments)} -> {re.sub(r'(tensor<[^>]*>)', mode, results)}"


def _whole(cost: Mapping[str, float], name: str) -> int | None:
    return int(cost[name]) if name in cost else None


if __name__ == "__main__":
    main()
