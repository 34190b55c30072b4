"""`replace_downsampling`: puts poolings of this package into a Keras model in place of its own downsampling."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from diffstride_hybrid.backends.current import SIZE_ERRORS
from diffstride_hybrid.common.arguments import validated_flag
from diffstride_hybrid.common.errors import one_line
from diffstride_hybrid.layers.diffstride import DiffStride
from diffstride_hybrid.layers.input_checks import Size
from diffstride_hybrid.model_tools.calibration import Images, recalibrate_normalization
from diffstride_hybrid.model_tools.inspection import (
    blank_inputs,
    diffstride_layers,
    leaf_layers,
    replaced_calls,
    run_on_blank,
    running_call,
)
from diffstride_hybrid.model_tools.macs import macs
from diffstride_hybrid.model_tools.replacements import Replacement
from diffstride_hybrid.model_tools.selection import Selection, keeping_strides
from diffstride_hybrid.model_tools.swap import checked_image_shape, swap


def replace_downsampling(
    model: keras.Model,
    pooling_cls: Callable[..., keras.layers.Layer] = DiffStride,
    *,
    include: Selection | None = None,
    exclude: Selection | None = None,
    input_shape: Sequence[int] | None = None,
    keep_max: bool = True,
    keep_macs: bool = False,
    calibrate: Images | None = None,
    report: Callable[[str], None] | None = None,
    **options: Any,
) -> keras.Model:
    """Makes a copy of a model in which a pooling of this package does the downsampling.

    Average pooling with strides is replaced by the pooling. A max pooling stays as a maximum at stride 1, followed by
    the pooling. A strided `Conv2D`, `DepthwiseConv2D` or `SeparableConv2D` becomes the same convolution at stride 1,
    followed by the pooling. At stride 1 a layer gives at every s-th position what it gave there with its stride s, so
    that branches that meet still show the same place. If padding='same' does not do that, a `ZeroPadding2D` goes before
    the layer; a `ZeroPadding2D` or `keras.ops.pad` that was straight before it is left out, and counted. The new zeros
    around a max pooling win over values below 0 in the outermost rows and columns. Layers that took maps of one size to
    maps of another size share one pooling, so that branches that meet again agree in size whatever the strides become.
    All other layers are copied, and the copies get the weights of their originals. Layers that another layer calls in
    its own code keep their strides; the report names them.

    A layer that enlarges maps whose size has changed (`UpSampling2D`, `Conv2DTranspose` with strides, `Resizing`)
    becomes a `SpectralResizing` to the size of the map that its result is joined with, or else of the last map before
    it of the same size; a crop or a padding that trimmed its result is left out. A transposed convolution becomes that
    resizing, followed by a convolution at stride 1 with its kernel turned round and divided by the product of its
    strides, at the same place on the map. If there is such a layer, nested models are taken apart. Maps that are
    flattened are first resized to the size that they had. An average or max pooling over the whole map becomes a global
    one.

    Args:
        model: a built functional or Sequential model of images. It is not changed.
        pooling_cls: called as `pooling_cls(strides=…, data_format=…, dtype=…, name=…, **options)`.
        include: the layers to replace, of those that downsample: a name, names, or a function that takes a layer and
            returns whether it is meant. All of them if None.
        exclude: the layers to keep, given in the same way, those that enlarge maps among them. No layer if None.
        input_shape: (height, width, channels) of an image, needed if the model takes images of any size. The new model
            still takes images of any size.
        keep_max: whether the maximum of a max pooling is kept. If not, the pooling alone replaces it, which costs
            accuracy until the model is trained on.
        keep_macs: whether the pooling comes before a strided convolution instead of after it. With a pooling that gives
            the size that the convolution gave, such as `SpectralPooling`, the model then costs no more than before, but
            for the pooling itself; the window of a `DiffStride` keeps up to `2 * smoothness_factor` samples more along
            each axis. The convolution sees a map without the frequencies that the pooling removes, and its kernel,
            which has padding 'same' there, covers more of the image, so it needs more training. The convolution of a
            transposed one comes before the resizing, likewise.
        calibrate: images, as `recalibrate_normalization` takes them, from which batch normalization gets its statistics
            anew in the swapped model. The present ones stay if None. There is a warning if the model has no batch
            normalization.
        report: a function such as `print`, called with a table of the layers that were replaced, with their sizes and
            the multiply-accumulate operations of the model before and after.
        **options: for `pooling_cls`. If not given, `strides` are those of the replaced layer; and `mask='symmetric'`
            and `norm='forward'` are set if `pooling_cls` has these parameters, as a drop-in needs them.

    Returns:
        A model of the same class that is not compiled. It is a plain `keras.Model` if the class cannot be made from
        inputs and outputs.

    Raises:
        ValueError: the model cannot be taken apart, it lacks a layer that a selection names, nothing in it is to be
            replaced, one of its layers cannot follow a map of another size, a layer enlarges a map to a size that no
            map before it has, or nested models would share a pooling.
        TypeError: a selection is not a name, names or a function of a layer, `keep_max` or `keep_macs` is no bool, or
            `report` is no function.

    Example:
        >>> inputs = keras.Input((32, 32, 3))
        >>> x = keras.layers.Conv2D(8, 3, strides=2, padding="same", name="stem")(inputs)
        >>> model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(keras.layers.ReLU()(x)))
        >>> swapped = replace_downsampling(model, smoothness_factor=2.0)
        >>> swapped.get_layer("stem").strides, swapped.get_layer("stem_downsampling").strides.numpy()
        ((1, 1), array([2., 2.], dtype=float32))
    """
    validated_flag("keep_max", keep_max)
    validated_flag("keep_macs", keep_macs)
    if report is not None and not callable(report):
        raise TypeError(f"report must be a function such as print, got {report!r}.")
    shape = checked_image_shape(model, input_shape)
    swapped, replacements = swap(model, pooling_cls, include, exclude, shape, options, keep_max, keep_macs)
    sizes = _checked_sizes(swapped, shape)
    calibrated = None if calibrate is None else recalibrate_normalization(swapped, calibrate)
    if calibrated == []:
        warnings.warn(
            f"{model.name} has no batch normalization, so `calibrate` changes nothing: train the new model on.",
            stacklevel=2,
        )
    if report is not None:
        report(_table(model, swapped, shape, replacements, sizes, calibrated))
    return swapped


def _checked_sizes(model: keras.Model, shape: Sequence[int]) -> dict[str, tuple[Size, Size]]:
    """The sizes before and after each pooling, by its path; raises ValueError if branches that meet do not agree."""
    sizes = _present_sizes(model, shape)
    if learned := diffstride_layers(model):
        with _moved_strides(learned):  # At the initial strides branches may agree by chance.
            _present_sizes(model, shape)
    return sizes


_GOLDEN_RATIO = 0.618  # Its multiples are spread evenly, and no two of them are the same.


@contextlib.contextmanager
def _moved_strides(layers: Sequence[DiffStride]) -> Iterator[None]:
    """A context in which each pooling has smaller strides, by another factor than all others."""
    strides = [keras.ops.convert_to_numpy(layer.strides) for layer in layers]
    try:
        for place, (layer, values) in enumerate(zip(layers, strides)):
            layer.strides.assign(np.maximum(values * (0.7 + 0.25 * ((place + 1) * _GOLDEN_RATIO % 1)), 1))
        yield
    finally:
        for layer, values in zip(layers, strides):
            layer.strides.assign(values)


def _present_sizes(model: keras.Model, shape: Sequence[int]) -> dict[str, tuple[Size, Size]]:
    try:
        return macs(model, shape).pooling_sizes()
    except SIZE_ERRORS as error:
        raise ValueError(
            f"The maps of {model.name} do not fit together any more {_place_of_error(model, shape)}: {one_line(error)} "
            "Exclude some of its layers."
        ) from error


def _place_of_error(model: keras.Model, shape: Sequence[int]) -> str:
    """The place in a model where a call on an image raises."""
    running: list[str] = []
    done = ["input"]

    def tracked(layer: keras.layers.Layer) -> Callable[..., Any]:
        call = running_call(layer)

        def tracked_call(*args: Any, **kwargs: Any) -> Any:
            running.append(layer.name)
            outputs = call(*args, **kwargs)
            done.append(running.pop())
            return outputs

        return tracked_call

    with replaced_calls(leaf_layers(model), tracked), contextlib.suppress(Exception):
        run_on_blank(model, blank_inputs(model, shape))
    return f"at layer {running[-1]}" if running else f"after layer {done[-1]}"


def _table(
    before: keras.Model,
    after: keras.Model,
    shape: Sequence[int],
    replacements: Sequence[Replacement],
    sizes: dict[str, tuple[Size, Size]],
    calibrated: Sequence[str] | None,
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
    if calibrated is not None:
        lines.append(f"statistics taken anew: {', '.join(calibrated) or 'none'}")
    return "\n".join(lines)


def _sizes(sizes: tuple[Size, Size]) -> str:
    return " to ".join("x".join(map(str, size)) for size in sizes)
