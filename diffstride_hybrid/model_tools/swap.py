"""Rebuilds a Keras model with poolings in place of its downsampling layers. `surgery.py` is the public entry.

`swap` rebuilds one model. It checks the model, prepares a `_Plan`, and lets a `_Rebuild` walk through the graph with
`keras.models.clone_model`. A model that is nested in it gets a `_Rebuild` of its own, with the same plan. The walk sees
each layer twice: Keras asks for a copy of it, then has the copy called on tensors of the new model.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras

from diffstride_hybrid.common.errors import one_line
from diffstride_hybrid.layers.input_checks import Size
from diffstride_hybrid.model_tools.inspection import first_argument, leaf_layers
from diffstride_hybrid.model_tools.selection import POOLINGS, Chooser, Selection, is_padding

_CANNOT_FOLLOW = "Layer {} cannot follow a map of another size: {} Exclude what is before it."

_DROP_IN = {"mask": "symmetric", "norm": "forward"}
"""Defaults for a drop-in: a window that weighs both signs of a frequency alike, and a mean that is preserved."""


class Replacement(NamedTuple):
    """One layer that was replaced.

    Attributes:
        layer: name of the layer.
        kind: name of the layer's class.
        size_before: (height, width) of the layer's input and of its output in the original model.
        pooling: the layer that pools in its place. Several replaced layers may share one pooling.
    """

    layer: str
    kind: str
    size_before: tuple[Size, Size]
    pooling: keras.layers.Layer


def swap(
    model: keras.Model,
    pooling_cls: Callable[..., keras.layers.Layer],
    include: Selection | None,
    exclude: Selection | None,
    input_shape: Sequence[int] | None,
    options: dict[str, Any],
    keep_max: bool,
    keep_macs: bool,
) -> tuple[keras.Model, list[Replacement]]:
    """Rebuilds a model, and the models nested in it, with poolings in place of downsampling layers.

    Args:
        model: a built functional or Sequential model with one input.
        pooling_cls: makes a pooling from the arguments `strides`, `data_format`, `dtype`, `name` and `options`.
        include: the layers to replace, of those that downsample. All of them if None.
        exclude: the layers to keep. No layer if None.
        input_shape: (height, width, channels) of an image. The model's own if None.
        options: further arguments of `pooling_cls`.
        keep_max: whether a max pooling takes its maximum at stride 1 before the new pooling.
        keep_macs: whether the pooling comes before a strided convolution instead of after it.

    Returns:
        The new model, and the layers that were replaced, in the order of the original model.

    Raises:
        ValueError: the model cannot be taken apart or rebuilt, or a selection does not fit it.
        TypeError: a selection is not a name, names or a function of a layer.
    """
    chooser = Chooser(include, exclude)
    _check_graph(model)
    if len(model.inputs) != 1:
        raise ValueError(f"{model.name} must have one input, got {len(model.inputs)}.")
    (entry,) = model.inputs
    shape = tuple(entry.shape[1:] if input_shape is None else input_shape)
    if len(shape) != 3 or None in shape:
        raise ValueError(f"{model.name} needs input_shape=(height, width, channels) of an image, got {shape}.")
    chooser.check(model)
    poolings = _Poolings(pooling_cls, options, {layer.name for layer in leaf_layers(model)})
    tensors = [keras.KerasTensor((None, *shape), entry.dtype)]
    plan = _Plan(chooser, poolings, keep_max, keep_macs)
    return _Rebuild(plan, model).result(tensors, tensors), poolings.replacements


def _check_graph(model: keras.Model) -> None:
    if isinstance(model, keras.Sequential) and not model.built:
        raise ValueError(f"{model.name} must be built: call it on an image, or give it an Input.")
    if not getattr(model, "inputs", None):
        raise ValueError(
            f"{model.name} must be a functional or Sequential model: what a {type(model).__name__} calls in code "
            "of its own cannot be taken apart."
        )


class _Poolings:
    """Makes the poolings, one for each pair of map sizes, so that branches that meet again agree in size."""

    def __init__(self, pooling_cls: Callable[..., keras.layers.Layer], options: dict[str, Any], names: set[str]):
        self.replacements: list[Replacement] = []
        parameters = inspect.signature(pooling_cls).parameters
        self._pooling_cls = pooling_cls
        self._options = {name: value for name, value in _DROP_IN.items() if name in parameters} | options
        self._names = names
        self._has_limits = "upper_limit_stride" in parameters
        self._made: dict[tuple[Size, Size, str], tuple[keras.layers.Layer, keras.Model]] = {}

    def replacing(self, layer: keras.layers.Layer, model: keras.Model, before: Size, after: Size) -> keras.layers.Layer:
        """The pooling that replaces a layer of a model, which took maps of size `before` to maps of size `after`."""
        key = (before, after, layer.data_format)
        if key not in self._made:
            self._made[key] = self._new(layer), model
        pooling, owner = self._made[key]
        if owner is not model:
            raise ValueError(
                f"Layer {layer.name} of {model.name} would share {pooling.name} with {owner.name}, and Keras cannot "
                "load what nested models share. Exclude one of the two, or make one model of them."
            )
        self.replacements.append(Replacement(layer.name, type(layer).__name__, (before, after), pooling))
        return pooling

    def _new(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        strides = tuple(float(stride) for stride in layer.strides)
        options = {"strides": strides, **self._options}
        if min(strides) == 1.0 and self._has_limits and "strides" not in self._options:
            # The layer does not pool along one axis, such as over the electrodes of an EEG, and neither shall this.
            limits = tuple(1.0 if stride == 1.0 else None for stride in strides)
            options = {"upper_limit_stride": limits, **options}
        name = self._new_name(f"{layer.name}_downsampling")
        return self._pooling_cls(data_format=layer.data_format, dtype=layer.dtype_policy, name=name, **options)

    def _new_name(self, name: str) -> str:
        """The name, with a number if it is taken: one layer may downsample maps of several sizes."""
        candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
        found = next(candidate for candidate in candidates if candidate not in self._names)
        self._names.add(found)
        return found


@dataclasses.dataclass
class _Plan:
    """All that a model and the models nested in it share while they are rebuilt.

    Attributes:
        chooser: tells which layers are replaced.
        poolings: makes the layers that replace them.
        keep_max: whether a max pooling takes its maximum at stride 1 before the new pooling.
        keep_macs: whether the pooling comes before a strided convolution instead of after it.
        copies: (copy, original) by the id of the original, so that a layer that several models call has one copy.
        nested: the new model by the id of a nested model, so that a model that is called twice stays one model.
    """

    chooser: Chooser
    poolings: _Poolings
    keep_max: bool
    keep_macs: bool
    copies: dict[int, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    nested: dict[int, keras.Model] = dataclasses.field(default_factory=dict)

    def drops(self, layer: Any) -> bool:
        """Whether nothing of a layer stays beside the pooling that replaces it."""
        stays = not isinstance(layer, POOLINGS) or (self.keep_max and isinstance(layer, keras.layers.MaxPooling2D))
        return self.chooser.replaces(layer) and not stays


class _Rebuild:
    """Rebuilds one model: `result` starts `clone_model`, which calls `_copied` for each layer, then `_call`."""

    def __init__(self, plan: _Plan, model: keras.Model):
        self._plan = plan
        self._model = model
        self._called: list[keras.layers.Layer] = []
        self._originals: dict[int, tuple[Any, Any]] = {}
        # These two hold the tensors beside their ids to keep them alive: Python reuses the ids of dead objects.
        self._specs: dict[int, tuple[Any, keras.KerasTensor]] = {}
        self._unpadded: dict[int, tuple[Any, Any]] = {}

    def result(self, inputs: Sequence[Any], specs: Sequence[Any]) -> keras.Model:
        """The new model.

        Args:
            inputs: the tensors that the new model takes.
            specs: the tensors that the original model took in their place.
        """
        view = _uncompiled(self._model)
        entries = [
            keras.Input(tensor.shape[1:], dtype=entry.dtype, name=entry.name)
            for entry, tensor in zip(self._model.inputs, inputs)
        ]
        self._note_specs(entries, specs)
        copy = keras.models.clone_model(
            view,
            input_tensors=keras.tree.pack_sequence_as(view.input, entries),
            clone_function=self._copied,
            call_function=self._call,
        )
        self._carry_weights_over()
        if not isinstance(self._model, keras.Sequential):
            return copy
        # A padding that is left out was called as well, but is not part of the new graph.
        in_graph = set(map(id, copy.layers))
        chain = [layer for layer in self._called if id(layer) in in_graph]
        return keras.Sequential([copy.inputs[0], *chain], name=self._model.name)

    # --- What clone_model asks for ---

    def _copied(self, layer: Any) -> Any:
        """A copy of a layer; the layer itself if the new model will call another layer or model in its place."""
        if id(layer) not in self._plan.copies:
            is_called = not isinstance(layer, keras.Model) and not self._plan.drops(layer)
            self._plan.copies[id(layer)] = (self._new_copy(layer) if is_called else layer, layer)
        copy, _ = self._plan.copies[id(layer)]
        self._originals[id(copy)] = self._plan.copies[id(layer)]
        return copy

    def _call(self, copy: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a copy, or what replaces it, and notes which tensors the original gave."""
        _, original = self._originals.get(id(copy), (copy, copy))
        spec_args, spec_kwargs = keras.tree.map_structure(self._spec_of, (args, kwargs))
        spec = original.compute_output_spec(*spec_args, **spec_kwargs)
        if self._plan.chooser.replaces(original):
            outputs = self._pooled(original, copy, first_argument(args, kwargs), spec)
        elif isinstance(original, keras.Model):
            outputs = self._run(self._nested(original, first_argument(args, kwargs)), *args, **kwargs)
        else:
            outputs = self._run(copy, *args, **kwargs)
        self._note_specs(outputs, spec)
        if is_padding(original):
            self._unpadded[id(outputs)] = (outputs, first_argument(args, kwargs))
        return outputs

    # --- Copies ---

    def _new_copy(self, layer: Any) -> Any:
        if isinstance(layer, keras.layers.Lambda):
            return keras.layers.Lambda(
                layer.function, mask=layer.mask, arguments=layer.arguments, name=layer.name, dtype=layer.dtype_policy
            )
        try:
            config = layer.get_config()
            # Pass functions on as they are: Keras finds only registered functions by the name in a config.
            functions = {name: getattr(layer, name, None) for name in config}
            config |= {name: value for name, value in functions.items() if isinstance(value, types.FunctionType)}
            if self._plan.chooser.replaces(layer):
                config |= {"strides": (1, 1), "padding": "same"}
            return type(layer).from_config(config)
        except Exception as error:
            raise ValueError(f"Layer {layer.name} cannot be copied: {one_line(error)}") from error

    def _carry_weights_over(self) -> None:
        for copy, original in self._originals.values():
            if copy is original or not isinstance(original, keras.layers.Layer) or not original.weights:
                continue
            try:
                copy.set_weights(original.get_weights())
            except ValueError as error:
                raise ValueError(_CANNOT_FOLLOW.format(original.name, one_line(error))) from error
            for layer in (copy, *leaf_layers(copy)):
                # keras.layers.Normalization computes with values that it derives from its weights only here.
                if hasattr(layer, "finalize_state"):
                    layer.finalize_state()

    # --- Calls ---

    def _run(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            outputs = layer(*args, **kwargs)
        except Exception as error:
            raise ValueError(_CANNOT_FOLLOW.format(layer.name, one_line(error))) from error
        self._called.append(layer)
        return outputs

    def _pooled(self, original: keras.layers.Layer, copy: Any, inputs: Any, spec: Any) -> Any:
        """Calls the pooling, and before it what stays of the original at stride 1: a convolution or a maximum."""
        inputs = self._without_padding(original, inputs)
        before, after = (_spatial_size(original, tensor.shape) for tensor in (self._spec_of(inputs), spec))
        pooling = self._plan.poolings.replacing(original, self._model, before, after)
        if self._plan.drops(original):
            return self._run(pooling, inputs)
        if self._plan.keep_macs and not isinstance(original, POOLINGS):
            return self._run(copy, self._run(pooling, inputs))
        return self._run(pooling, self._run(copy, inputs))

    def _nested(self, model: keras.Model, inputs: Any) -> keras.Model:
        """The new model for a model that is a layer of this one."""
        if id(model) not in self._plan.nested:
            _check_graph(model)
            specs = keras.tree.map_structure(self._spec_of, inputs)
            nested = _Rebuild(self._plan, model).result(keras.tree.flatten(inputs), keras.tree.flatten(specs))
            self._plan.nested[id(model)] = nested
        return self._plan.nested[id(model)]

    def _without_padding(self, layer: keras.layers.Layer, inputs: Any) -> Any:
        """The map before it was padded for a layer that downsamples: that layer now pads by padding='same'."""
        _, unpadded = self._unpadded.get(id(inputs), (None, inputs))
        channels = 3 if layer.data_format == "channels_last" else 1
        return unpadded if unpadded.shape[channels] == inputs.shape[channels] else inputs

    # --- Which tensors the original model has in place of those of the new model ---

    def _note_specs(self, tensors: Any, specs: Any) -> None:
        for tensor, spec in zip(keras.tree.flatten(tensors), keras.tree.flatten(specs)):
            self._specs[id(tensor)] = (tensor, spec)

    def _spec_of(self, tensor: Any) -> Any:
        return self._specs[id(tensor)][1] if id(tensor) in self._specs else tensor


def _uncompiled(model: keras.Model) -> keras.Model:
    """A functional model of the same graph that is not compiled: Keras would compile a copy like its original."""
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs, model.outputs, name=model.name)
    plain = keras.Model(model.input, model.output, name=model.name)
    own, spec = (inspect.getfullargspec(type(each).__init__) for each in (model, plain))
    takes_a_graph = own.args == spec.args or (own.varargs and own.varkw)
    return type(model)(model.input, model.output, name=model.name) if takes_a_graph else plain


def _spatial_size(layer: keras.layers.Layer, shape: Sequence[int]) -> Size:
    return tuple(shape[1:3] if layer.data_format == "channels_last" else shape[2:4])
