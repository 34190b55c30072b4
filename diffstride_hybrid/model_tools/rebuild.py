"""Builds a model once more from its graph, with poolings and resizings of this package in place of its own layers."""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from diffstride_hybrid.common.errors import one_line
from diffstride_hybrid.layers.input_checks import Size
from diffstride_hybrid.model_tools.alignment import Zeros
from diffstride_hybrid.model_tools.graph import Call, Graph, is_functional, read_graph
from diffstride_hybrid.model_tools.inspection import first_argument, leaf_layers
from diffstride_hybrid.model_tools.pairing import Pair
from diffstride_hybrid.model_tools.replacements import Replacements
from diffstride_hybrid.model_tools.selection import POOLINGS, Chooser, flattens
from diffstride_hybrid.model_tools.stride_one import (
    StrideOne,
    is_centered,
    kernel_at_stride_one,
    spatial_size,
    transposed_at_stride_one,
)

_CANNOT_FOLLOW = "Layer {} cannot follow a map of another size: {} Exclude what is before it."
_TAKES_NO_WEIGHTS = "Layer {} cannot be copied: the copy does not take its weights: {}"


def check_graph(model: keras.Model) -> None:
    """Checks that a model can be taken apart.

    Args:
        model: any model.

    Raises:
        ValueError: it is not built, or it is a class with code of its own.
    """
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(f"{model.name} must be built: call it on an image, or give it an Input.")
    if not is_functional(model):
        raise ValueError(
            f"{model.name} must be a functional or Sequential model: what a {type(model).__name__} calls in code "
            "of its own cannot be taken apart."
        )


@dataclasses.dataclass
class Plan:
    """All that a model and the models nested in it share while they are rebuilt.

    Attributes:
        chooser: tells which layers are replaced.
        replacements: makes the layers that replace them.
        keep_max: whether a max pooling takes its maximum at stride 1 before the new pooling.
        keep_macs: whether a convolution that was strided runs on the smaller map, and so on the other side of the
            pooling or resizing.
        copies: (copy, original) by the id of the original, so that a layer that several models call has one copy.
        nested: the new model by the id of a nested model, so that a model that is called twice stays one model.
        takes_any_size: whether the outermost model takes images of any size. None until it is rebuilt.
    """

    chooser: Chooser
    replacements: Replacements
    keep_max: bool
    keep_macs: bool
    copies: dict[int, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    nested: dict[int, keras.Model] = dataclasses.field(default_factory=dict)
    takes_any_size: bool | None = None

    def drops(self, layer: Any) -> bool:
        """Whether nothing of a layer that is replaced stays beside the pooling."""
        return isinstance(layer, POOLINGS) and not (self.keep_max and isinstance(layer, keras.layers.MaxPooling2D))


class Rebuild:
    """Builds one model once more.

    Args:
        plan: what is to be replaced, and how.
        model: the model.
        graph: the graph of the model.
        pairs: the calls in the graph that take their size from another map.
    """

    def __init__(self, plan: Plan, model: keras.Model, graph: Graph, pairs: Sequence[Pair] = ()):
        self._plan = plan
        self._model = model
        self._graph = graph
        self._pairs = {id(pair.call): pair for pair in pairs}
        self._trims = {id(trim) for pair in pairs for trim in pair.trims}
        self._stride_one = StrideOne(graph, plan.chooser, pairs, plan.keep_macs)
        self._values: dict[int, Any] = {}
        self._called: list[Any] = []
        self._originals: dict[int, tuple[Any, Any]] = {}
        self._names: set[str] = set()

    def result(self, shapes: Sequence[Sequence[int | None]]) -> keras.Model:
        """The new model.

        Args:
            shapes: of what it takes, without the batch. A length that is None stays unknown.
        """
        if self._plan.takes_any_size is None:
            self._plan.takes_any_size = any(None in shape for shape in shapes)
        entries = [
            keras.Input(shape, dtype=entry.dtype, name=entry.name) for entry, shape in zip(self._model.inputs, shapes)
        ]
        self._note(self._graph.inputs, entries)
        for call in self._calls_in_order():
            if id(call) in self._pairs:
                pair = self._pairs[id(call)]
                resized = self._resized(pair)
                for each in (call, *pair.trims):
                    self._note(each.outputs, resized)
            else:
                self._note(call.outputs, self._outputs(call))
        self._carry_weights_over()
        return self._assembled(entries, [self._values[id(tensor)] for tensor in self._graph.outputs])

    def _calls_in_order(self) -> Iterator[Call]:
        """The calls, each after all that it needs: a map may take the size of one that came later in the original."""
        waiting = [call for call in self._graph.calls if id(call) not in self._trims]
        while waiting:
            later = []
            for call in waiting:
                likes = [self._pairs[id(call)].like] if id(call) in self._pairs else []
                if all(id(tensor) in self._values for tensor in (*call.inputs, *likes)):
                    yield call
                else:
                    later.append(call)
            if len(later) == len(waiting):
                raise ValueError(f"Layer {later[0].operation.name} would have the size of a map that follows from it.")
            waiting = later

    def _assembled(self, entries: Sequence[Any], outputs: Sequence[Any]) -> keras.Model:
        """A model of the same class, if it can be made from inputs and outputs."""
        model = self._model
        if isinstance(model, keras.Sequential):
            (entry,), (output,) = entries, outputs
            plain = keras.Model(entry, output, name=model.name)
            # A padding that is left out was called as well, but is not part of the new graph.
            in_graph = set(map(id, plain.layers))
            called = [layer for layer in self._called if id(layer) in in_graph]
            # Keras saves a layer of a Sequential model once, however often the model calls it.
            is_chain = not self._pairs and len(set(map(id, called))) == len(called)
            return keras.Sequential([entry, *called], name=model.name) if is_chain else plain
        inputs, outputs = (
            keras.tree.pack_sequence_as(structure, tensors)
            for structure, tensors in ((model.input, entries), (model.output, outputs))
        )
        plain = keras.Model(inputs, outputs, name=model.name)
        own, spec = (inspect.getfullargspec(type(each).__init__) for each in (model, plain))
        takes_a_graph = own.args == spec.args or (own.varargs and own.varkw)
        return type(model)(inputs, outputs, name=model.name) if takes_a_graph else plain

    # --- The tensors of the new model in place of those of the graph ---

    def _note(self, tensors: Sequence[Any], values: Any) -> None:
        self._values.update(zip(map(id, tensors), keras.tree.flatten(values)))

    def _value(self, leaf: Any) -> Any:
        return self._values.get(id(leaf), leaf)

    # --- Calls ---

    def _outputs(self, call: Call) -> Any:
        """What a call gives in the new model."""
        operation = call.operation
        if self._plan.chooser.replaces(operation):
            return self._pooled(call)
        if self._covers_a_changed_map(call):
            return self._pooled_globally(call, first_argument(call.args, call.kwargs))
        args, kwargs = keras.tree.map_structure(self._value, (call.args, call.kwargs))
        if is_functional(operation):
            return self._run(self._nested(operation, call), *args, **kwargs)
        if flattens(operation):
            return self._run(self._copy(operation), self._of_former_size(call))
        return self._run(self._copy(operation), *args, **kwargs)

    def _run(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            outputs = layer(*args, **kwargs)
        except Exception as error:
            raise ValueError(_CANNOT_FOLLOW.format(layer.name, one_line(error))) from error
        self._called.append(layer)
        return outputs

    def _pooled(self, call: Call) -> Any:
        """Calls the pooling, and beside it what stays of the original at stride 1: a convolution or a maximum."""
        original = call.operation
        tensor = self._stride_one.unpadded(call)
        sizes = self._sizes(tensor, call)
        inputs = self._value(tensor)
        # A window that covers the map by chance, with smaller strides, has branches beside it that keep their size.
        steps = np.minimum(getattr(original, "pool_size", 0), original.strides)
        if sizes[1] == (1, 1) and np.all(steps >= sizes[0]):
            return self._pooled_globally(call, tensor)
        pooling = self._plan.replacements.pooling(original, self._model, sizes)
        if self._plan.drops(original):
            return self._run(pooling, inputs)
        if self._plan.keep_macs and not isinstance(original, POOLINGS):
            return self._at_stride_one(call, self._run(pooling, inputs))
        return self._run(pooling, self._at_stride_one(call, inputs))

    def _at_stride_one(self, call: Call, inputs: Any) -> Any:
        """Calls the copy of a layer on a map with zeros around it, such that it stays where the original was.

        Zeros of a max pooling win over values below 0 in the outermost rows and columns: behind the map, and before it
        where the original has padding='same' and a window of more than twice its stride.
        """
        copy = self._copy(call.operation)
        zeros = self._stride_one.zeros(call)
        if copy.padding == "valid":
            inputs = self._run(self._zero_padding(call.operation, zeros), inputs)
        elif not is_centered(zeros):
            raise ValueError(
                f"Layer {copy.name} of {self._model.name} is a layer of another model too, and its windows do not lie "
                "there as they lie here. Exclude it, or use two layers."
            )
        return self._run(copy, inputs)

    def _zero_padding(self, original: Any, zeros: tuple[Zeros, Zeros]) -> keras.layers.ZeroPadding2D:
        return keras.layers.ZeroPadding2D(
            zeros,
            data_format=original.data_format,
            dtype=original.dtype_policy,
            name=self._plan.replacements.new_name(f"{original.name}_padding"),
        )

    def _sizes(self, tensor: Any, call: Call) -> tuple[Size, Size]:
        """(height, width) of a map that a call takes, and of its result, in the original model."""
        before, after = (spatial_size(call.operation.data_format, each.shape) for each in (tensor, call.outputs[0]))
        return before, after

    def _covers_a_changed_map(self, call: Call) -> bool:
        """Whether a pooling that is not replaced made one value of each map, and would not of its present map."""
        original = call.operation
        if type(original) not in POOLINGS or self._plan.chooser.excludes(original):
            return False
        tensor = first_argument(call.args, call.kwargs)
        before, after = self._sizes(tensor, call)
        return after == (1, 1) != before and spatial_size(original.data_format, self._value(tensor).shape) != before

    def _pooled_globally(self, call: Call, tensor: Any) -> Any:
        name = self._free_name(call.operation.name)
        pooling = self._plan.replacements.global_pooling(call.operation, self._sizes(tensor, call), name)
        return self._run(pooling, self._value(tensor))

    def _resized(self, pair: Pair) -> Any:
        """Resizes a map to the size of another one, and convolves it if the original was a transposed convolution."""
        original = pair.call.operation
        resizing = self._plan.replacements.resizing(original, pair.sizes)
        inputs, like = self._value(pair.call.inputs[0]), self._value(pair.like)
        if not isinstance(original, keras.layers.Conv2DTranspose):
            return self._run(resizing, inputs, like=like)
        if self._plan.keep_macs:
            return self._run(resizing, self._at_stride_one(pair.call, inputs), like=like)
        return self._at_stride_one(pair.call, self._run(resizing, inputs, like=like))

    def _of_former_size(self, call: Call) -> Any:
        """The map that a call flattens, resized to the size that it had in the original if it has another one."""
        tensor = first_argument(call.args, call.kwargs)
        inputs = self._value(tensor)
        if len(tensor.shape) != 4 or inputs.shape[1:] == tensor.shape[1:]:
            return inputs
        data_format = self._plan.replacements.data_format(call.operation)
        if self._plan.takes_any_size:
            channels = tensor.shape[3 if data_format == "channels_last" else 1]
            if call.outputs[0].shape[2:] == (channels,):
                return inputs  # One position after the other, however many there are.
            raise ValueError(
                f"Layer {call.operation.name} makes one axis of several, and {self._model.name} takes images of any "
                "size: exclude what is before it, or give the model an input of one size."
            )
        size = spatial_size(data_format, tensor.shape)
        resizing = self._plan.replacements.resizing(call.operation, (size, size), output_size=size)
        return self._run(resizing, inputs)

    def _nested(self, model: keras.Model, call: Call) -> keras.Model:
        """The new model for a model that is a layer of this one."""
        if id(model) not in self._plan.nested:
            check_graph(model)
            graph = read_graph(model, call.inputs)
            shapes = [self._value(tensor).shape[1:] for tensor in call.inputs]
            sizes = [[tensor.shape for tensor in each.inputs] for each in self._graph.calls if each.operation is model]
            if any(each != sizes[0] for each in sizes):  # It takes what it took, and not the size of its first call.
                shapes = [tensor.shape[1:] for tensor in model.inputs]
            self._plan.nested[id(model)] = Rebuild(self._plan, model, graph).result(shapes)
        return self._plan.nested[id(model)]

    # --- Copies ---

    def _copy(self, layer: Any) -> Any:
        if id(layer) not in self._plan.copies:
            self._plan.copies[id(layer)] = (self._new_copy(layer), layer)
        copy, _ = self._originals[id(layer)] = self._plan.copies[id(layer)]
        return copy

    def _new_copy(self, layer: Any) -> Any:
        name = self._free_name(layer.name)
        if isinstance(layer, keras.layers.Lambda):
            return keras.layers.Lambda(
                layer.function, mask=layer.mask, arguments=layer.arguments, name=name, dtype=layer.dtype_policy
            )
        try:
            config = layer.get_config()
            # Pass functions on as they are: Keras finds only registered functions by the name in a config.
            functions = {name: getattr(layer, name, None) for name in config}
            config |= {name: value for name, value in functions.items() if isinstance(value, types.FunctionType)}
            config |= {"name": name}
            if self._is_paired(layer):
                return transposed_at_stride_one(config, self._stride_one.padding(layer))
            if self._plan.chooser.replaces(layer):
                config |= {"strides": (1, 1), "padding": self._stride_one.padding(layer)}
            return type(layer).from_config(config)
        except Exception as error:
            raise ValueError(f"Layer {layer.name} cannot be copied: {one_line(error)}") from error

    def _free_name(self, name: str) -> str:
        """The name of a layer of the original, with a number if a layer of the new model has it."""
        free = name if name not in self._names else self._plan.replacements.new_name(name)
        self._names.add(free)
        return free

    def _is_paired(self, layer: Any) -> bool:
        return any(pair.call.operation is layer for pair in self._pairs.values())

    def _carry_weights_over(self) -> None:
        for copy, original in self._originals.values():
            if not isinstance(original, keras.layers.Layer) or not original.weights:
                continue
            weights = original.get_weights()
            if self._is_paired(original):
                weights[0] = kernel_at_stride_one(original)
            try:
                copy.set_weights(weights)
            except ValueError as error:
                # On a map of another size lengths differ. A layer that was quantized has other weights than its copy.
                ranks = [[len(each.shape) for each in every] for every in (copy.weights, weights)]
                message = _CANNOT_FOLLOW if ranks[0] == ranks[1] else _TAKES_NO_WEIGHTS
                raise ValueError(message.format(original.name, one_line(error))) from error
            pairs = list(zip((copy, *leaf_layers(copy)), (original, *leaf_layers(original))))
            for layer, before in pairs:  # A config says of the layers within a layer not whether they are trained.
                if layer.trainable != before.trainable:
                    layer.trainable = before.trainable
            for layer, _ in pairs:
                # keras.layers.Normalization computes with values that it derives from its weights only here.
                if hasattr(layer, "finalize_state"):
                    layer.finalize_state()
