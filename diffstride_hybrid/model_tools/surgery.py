"""Putting a pooling of this package into a Keras model in place of its own downsampling."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from diffstride_hybrid.common.errors import one_line
from diffstride_hybrid.layers.diffstride import DiffStride
from diffstride_hybrid.layers.input_checks import Size
from diffstride_hybrid.model_tools.inspection import leaf_layers, replaced_calls, run_blank
from diffstride_hybrid.model_tools.macs import macs
from diffstride_hybrid.model_tools.swap import Replacement, Selection, Swap, keeping_strides


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
    `ZeroPadding2D` or `keras.ops.pad` straight before one is left out. Layers that took maps of one size to maps of
    another one share one pooling, so that branches which meet again agree in size whatever the strides become. All
    other layers are copied, and weights are carried over layer by layer. What a layer calls in code of its own keeps
    its strides; the report names it.

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
        A model of the same kind, not compiled. Plain functional for a class whose `__init__` takes something else.

    Raises:
        ValueError: the model cannot be taken apart, a selection names what it has not, nothing in it is to be replaced,
            one of its layers cannot follow a map of another size, or models in it would share a pooling.
    """
    swap = Swap(pooling_cls, include, exclude, options)
    swapped = swap.outermost(model, input_shape)
    shape = swapped.input_shape[1:]
    sizes = _checked_sizes(swapped, shape)
    if report is not None:
        report(_table(model, swapped, shape, swap.replacements, sizes))
    return swapped


def _checked_sizes(model: keras.Model, shape: Sequence[int]) -> dict[str, tuple[Size, Size]]:
    """The sizes that each pooling sees, by its path; raises ValueError where branches that meet do not agree."""
    try:
        return macs(model, shape).pooling_sizes()
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        raise ValueError(
            f"The maps of {model.name} do not fit together any more {_place(model, shape)}: {one_line(error)} Exclude "
            "some of its layers."
        ) from error


def _place(model: keras.Model, shape: Sequence[int]) -> str:
    """Where in a model a call on an image raises."""
    running: list[str] = []
    done = ["input"]

    def noting(layer: keras.layers.Layer) -> Callable[..., Any]:
        call = layer.call

        def noted(*args: Any, **kwargs: Any) -> Any:
            running.append(layer.name)
            outputs = call(*args, **kwargs)
            done.append(running.pop())
            return outputs

        return noted

    with replaced_calls(leaf_layers(model), noting), contextlib.suppress(Exception):
        run_blank(model, shape)
    return f"at layer {running[-1]}" if running else f"after layer {done[-1]}"


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
    if kept := keeping_strides(after, [replacement.pooling for replacement in replacements]):
        lines.append(f"keeping their strides: {', '.join(kept)}")
    macs_before, macs_after = (macs(model, shape).macs / 1e9 for model in (before, after))
    lines.append(f"{macs_before:.3f} G MACs an image before, {macs_after:.3f} G after, at the initial strides")
    return "\n".join(lines)


def _sizes(sizes: tuple[Size, Size]) -> str:
    return " to ".join("x".join(map(str, size)) for size in sizes)
