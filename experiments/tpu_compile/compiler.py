"""Compiles one function for a TPU that is not there. `experiments.tpu_compile` runs this in a process of its own.

Its argument is a request in JSON, its last line of output the answer. TensorFlow lowers the function to StableHLO as
for a CPU, and the TPU's own compiler, which `jax[tpu]` brings, does the rest. This leans on private modules of JAX,
whose version the extra `tpu-aot` therefore fixes. What the compiler refuses may end the process.
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

from diffstride_hybrid.config import gin_files
from diffstride_hybrid.data.datasets import Datasets
from diffstride_hybrid.data.loading import shapes
from diffstride_hybrid.model_tools.inspection import diffstride_layers
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
    """A set that need not be here, without images: its shapes are all that a step depends on."""
    bound = gin.get_bindings("data.load_datasets")
    image_shape, num_classes = shapes(**bound)
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
    """Each `DiffStride` of a model and the map that it pools on the main path, by the layer's path."""
    found: dict[str, tuple[Any, tuple[int, ...]]] = {}
    learned = diffstride_layers(model)
    for cost in macs(model, image_shape).layers:
        if cost.layer in learned:
            found.setdefault(cost.layer.path.removeprefix(f"{model.name}/"), (cost.layer, cost.input_shape))
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
    """Compiles for one chip, and reads what the compiler says of the result.

    Args:
        function: with static shapes, for XLA.
        specs: of its arguments.
        topology: in JAX's notation.
        own_layouts: whether the compiler may lay out arguments and results as it likes, as it may within a network.

    Returns:
        What the compiler says.
    """
    from jax._src import compiler
    from jax._src.interpreters import mlir
    from jax._src.lib import xla_client
    from jax._src.lib.mlir import ir
    from jax.experimental import topologies

    text = function.experimental_get_compiler_ir(*specs)(stage="stablehlo")
    # TensorFlow leaves copies behind, of a dialect that this compiler does not know, where a variable is updated.
    text = re.sub(
        r'"?mhlo\.copy"?\(?\s*(%\w+)\)?( \{[^}]*\})? : (?:\(tensor<[^>]*>\) -> )?(tensor<[^>]*>)',
        r"stablehlo.reshape \1 : (\3) -> \3",
        text,
    )
    if own_layouts:
        text = re.sub(r"func\.func (public )?@main\(.*", _with_own_layouts, text)
    chip = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices[0]
    options = compiler.get_compile_options(
        num_replicas=1, num_partitions=1, device_assignment=np.array([[chip.id]]), backend=chip.client
    )
    began = time.perf_counter()
    try:
        with mlir.make_ir_context():
            module = ir.Module.parse(text)
            executable = chip.client.compile(
                module, executable_devices=xla_client.DeviceList((chip,)), compile_options=options
            )
    except Exception as error:  # Of many kinds: whatever the compiler says, it is an answer.
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


def _estimated_cycles(program: str) -> int | None:
    """The sum over the program's instructions; None where one of them has none that can be, as some in bfloat16."""
    cycles = [int(cycles) for cycles in re.findall(r'"estimated_cycles":"?(\d+)', program)]
    return sum(cycles) if max(cycles, default=2**48) < 2**48 else None


def _with_own_layouts(signature: re.Match[str]) -> str:
    """The first line of a function in StableHLO, every argument and result of it with the layout mode 'auto'."""
    arguments, results = signature[0].split(" -> ")
    mode = r'\1 {mhlo.layout_mode = "auto"}'
    return f"{re.sub(r'(tensor<[^>]*>)', mode, arguments)} -> {re.sub(r'(tensor<[^>]*>)', mode, results)}"


def _whole(cost: Mapping[str, float], name: str) -> int | None:
    return int(cost[name]) if name in cost else None


if __name__ == "__main__":
    main()
