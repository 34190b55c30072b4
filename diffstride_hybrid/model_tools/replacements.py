"""Makes the layers that replace others in a swapped model, and keeps a list of them."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras

from diffstride_hybrid.common.errors import one_line
from diffstride_hybrid.layers.input_checks import Size
from diffstride_hybrid.layers.spectral_resizing import SpectralResizing

_DROP_IN = {"mask": "symmetric", "norm": "forward"}
"""Defaults for a drop-in: a window that weighs both signs of a frequency alike, and a mean that is preserved."""


class Replacement(NamedTuple):
    """One layer that was replaced.

    Attributes:
        layer: name of the layer.
        kind: name of the layer's class.
        size_before: (height, width) of the layer's input and of its output in the original model.
        pooling: the layer that pools or resizes in its place. Several replaced layers may share one pooling.
    """

    layer: str
    kind: str
    size_before: tuple[Size, Size]
    pooling: keras.layers.Layer


class Replacements:
    """Makes poolings and resizings.

    Args:
        pooling_cls: makes a pooling from the arguments `strides`, `data_format`, `dtype`, `name` and `options`.
        options: further arguments of `pooling_cls`.
        names: the names that new layers must not have.
        data_format: of the maps of the model.
    """

    def __init__(
        self,
        pooling_cls: Callable[..., keras.layers.Layer],
        options: dict[str, Any],
        names: set[str],
        data_format: str,
    ):
        self.made: list[Replacement] = []
        self._pooling_cls = pooling_cls
        bound = dict(getattr(pooling_cls, "keywords", {}))  # Of a functools.partial.
        for name in ("data_format", "dtype", "name"):  # The replaced layer decides these.
            bound.pop(name, None)
        self._options = {
            **{name: value for name, value in _DROP_IN.items() if _takes(pooling_cls, options, name, value)},
            **bound,
            **options,
        }
        self._names = set(names)
        self._data_format = data_format
        self._has_limits = _takes(pooling_cls, options, "upper_limit_stride", None)
        self._global: dict[int, keras.layers.Layer] = {}
        self._poolings: dict[tuple[Size, Size, str], tuple[keras.layers.Layer, keras.Model]] = {}

    def pooling(self, layer: keras.layers.Layer, model: keras.Model, sizes: tuple[Size, Size]) -> keras.layers.Layer:
        """The pooling that replaces a layer: one for each pair of sizes, so that branches that meet agree in size.

        Args:
            layer: a layer that downsamples.
            model: the model whose layer it is.
            sizes: (height, width) of the layer's input and of its output.

        Raises:
            ValueError: two models would share the pooling.
        """
        key = (*sizes, layer.data_format)
        if key not in self._poolings:
            self._poolings[key] = self._new_pooling(layer), model
        pooling, owner = self._poolings[key]
        if owner is not model:
            raise ValueError(
                f"Layer {layer.name} of {model.name} would share {pooling.name} with {owner.name}, and Keras cannot "
                "load what nested models share. Exclude one of the two, or make one model of them."
            )
        self.made.append(Replacement(layer.name, type(layer).__name__, sizes, pooling))
        return pooling

    def global_pooling(self, layer: keras.layers.Layer, sizes: tuple[Size, Size], name: str) -> keras.layers.Layer:
        """The global pooling that replaces a pooling over the whole map: a learned stride would change nothing there.

        Args:
            layer: an average or max pooling whose window covers its input.
            sizes: (height, width) of the layer's input and of its output.
            name: of the global pooling, if the layer has none yet.
        """
        if id(layer) not in self._global:
            takes_maximum = isinstance(layer, keras.layers.MaxPooling2D)
            pooling_cls = keras.layers.GlobalMaxPooling2D if takes_maximum else keras.layers.GlobalAveragePooling2D
            self._global[id(layer)] = pooling_cls(
                data_format=layer.data_format, keepdims=True, name=name, dtype=layer.dtype_policy
            )
        pooling = self._global[id(layer)]
        self.made.append(Replacement(layer.name, type(layer).__name__, sizes, pooling))
        return pooling

    def resizing(self, operation: Any, sizes: tuple[Size, Size], output_size: Size | None = None) -> keras.layers.Layer:
        """A resizing that replaces a layer or operation, or stands before it.

        Args:
            operation: the layer or other operation.
            sizes: (height, width) of its input and of its result.
            output_size: the size that the resizing gives. If None, it is called with a map of that size.
        """
        resizing = SpectralResizing(
            output_size=output_size,
            norm=self._options.get("norm", _DROP_IN["norm"]),
            data_format=self.data_format(operation),
            dtype=getattr(operation, "dtype_policy", None),
            name=self.new_name(f"{operation.name}_resizing"),
        )
        self.made.append(Replacement(operation.name, type(operation).__name__, sizes, resizing))
        return resizing

    def data_format(self, operation: Any) -> str:
        """The data format of an operation; that of the model if the operation has none.

        Args:
            operation: a layer, or an operation that is not a layer.
        """
        if isinstance(operation, keras.layers.Flatten):  # Its own one is that of Keras, whatever the maps are.
            return self._data_format
        return getattr(operation, "data_format", None) or self._data_format

    def new_name(self, name: str) -> str:
        """The name, with a number if it is taken: one layer may downsample maps of several sizes.

        Args:
            name: the name that a layer shall have.
        """
        candidates = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(1)))
        found = next(candidate for candidate in candidates if candidate not in self._names)
        self._names.add(found)
        return found

    def _new_pooling(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        strides = tuple(float(stride) for stride in layer.strides)
        options = {"strides": strides, **self._options}
        if min(strides) == 1.0 and self._has_limits and "strides" not in self._options:
            # The layer does not pool along one axis, such as over the electrodes of an EEG, and neither shall this.
            if options.get("shared_stride"):
                raise ValueError(
                    f"Layer {layer.name} pools along one axis alone, by {strides}, so a pooling with "
                    "shared_stride=True cannot replace it: exclude it."
                )
            limits = {"upper_limit_stride": options.get("upper_limit_stride")}
            limits |= {name: options[name] for name in ("lower_limit_stride",) if name in options}
            for name, limit in limits.items():
                pair = tuple(limit) if isinstance(limit, Sequence) else (limit, limit)
                options[name] = tuple(1.0 if stride == 1.0 else each for stride, each in zip(strides, pair))
        name = self.new_name(f"{layer.name}_downsampling")
        try:
            return self._pooling_cls(data_format=layer.data_format, dtype=layer.dtype_policy, name=name, **options)
        except (TypeError, ValueError) as error:
            if "keyword argument" not in str(error):
                raise
            raise type(error)(f"pooling_cls does not take what is handed on to it: {one_line(error)}") from error


def _takes(pooling_cls: Callable[..., keras.layers.Layer], options: dict[str, Any], name: str, value: Any) -> bool:
    """Whether a constructor takes an argument, by its own name for it or by **kwargs that it hands on.

    What becomes of **kwargs is found by making a layer: a constructor of a derived class may give the argument itself.
    """
    parameters = inspect.signature(pooling_cls).parameters
    if name in parameters:
        return True
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return False
    probe = {"strides": (2.0, 2.0), "data_format": "channels_last", "dtype": "float32", "name": "probe", name: value}
    try:
        pooling_cls(**probe | options)
    except (TypeError, ValueError):
        return False
    return True
