"""Finds for each layer that enlarges maps, as in a U-Net, the map whose size its result must have.

The sizes of a network whose strides are learned are not known beforehand, and a fixed factor does not undo a stride. So
each enlarged map takes the size of a map that was there before: the one that it is merged with, or, in a decoder
without such connections, the last one of the same size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from diffstride_hybrid.layers.fourier_pooling import FourierPooling
from diffstride_hybrid.layers.input_checks import Size
from diffstride_hybrid.model_tools.graph import Call, Graph
from diffstride_hybrid.model_tools.selection import Chooser, is_padding, is_resizing, loses_size, resizes

_SPATIAL_AXES = {"channels_last": slice(1, 3), "channels_first": slice(2, 4)}


class Pair(NamedTuple):
    """A call that resizes a map, and the map whose size its result must have.

    Attributes:
        call: the call.
        like: the map, a tensor of the graph.
        trims: the calls straight behind that cropped or padded the result to that size, and that are left out.
        sizes: (height, width) of the call's input, and of its result after the trims.
    """

    call: Call
    like: keras.KerasTensor
    trims: tuple[Call, ...]
    sizes: tuple[Size, Size]

    @property
    def result(self) -> keras.KerasTensor:
        """The tensor that the call gives, or the last of its trims."""
        return (self.call, *self.trims)[-1].outputs[0]


def pair_resizings(graph: Graph, chooser: Chooser) -> list[Pair]:
    """Finds the calls that must take their size from another map when the layers that downsample are replaced.

    Those are the calls whose input has another size then, or whose result is merged with maps of another size.

    Args:
        graph: the graph of a model, with the calls of nested models in it.
        chooser: tells which layers that downsample are replaced, and which layers stay as they are.

    Returns:
        The pairs, in the order of the graph.

    Raises:
        ValueError: a layer enlarges a map by a fixed factor to a size that no map before it has.
    """
    return _Pairing(graph, chooser).pairs()


def data_format_of(graph: Graph) -> str:
    """The data format of most layers of a graph, or else that of Keras.

    Args:
        graph: the graph of a model.
    """
    formats = [getattr(call.operation, "data_format", None) for call in graph.calls]
    given = [each for each in formats if each in _SPATIAL_AXES]
    return max(_SPATIAL_AXES, key=given.count) if given else keras.config.image_data_format()


class _Pairing:
    """The classes of maps in a graph that have one size whatever the strides are, and what ties them together."""

    def __init__(self, graph: Graph, chooser: Chooser):
        self._graph = graph
        self._chooser = chooser
        self._axes = _SPATIAL_AXES[data_format_of(graph)]
        self._consumers: dict[int, list[Call]] = {}
        for call in graph.calls:
            for tensor in call.inputs:
                self._consumers.setdefault(id(tensor), []).append(call)
        self._class_of: dict[int, int] = {}
        self._join_classes()
        self._trims = {id(call): self._trims_behind(call) for call in graph.calls if self._may_resize(call)}

    def pairs(self) -> list[Pair]:
        """The pairs, in the order of the graph."""
        pairs: dict[int, Pair] = {}
        changed: set[int] = set()
        # A call may wait for a map that comes later in the order, so what is changed is found in several passes.
        while True:
            before = len(changed), len(pairs)
            for call in self._graph.calls:
                self._visit(call, pairs, changed)
            if before == (len(changed), len(pairs)):
                return [pairs[id(call)] for call in self._graph.calls if id(call) in pairs]

    def _visit(self, call: Call, pairs: dict[int, Pair], changed: set[int]) -> None:
        """Notes whether a call's result changes its size, and pairs the call first if that is needed."""
        trims = {id(trim) for pair in pairs.values() for trim in pair.trims}
        if id(call) in self._trims and id(call) not in trims:
            if id(call) not in pairs and (pair := self._pair(call, pairs, changed)) is not None:
                pairs[id(call)] = pair
            if id(call) in pairs and id(pairs[id(call)].like) in changed:
                changed.update(id(each.outputs[0]) for each in (call, *pairs[id(call)].trims))
        elif self._chooser.replaces(call.operation) or (
            any(id(tensor) in changed for tensor in call.inputs) and not loses_size(call.operation)
        ):
            changed.update(map(id, call.outputs))

    def _pair(self, call: Call, pairs: dict[int, Pair], changed: set[int]) -> Pair | None:
        """The pair of a call that resizes a map; None if the call can stay as it is."""
        peers = self._peers(call, pairs)
        if not any(id(tensor) in changed for tensor in (*call.inputs, *peers)):
            return None
        result = self._result(call)
        like = self._like(call, peers, pairs)
        if is_resizing(call.operation) and (like is None or id(like) not in changed):
            return None  # It gives a size of its own, and that is right.
        if like is None:
            rows, columns = self._size(result)
            raise ValueError(
                f"Layer {call.operation.name} enlarges a map to {rows}x{columns}, and no map before it has that size. "
                "Exclude it, and it keeps its factor; or exclude what is before it."
            )
        sizes = self._size(call.inputs[0]), self._size(result)
        return Pair(call, like, self._trims[id(call)], sizes)

    # --- Which map gives the size ---

    def _peers(self, call: Call, pairs: dict[int, Pair]) -> list[keras.KerasTensor]:
        """The maps that always have the size of a call's result, and that do not follow from it."""
        key = self._find(id(self._result(call)))
        siblings = [
            each for each in self._graph.calls if id(each) in self._trims and self._find(id(self._result(each))) == key
        ]
        after = self._descendants([self._result(each) for each in siblings], pairs)
        return [tensor for tensor in self._tensors() if self._find(id(tensor)) == key and id(tensor) not in after]

    def _like(self, call: Call, peers: list[keras.KerasTensor], pairs: dict[int, Pair]) -> keras.KerasTensor | None:
        """The map whose size a call's result takes: one of its peers, or else the last one before it of its size."""
        before = self._before(call)
        if peers:
            return next((tensor for tensor in reversed(peers) if id(tensor) in before), peers[0])
        result = self._result(call)
        after = self._descendants([result], pairs)
        fits = [
            tensor
            for tensor in self._tensors()
            if id(tensor) in before and id(tensor) not in after and self._size(tensor) == self._size(result)
        ]
        return fits[-1] if fits else None

    def _descendants(self, tensors: Iterable[keras.KerasTensor], pairs: dict[int, Pair]) -> set[int]:
        """The ids of some tensors and of all that follow from them."""
        sized_by: dict[int, list[keras.KerasTensor]] = {}
        for pair in pairs.values():
            sized_by.setdefault(id(pair.like), []).append(pair.result)
        found: set[int] = set()
        pending = list(tensors)
        while pending:
            tensor = pending.pop()
            if id(tensor) in found:
                continue
            found.add(id(tensor))
            pending += sized_by.get(id(tensor), [])
            pending += [output for call in self._consumers.get(id(tensor), []) for output in call.outputs]
        return found

    def _before(self, call: Call) -> set[int]:
        """The ids of the tensors that are there before a call."""
        found = set(map(id, self._graph.inputs))
        for each in self._graph.calls:
            if each is call:
                break
            found.update(map(id, each.outputs))
        return found

    def _tensors(self) -> Iterator[keras.KerasTensor]:
        yield from self._graph.inputs
        for call in self._graph.calls:
            yield from call.outputs

    # --- Which calls resize, and what trims their results ---

    def _may_resize(self, call: Call) -> bool:
        if not resizes(call.operation) or self._chooser.excludes(call.operation):
            return False
        return self._size(call.inputs[0]) is not None and self._size(call.outputs[0]) is not None

    def _trims_behind(self, call: Call) -> tuple[Call, ...]:
        """The calls straight behind a call that crop or pad its result to the size of another map.

        A result that is merged with such a map is trimmed. Else it is not trimmed if a map has its size as it is: a
        padding behind it is for the next convolution.
        """
        found = self._possible_trims(call)
        later = self._descendants(call.outputs, {})
        others = [tensor for tensor in self._tensors() if id(tensor) not in later]
        classes = {self._find(id(tensor)) for tensor in others}
        sizes = {self._size(tensor) for tensor in others}
        results = [each.outputs[0] for each in (call, *found)]
        merged = [count for count, tensor in enumerate(results) if self._find(id(tensor)) in classes]
        fitting = [count for count, tensor in enumerate(results) if self._size(tensor) in sizes]
        if merged:
            return tuple(found[: merged[-1]])
        return tuple(found[: fitting[-1]]) if fitting and fitting[0] > 0 else ()

    def _possible_trims(self, call: Call) -> list[Call]:
        """The calls straight behind a call that change nothing but its size, by less than its factor or kernel."""
        before, after = self._size(call.inputs[0]), self._size(call.outputs[0])
        kernel = getattr(call.operation, "kernel_size", (0, 0))
        most = [max(2, round(large / small), size) for small, large, size in zip(before, after, kernel)]
        found: list[Call] = []
        tensor = call.outputs[0]
        outputs = set(map(id, self._graph.outputs))
        while id(tensor) not in outputs and len(followers := self._consumers.get(id(tensor), [])) == 1:
            (follower,) = followers
            trimmed = follower.outputs[0]
            if not _trims(follower.operation) or self._others(trimmed) != self._others(tensor):
                break
            if any(abs(a - b) >= limit for a, b, limit in zip(self._size(trimmed), after, most)):
                break
            found.append(follower)
            tensor = trimmed
        return found

    def _others(self, tensor: keras.KerasTensor) -> list[int | None]:
        """The lengths of a map but for its height and width."""
        shape = list(tensor.shape)
        del shape[self._axes]
        return shape

    def _result(self, call: Call) -> keras.KerasTensor:
        return (call, *self._trims[id(call)])[-1].outputs[0]

    # --- Classes of maps of one size ---

    def _join_classes(self) -> None:
        for call in self._graph.calls:
            if _changes_size(call.operation):
                continue
            for output in call.outputs:
                size = self._size(output)
                for tensor in call.inputs:
                    if size is not None and self._size(tensor) == size:
                        self._class_of[self._find(id(tensor))] = self._find(id(output))

    def _find(self, key: int) -> int:
        """The class of a tensor, by the id of the tensor that stands for it."""
        while (parent := self._class_of.get(key, key)) != key:
            key = parent
        return key

    # --- Sizes ---

    def _size(self, tensor: keras.KerasTensor) -> Size | None:
        """(height, width) of a map; None for a tensor that is no map."""
        return tuple(tensor.shape[self._axes]) if len(tensor.shape) == 4 else None


def _trims(operation: Any) -> bool:
    return isinstance(operation, keras.layers.Cropping2D) or is_padding(operation) or is_resizing(operation)


def _changes_size(operation: Any) -> bool:
    """Whether the result of an operation has a size of its own even if that is the size of its input now."""
    if isinstance(operation, FourierPooling):
        return True  # Its strides may be weights.
    return resizes(operation) or bool(np.max(getattr(operation, "strides", None) or 1) > 1)
