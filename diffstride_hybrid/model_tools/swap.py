"""Rebuilds a Keras model with other downsampling layers: what to replace, and the walk over the graph."""

from __future__ import annotations

import inspect
import itertools
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras

from diffstride_hybrid.common.errors import one_line
from diffstride_hybrid.layers.input_checks import Size
from diffstride_hybrid.model_tools.inspection import leaf_layers

Selection = str | Sequence[str] | Callable[[keras.layers.Layer], bool]
"""Layers by name, by names, or by a predicate."""

_POOLINGS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)

_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)

_CANNOT_FOLLOW = "Layer {} cannot follow a map of another size: {} Exclude what is before it."

# What serves in place of other layers: bins of both signs alike, and a mean that stays as it is.
_DROP_IN = {"mask": "symmetric", "norm": "forward"}


class Replacement(NamedTuple):
    """One layer that was replaced.

    Attributes:
        layer: its name.
        kind: its class.
        size_before: (height, width) of its input and its output in the model as it was.
        pooling: the layer that pools in its place. Several may have the same.
    """

    layer: str
    kind: str
    size_before: tuple[Size, Size]
    pooling: keras.layers.Layer


class Swap:
    """One replacement of a model, with those that are nested in it."""

    def __init__(
        self,
        pooling_cls: Callable[..., keras.layers.Layer],
        include: Selection | None,
        exclude: Selection | None,
        options: dict[str, Any],
    ):
        self.replacements: list[Replacement] = []
        self._pooling_cls = pooling_cls
        self._names: set[str] = set()
        self._selections = {"include": include, "exclude": exclude}
        self._include = _predicate("include", include, default=True)
        self._exclude = _predicate("exclude", exclude, default=False)
        parameters = inspect.signature(pooling_cls).parameters
        self._options = {name: value for name, value in _DROP_IN.items() if name in parameters} | options
        self._poolings: dict[tuple[Size, Size, str], tuple[keras.layers.Layer, keras.Model]] = {}
        self._nested: dict[int, keras.Model] = {}
        # A layer that several of the models call has one copy.
        self.copies: dict[int, tuple[Any, Any]] = {}

    def outermost(self, model: keras.Model, input_shape: Sequence[int] | None) -> keras.Model:
        """Swaps a model with those that are nested in it."""
        _check_graph(model)
        if len(model.inputs) != 1:
            raise ValueError(f"{model.name} must have one input, got {len(model.inputs)}.")
        (entry,) = model.inputs
        shape = tuple(entry.shape[1:] if input_shape is None else input_shape)
        if len(shape) != 3 or None in shape:
            raise ValueError(f"{model.name} needs input_shape=(height, width, channels) of an image, got {shape}.")
        self._names = {layer.name for layer in leaf_layers(model)}
        for argument, selection in self._selections.items():
            names = [selection] if isinstance(selection, str) else selection
            unknown = [] if names is None or callable(names) else [name for name in names if name not in self._names]
            if unknown:
                raise ValueError(f"{model.name} has no layer {unknown[0]}, which {argument} selects.")
        if not any(map(self.replaces, _graph_layers(model))):
            kept = keeping_strides(model)
            raise ValueError(
                f"{model.name} has no layer to replace: no pooling or convolution with strides is selected."
                + (f" These keep theirs: {', '.join(kept)}." if kept else "")
            )
        tensors = [keras.KerasTensor((None, *shape), entry.dtype)]
        return self._swapped(model, tensors, tensors)

    def nested(self, model: keras.Model, inputs: Any, specs: Any) -> keras.Model:
        """Swaps a model that is a layer of another one. The same object where it is used again.

        Args:
            model: the nested model.
            inputs: what it is called on now.
            specs: what it was called on.
        """
        if id(model) not in self._nested:
            _check_graph(model)
            self._nested[id(model)] = self._swapped(model, keras.tree.flatten(inputs), keras.tree.flatten(specs))
        return self._nested[id(model)]

    def _swapped(self, model: keras.Model, inputs: Sequence[Any], specs: Sequence[Any]) -> keras.Model:
        walk = _Walk(self, model)
        view = _uncompiled(model)
        entries = [
            keras.Input(tensor.shape[1:], dtype=entry.dtype, name=entry.name)
            for entry, tensor in zip(model.inputs, inputs)
        ]
        walk.expect(entries, specs)
        copy = keras.models.clone_model(
            view,
            input_tensors=keras.tree.pack_sequence_as(view.input, entries),
            clone_function=walk.copied,
            call_function=walk.call,
        )
        walk.carry_weights_over()
        # Without the paddings that were left out.
        kept = set(map(id, copy.layers))
        chain = [layer for layer in walk.called if id(layer) in kept]
        is_sequential = isinstance(model, keras.Sequential)
        return keras.Sequential([copy.inputs[0], *chain], name=model.name) if is_sequential else copy

    def replaces(self, layer: Any) -> bool:
        """Whether a layer downsamples and is selected."""
        if type(layer) not in (*_POOLINGS, *_CONVOLUTIONS) or max(layer.strides) == 1:
            return False
        return self._include(layer) and not self._exclude(layer)

    def pooling(self, layer: keras.layers.Layer, model: keras.Model, before: Size, after: Size) -> keras.layers.Layer:
        """The pooling that stands for a layer of a model which took maps of one size to those of another."""
        key = (before, after, layer.data_format)
        if key not in self._poolings:
            options = {"strides": tuple(float(stride) for stride in layer.strides), **self._options}
            pooling = self._pooling_cls(
                data_format=layer.data_format,
                dtype=layer.dtype_policy,
                name=self._new_name(f"{layer.name}_downsampling"),
                **options,
            )
            self._poolings[key] = (pooling, model)
        pooling, owner = self._poolings[key]
        if owner is not model:
            raise ValueError(
                f"Layer {layer.name} of {model.name} would share {pooling.name} with {owner.name}, and Keras cannot "
                "load what nested models share. Exclude one of the two, or make one model of them."
            )
        self.replacements.append(Replacement(layer.name, type(layer).__name__, (before, after), pooling))
        return pooling

    def _new_name(self, name: str) -> str:
        """The name, numbered where another layer has it: one layer may downsample maps of several sizes."""
        candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
        found = next(candidate for candidate in candidates if candidate not in self._names)
        self._names.add(found)
        return found


class _Walk:
    """What `keras.models.clone_model` asks for on its way through one model."""

    def __init__(self, swap: Swap, model: keras.Model):
        self.called: list[keras.layers.Layer] = []
        self._swap = swap
        self._model = model
        self._originals: dict[int, tuple[Any, Any]] = {}
        # The tensors are kept with what is known of them, as only that keeps their ids from being used again.
        self._specs: dict[int, tuple[Any, keras.KerasTensor]] = {}
        self._unpadded: dict[int, tuple[Any, Any]] = {}

    def copied(self, layer: Any) -> Any:
        """A layer like the given one, or that one where it will not be called."""
        if id(layer) not in self._swap.copies:
            copy = layer
            if isinstance(layer, keras.layers.Lambda):
                copy = keras.layers.Lambda(
                    layer.function,
                    mask=layer.mask,
                    arguments=layer.arguments,
                    name=layer.name,
                    dtype=layer.dtype_policy,
                )
            elif not isinstance(layer, keras.Model) and not (
                isinstance(layer, _POOLINGS) and self._swap.replaces(layer)
            ):
                copy = self._from_config(layer)
            self._swap.copies[id(layer)] = (copy, layer)
        self._originals[id(self._swap.copies[id(layer)][0])] = self._swap.copies[id(layer)]
        return self._swap.copies[id(layer)][0]

    def _from_config(self, layer: Any) -> Any:
        try:
            config = layer.get_config()
            # As they are: only those that are registered can be found again by name.
            functions = {name: getattr(layer, name, None) for name in config}
            config |= {name: value for name, value in functions.items() if isinstance(value, types.FunctionType)}
            if self._swap.replaces(layer):
                config |= {"strides": (1, 1), "padding": "same"}
            return type(layer).from_config(config)
        except Exception as error:
            raise ValueError(f"Layer {layer.name} cannot be copied: {one_line(error)}") from error

    def expect(self, tensors: Any, specs: Any) -> None:
        """Notes what the original has in place of tensors."""
        for tensor, spec in zip(keras.tree.flatten(tensors), keras.tree.flatten(specs)):
            self._specs[id(tensor)] = (tensor, spec)

    def call(self, copy: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a copy, or what stands for it, and notes what the original gives."""
        _, original = self._originals.get(id(copy), (copy, copy))
        spec_args, spec_kwargs = keras.tree.map_structure(self._spec_of, (args, kwargs))
        spec = original.compute_output_spec(*spec_args, **spec_kwargs)
        outputs = self._outputs(original, copy, spec, args, kwargs)
        self.expect(outputs, spec)
        # The operation of keras.ops.pad is not public.
        is_operation = not isinstance(original, keras.layers.Layer)
        if isinstance(original, keras.layers.ZeroPadding2D) or (is_operation and type(original).__name__ == "Pad"):
            self._unpadded[id(outputs)] = (outputs, _first_of(args, kwargs))
        return outputs

    def carry_weights_over(self) -> None:
        """Gives every copy the weights of its original."""
        for copy, original in self._originals.values():
            if copy is not original and isinstance(original, keras.layers.Layer) and original.weights:
                try:
                    copy.set_weights(original.get_weights())
                except ValueError as error:
                    raise ValueError(_CANNOT_FOLLOW.format(original.name, one_line(error))) from error
                for layer in (copy, *leaf_layers(copy)):
                    # Normalization computes with what it derived from its weights before.
                    if hasattr(layer, "finalize_state"):
                        layer.finalize_state()

    def _spec_of(self, tensor: Any) -> Any:
        return self._specs[id(tensor)][1] if id(tensor) in self._specs else tensor

    def _outputs(self, original: Any, copy: Any, spec: Any, args: Any, kwargs: Any) -> Any:
        if self._swap.replaces(original):
            inputs = self._without_padding(original, _first_of(args, kwargs))
            before, after = (_spatial_size(original, tensor.shape) for tensor in (self._spec_of(inputs), spec))
            pooling = self._swap.pooling(original, self._model, before, after)
            if not isinstance(original, _POOLINGS):
                inputs = self._called(copy, inputs)
            return self._called(pooling, inputs)
        if isinstance(original, keras.Model):
            inputs = _first_of(args, kwargs)
            copy = self._swap.nested(original, inputs, keras.tree.map_structure(self._spec_of, inputs))
        return self._called(copy, *args, **kwargs)

    def _without_padding(self, layer: keras.layers.Layer, inputs: Any) -> Any:
        """What was padded for a layer that downsamples: padding 'same' takes the place of it."""
        _, unpadded = self._unpadded.get(id(inputs), (None, inputs))
        channels = 3 if layer.data_format == "channels_last" else 1
        return unpadded if unpadded.shape[channels] == inputs.shape[channels] else inputs

    def _called(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            outputs = layer(*args, **kwargs)
        except Exception as error:
            raise ValueError(_CANNOT_FOLLOW.format(layer.name, one_line(error))) from error
        self.called.append(layer)
        return outputs


def _check_graph(model: keras.Model) -> None:
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(f"{model.name} must be built: call it on an image, or give it an Input.")
    if not getattr(model, "inputs", None):
        raise ValueError(
            f"{model.name} must be a functional or Sequential model: what a {type(model).__name__} calls in code "
            "of its own cannot be taken apart."
        )


def _graph_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers of a model and of those nested in it, but for what layers call in code of their own."""
    for layer in model.layers:
        yield layer
        if isinstance(layer, keras.Model):
            yield from _graph_layers(layer)


def _uncompiled(model: keras.Model) -> keras.Model:
    """The same graph, functional, and not compiled, as Keras would compile the copy of it alike."""
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs, model.outputs, name=model.name)
    plain = keras.Model(model.input, model.output, name=model.name)
    own, spec = (inspect.getfullargspec(type(each).__init__) for each in (model, plain))
    takes_a_graph = own.args == spec.args or (own.varargs and own.varkw)
    return type(model)(model.input, model.output, name=model.name) if takes_a_graph else plain


def _first_of(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else kwargs["inputs"]


def keeping_strides(model: keras.Model, poolings: Sequence[keras.layers.Layer] = ()) -> list[str]:
    """The paths of layers at any depth that downsample, but for the given ones."""
    layers = [layer for layer in leaf_layers(model) if isinstance(layer, (*_POOLINGS, *_CONVOLUTIONS))]
    return [layer.path for layer in layers if max(layer.strides) > 1 and not any(layer is each for each in poolings)]


def _predicate(name: str, selection: Selection | None, default: bool) -> Callable[[keras.layers.Layer], bool]:
    if selection is None:
        return lambda layer: default
    if callable(selection):
        return selection
    names = [selection] if isinstance(selection, str) else list(selection)
    if not all(isinstance(entry, str) for entry in names):
        raise TypeError(f"{name} must be a name, names or a function of a layer, got {selection!r}.")
    return lambda layer: layer.name in names


def _spatial_size(layer: keras.layers.Layer, shape: Sequence[int]) -> Size:
    return tuple(shape[1:3] if layer.data_format == "channels_last" else shape[2:4])
