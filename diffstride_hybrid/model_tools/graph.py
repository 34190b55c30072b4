"""The graph of a functional model: its calls one by one, with the shapes that they have for one size of image.

No other module reads the lists of nodes that Keras keeps to itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from diffstride_hybrid.common.errors import one_line


class Call(NamedTuple):
    """One call of an operation in a graph. Layers are operations, and so are functions such as `keras.ops.relu`.

    Attributes:
        operation: the layer or other operation.
        args: the positional arguments, with tensors of the graph in them.
        kwargs: the named arguments, likewise.
        outputs: the tensors of the graph that the call gives, in one list.
    """

    operation: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[keras.KerasTensor]

    @property
    def inputs(self) -> list[keras.KerasTensor]:
        """The tensors of the graph among the arguments, in one list."""
        return [leaf for leaf in keras.tree.flatten((self.args, self.kwargs)) if isinstance(leaf, keras.KerasTensor)]


class Graph(NamedTuple):
    """The calls of a model in an order in which they can run.

    Each tensor of a graph is an object of its own, of known shape but for the batch.

    Attributes:
        inputs: what the model takes.
        calls: the calls.
        outputs: what the model gives.
    """

    inputs: list[keras.KerasTensor]
    calls: list[Call]
    outputs: list[keras.KerasTensor]


def is_functional(model: Any) -> bool:
    """Whether a model has a graph that can be read: a functional model, or a Sequential one that is built.

    Args:
        model: any object.
    """
    return isinstance(model, keras.Model) and bool(getattr(model, "inputs", None))


def read_graph(model: keras.Model, inputs: Sequence[keras.KerasTensor], inline: bool = False) -> Graph:
    """Reads the graph of a model, and computes the shape of each tensor in it.

    Args:
        model: a functional model, or a Sequential one that is built.
        inputs: what the model takes, in the order of its inputs, with their sizes.
        inline: whether the calls of a nested model stand in the place of the call of that model.

    Returns:
        The graph.

    Raises:
        ValueError: an operation cannot take maps of the size that it would get.

    Example:
        >>> layers = [keras.layers.MaxPooling2D(2, name="half"), keras.layers.Flatten(name="flat")]
        >>> model = keras.Sequential([keras.Input((None, None, 3)), *layers])
        >>> graph = read_graph(model, [keras.KerasTensor((None, 8, 6, 3))])
        >>> [(call.operation.name, call.outputs[0].shape) for call in graph.calls]
        [('half', (None, 4, 3, 3)), ('flat', (None, 36))]
    """
    own_inputs = [_like(tensor) for tensor in inputs]
    calls: list[Call] = []
    outputs = _read(model, own_inputs, inline, {}, calls)
    return Graph(own_inputs, calls, outputs)


def _read(
    model: keras.Model,
    inputs: Sequence[keras.KerasTensor],
    inline: bool,
    context: dict[str, Any],
    calls: list[Call],
) -> list[keras.KerasTensor]:
    """Adds the calls of a model to the list, and returns what the model gives.

    The context has the argument `training` if the model is called with it: Keras hands it on to the layers inside.
    """
    if isinstance(model, keras.Sequential):
        model = keras.Model(model.inputs, model.outputs)
    known = dict(zip(map(id, model.inputs), inputs))

    def tensor_of(leaf: Any) -> Any:
        return known.get(id(leaf), leaf)

    for node in _nodes(model):
        args, kwargs = node.arguments.convert(tensor_of)
        operation = node.operation
        if context and "training" in inspect.signature(operation.call).parameters:
            kwargs = {**context, **kwargs}
        given = Call(operation, args, kwargs, [])
        if inline and is_functional(operation):
            training = {name: kwargs[name] for name in ("training",) if kwargs.get(name) is not None}
            outputs = _read(operation, given.inputs, inline, {**context, **training}, calls)
        else:
            outputs = [_like(tensor) for tensor in keras.tree.flatten(_output_spec(given))]
            calls.append(given._replace(outputs=outputs))
        known |= dict(zip(map(id, node.outputs), outputs))
    return [known[id(tensor)] for tensor in model.outputs]


def _nodes(model: keras.Model) -> list[Any]:
    """The calls of a functional model, as Keras keeps them. It has no public name for them."""
    by_depth = model._nodes_by_depth
    return [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth] if not node.is_input]


def _output_spec(call: Call) -> Any:
    try:
        return call.operation.compute_output_spec(*call.args, **call.kwargs)
    except Exception as error:
        sizes = ", ".join(str(tensor.shape[1:]) for tensor in call.inputs)
        raise ValueError(f"Layer {call.operation.name} cannot take maps of {sizes}: {one_line(error)}") from error


def _like(tensor: keras.KerasTensor) -> keras.KerasTensor:
    return keras.KerasTensor(tensor.shape, tensor.dtype)
