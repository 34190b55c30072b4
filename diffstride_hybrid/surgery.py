"""Putting a pooling of this package into a Keras model in place of its own downsampling."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from diffstride_hybrid import complexity
from diffstride_hybrid.errors import one_line
from diffstride_hybrid.pooling import DiffStride, Size

Selection = str | Sequence[str] | Callable[[keras.layers.Layer], bool]
"""Layers by name, by names, or by a predicate."""

_POOLINGS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)

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


def replace_downsampling(
    model: keras.Model,
    pooling_cls: Callable[..., keras.layers.Layer] = DiffStride,
    *,
    include: Selection | None = None,
    exclude: Selection | None = None,
    input_shape: Sequence[int] | None = None,
    report: Callable[[str], None] | None = None,
    **options: Any,
) -> keras.Model:
    """Makes a model like another one, but for its downsampling, which it leaves to `pooling_cls`.

    Max and average pooling with strides is replaced by the pooling. A strided `Conv2D`, `DepthwiseConv2D` or
    `SeparableConv2D` becomes the same convolution at stride 1 with padding 'same', followed by the pooling; a
    `ZeroPadding2D` straight before one is left out. Layers that took maps of one size to maps of another one share one
    pooling, so that branches which meet again agree in size whatever the strides become. All other layers are copied,
    and weights are carried over layer by layer.

    Args:
        model: a built functional or Sequential model. It is left as it is.
        pooling_cls: called as `pooling_cls(strides=…, data_format=…, dtype=…, name=…, **options)`.
        include: which of the layers that downsample to replace. All where None.
        exclude: which of them to keep.
        input_shape: (height, width, channels) of an image, for a model that takes any size.
        report: called with a table of what was replaced, with sizes and MACs before and after, such as `print`.
        **options: for `pooling_cls`. `strides` are those of the layer where not given, and `mask='symmetric'` and
            `norm='forward'`, what a drop-in needs, where it takes them.

    Returns:
        A model of the same kind.

    Raises:
        ValueError: the model cannot be taken apart, nothing in it is to be replaced, or one of its layers cannot follow
            a map of another size.
    """
    swap = _Swap(pooling_cls, include, exclude, options)
    swapped = swap.model(model, input_shape)
    if not swap.replacements:
        raise ValueError(f"{model.name} has no layer to replace: no pooling or convolution with strides is selected.")
    shape = swapped.input_shape[1:]
    sizes = _checked_sizes(swapped, shape)
    if report is not None:
        report(_table(model, swapped, shape, swap.replacements, sizes))
    return swapped


class _Swap:
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
        self._include = _predicate("include", include, default=True)
        self._exclude = _predicate("exclude", exclude, default=False)
        parameters = inspect.signature(pooling_cls).parameters
        self._options = {name: value for name, value in _DROP_IN.items() if name in parameters} | options
        self._poolings: dict[tuple[Size, Size], keras.layers.Layer] = {}
        self._nested: dict[int, keras.Model] = {}

    def model(self, model: keras.Model, input_shape: Sequence[int] | None = None) -> keras.Model:
        """Swaps one model."""
        is_sequential = isinstance(model, keras.Sequential)
        if is_sequential and not model.built:
            raise ValueError(f"{model.name} must be built: call it on an image, or give it an Input.")
        if not getattr(model, "inputs", None):
            raise ValueError(
                f"{model.name} must be a functional or Sequential model: what a {type(model).__name__} calls in code "
                "of its own cannot be taken apart."
            )
        if len(model.inputs) != 1:
            raise ValueError(f"{model.name} must have one input, got {len(model.inputs)}.")
        (entry,) = model.inputs
        shape = tuple(entry.shape[1:] if input_shape is None else input_shape)
        if len(shape) != 3 or None in shape:
            raise ValueError(f"{model.name} needs input_shape=(height, width, channels) of an image, got {shape}.")
        walk = _Walk(self)
        view = keras.Model(model.inputs, model.outputs, name=model.name) if is_sequential else model
        images = keras.Input(shape, dtype=entry.dtype, name=entry.name)
        copy = keras.models.clone_model(
            view,
            input_tensors=keras.tree.pack_sequence_as(view.input, [images]),
            clone_function=walk.copied,
            call_function=walk.call,
        )
        walk.carry_weights_over()
        return keras.Sequential([copy.inputs[0], *walk.called], name=model.name) if is_sequential else copy

    def nested(self, model: keras.Model, input_shape: Sequence[int]) -> keras.Model:
        """Swaps a model that is a layer of another one. The same object where it is used again."""
        if id(model) not in self._nested:
            self._nested[id(model)] = self.model(model, input_shape)
        return self._nested[id(model)]

    def replaces(self, layer: Any) -> bool:
        """Whether a layer downsamples and is selected."""
        if type(layer) not in (*_POOLINGS, *_CONVOLUTIONS) or max(layer.strides) == 1:
            return False
        return self._include(layer) and not self._exclude(layer)

    def pooling(self, layer: keras.layers.Layer, before: Size, after: Size) -> keras.layers.Layer:
        """The pooling that stands for a layer which took maps of one size to those of another."""
        if (before, after) not in self._poolings:
            options = {"strides": tuple(float(stride) for stride in layer.strides), **self._options}
            self._poolings[before, after] = self._pooling_cls(
                data_format=layer.data_format,
                dtype=layer.dtype_policy,
                name=f"{layer.name}_downsampling",
                **options,
            )
        pooling = self._poolings[before, after]
        self.replacements.append(Replacement(layer.name, type(layer).__name__, (before, after), pooling))
        return pooling


class _Walk:
    """What `keras.models.clone_model` asks for on its way through one model."""

    def __init__(self, swap: _Swap):
        self.called: list[keras.layers.Layer] = []
        self._swap = swap
        self._originals: dict[int, tuple[Any, Any]] = {}
        # The tensors are kept with what is known of them, as only that keeps their ids from being used again.
        self._specs: dict[int, tuple[Any, keras.KerasTensor]] = {}
        self._unpadded: dict[int, tuple[Any, Any]] = {}

    def copied(self, layer: Any) -> Any:
        """A layer like the given one, or that one where it will not be called."""
        copy = layer
        if isinstance(layer, keras.layers.Lambda):
            copy = keras.layers.Lambda(layer.function, arguments=layer.arguments, name=layer.name)
        elif not isinstance(layer, keras.Model) and not (isinstance(layer, _POOLINGS) and self._swap.replaces(layer)):
            copy = self._from_config(layer)
        self._originals[id(copy)] = (copy, layer)
        return copy

    def _from_config(self, layer: Any) -> Any:
        config = layer.get_config()
        if self._swap.replaces(layer):
            config |= {"strides": (1, 1), "padding": "same"}
        try:
            return type(layer).from_config(config)
        except Exception as error:
            raise ValueError(f"Layer {layer.name} cannot be copied: {one_line(error)}") from error

    def call(self, copy: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a copy, or what stands for it, and notes what the original gives."""
        _, original = self._originals.get(id(copy), (copy, copy))
        spec_args, spec_kwargs = keras.tree.map_structure(self._spec_of, (args, kwargs))
        spec = original.compute_output_spec(*spec_args, **spec_kwargs)
        outputs = self._outputs(original, copy, spec, args, kwargs)
        for output, expected in zip(keras.tree.flatten(outputs), keras.tree.flatten(spec)):
            self._specs[id(output)] = (output, expected)
        if isinstance(original, keras.layers.ZeroPadding2D):
            self._unpadded[id(outputs)] = (outputs, args[0])
        return outputs

    def carry_weights_over(self) -> None:
        """Gives every copy the weights of its original."""
        for copy, original in self._originals.values():
            if copy is not original and isinstance(original, keras.layers.Layer) and original.weights:
                copy.set_weights(original.get_weights())

    def _spec_of(self, tensor: Any) -> Any:
        return self._specs[id(tensor)][1] if id(tensor) in self._specs else tensor

    def _outputs(self, original: Any, copy: Any, spec: Any, args: Any, kwargs: Any) -> Any:
        if self._swap.replaces(original):
            # Padding 'same' takes the place of a layer that pads.
            _, inputs = self._unpadded.get(id(args[0]), (None, args[0]))
            before, after = (_spatial_size(original, tensor.shape) for tensor in (self._spec_of(inputs), spec))
            pooling = self._swap.pooling(original, before, after)
            if not isinstance(original, _POOLINGS):
                inputs = self._called(copy, inputs)
            return self._called(pooling, inputs)
        if isinstance(original, keras.Model):
            copy = self._swap.nested(original, self._spec_of(args[0]).shape[1:])
        return self._called(copy, *args, **kwargs)

    def _called(self, layer: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            outputs = layer(*args, **kwargs)
        except Exception as error:
            raise ValueError(
                f"Layer {layer.name} cannot follow a map of another size: {one_line(error)} Exclude what is before it."
            ) from error
        self.called.append(layer)
        return outputs


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


def _checked_sizes(model: keras.Model, shape: Sequence[int]) -> dict[str, tuple[Size, Size]]:
    """The sizes that each pooling sees, by its path; raises ValueError where branches that meet do not agree."""
    try:
        return complexity.macs(model, shape).pooling_sizes()
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        raise ValueError(
            f"The maps of {model.name} do not fit together any more: {one_line(error)} Exclude some of its layers."
        ) from error


def _table(
    before: keras.Model,
    after: keras.Model,
    shape: Sequence[int],
    replacements: Sequence[Replacement],
    sizes: dict[str, tuple[Size, Size]],
) -> str:
    lines = ["layer                           kind              before              after               pooling"]
    for replacement in replacements:
        earlier = _sizes(replacement.size_before)
        now = _sizes(sizes[replacement.pooling.path]) if replacement.pooling.path in sizes else ""
        lines.append(
            f"{replacement.layer:<30}  {replacement.kind:<16}  {earlier:<18}  {now:<18}  {replacement.pooling.name}"
        )
    macs_before, macs_after = (complexity.macs(model, shape).macs / 1e9 for model in (before, after))
    lines.append(f"{macs_before:.3f} G MACs an image before, {macs_after:.3f} G after, at the initial strides")
    return "\n".join(lines)


def _sizes(sizes: tuple[Size, Size]) -> str:
    return " to ".join("x".join(map(str, size)) for size in sizes)
