"""The static crop of `DiffStride`: how many bins the layer keeps at each input size, fixed until it is refreshed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from diffstride_hybrid.backends import current
from diffstride_hybrid.layers.input_checks import Size
from diffstride_hybrid.spectral.windows import Window, kept_bins

Crop = tuple[int, int]
"""How many bins are kept: rows of the two-sided spectrum, columns of the one-sided spectrum."""

WindowsAt = Callable[[Size, np.ndarray, Crop | None], tuple[Window | None, Window]]
"""Makes the windows of a layer for a map's size, strides and, if it is fixed, a crop."""


_MOST_ANSWERS = 64


class StaticCrop:
    """The crops of one layer, a fixed one for each input size that it has met.

    A crop is the number of bins that the strides ask for. Crops hold as long as the strides stay as they were when the
    crops were set. If the strides have other values when the layer is next called or traced, the crops are those that
    the new values ask for, whichever way they came: from an optimizer, a file, `set_weights`, a checkpoint.

    While crops are held, as `model_tools.crop_refresh` does during training, they stay until `forget` or `refresh`: a
    compiled training step then keeps its sizes while the strides move. Crops may be held for training alone; then
    inference has the crops that the strides ask for. Hysteresis, too, concerns inference only while crops are held for
    all calls. Crops from a file serve both as they are, until the strides change or the crops are refreshed.

    Args:
        windows_at: makes the layer's windows.
        read_strides: returns the layer's strides, float32; None if they cannot be read at the time.
        is_static: whether the crops can be held. If not, they follow the strides at every call.

    Attributes:
        is_static: as above. The layer may set it later, once.
        held: whether crops stay when the strides change: NOT, for TRAINING, or for ALL calls.
        inferred: the crops of calls for inference while crops are held for training, by size.
    """

    NOT, TRAINING, ALL = 0, 1, 2

    def __init__(self, windows_at: WindowsAt, read_strides: Callable[[], np.ndarray | None], is_static: bool):
        self.is_static = is_static
        self.held = self.NOT
        self.inferred: dict[Size, Crop] = {}
        self._windows_at = windows_at
        self._read_strides = read_strides
        self._crops: dict[Size, Crop] = {}
        self._crops_before: dict[Size, Crop] = {}
        self._hysteresis = 0.0  # With which the present crops were set.
        self._strides: np.ndarray | None = None  # Those to which the crops belong; None before one is set.
        self._answers: dict[tuple[Size, bytes], Crop] = {}
        self._traced: dict[tuple[Size, bool], set[Crop]] = {}  # Crops in graphs, by size and whether they train.

    @property
    def crops(self) -> dict[Size, Crop]:
        """The crops at the present strides, one for each input size met so far."""
        strides = self._moved_to()
        return dict(self._crops) if strides is None else {size: self._asked(size, strides) for size in self._crops}

    @crops.setter
    def crops(self, crops: Mapping[Size, Crop]) -> None:
        self._crops, self._hysteresis = dict(crops), 0.0
        self._strides = self._read_strides() if crops else None

    def at(self, size: Size, strides: np.ndarray | None = None, training: bool = False) -> Crop:
        """The crop of maps of one size, which is set now if the size or the strides are new.

        Args:
            size: height and width.
            strides: the strides that set a new crop. The layer's own if None.
            training: whether the maps are those of a training step.

        Returns:
            Kept rows and kept columns.

        Raises:
            ValueError: the size is not known.
        """
        if None in size:
            raise ValueError(
                f"A static crop needs a known height and width, got {size}. A DiffStride before this one must have a "
                "static crop as well."
            )
        if (
            self.is_static
            and self.held == self.TRAINING
            and not training
            and (present := self._read_strides()) is not None
        ):
            self.inferred[size] = self._asked(size, present)
            return self.inferred[size]
        if not current.is_tracing():
            if (moved := self._moved_to()) is not None:
                return self._asked(size, moved)  # What was traced keeps its crops until `refresh` compares them.
        else:
            self.follow()
        if size not in self._crops:
            present = self._read_strides() if strides is None else strides
            strides = self._strides if present is None else present
            crop, fewest, most = (
                self._asked(size, strides * factor) for factor in (1.0, 1.0 + self._hysteresis, 1.0 - self._hysteresis)
            )
            before = self._crops_before.get(size, crop)
            self._crops[size] = tuple(
                kept if low <= kept <= high else asked for kept, asked, low, high in zip(before, crop, fewest, most)
            )
            self._strides = np.array(strides)
        kept = self._crops[size] if training else self._for_inference(size)
        if current.is_tracing():
            self._traced.setdefault((size, training), set()).add(kept)
        return kept

    def asked(self, size: Size) -> Crop:
        """What the strides ask for at a size, whatever is held.

        Args:
            size: height and width, for which `at` has returned a crop.

        Returns:
            Rows and columns. If the strides cannot be read now, the last values that were read tell them.
        """
        present = self._read_strides()
        if present is None and self.held == self.TRAINING and size in self.inferred:
            return self.inferred[size]
        return self._asked(size, self._strides if present is None else present)

    def refresh(self, hysteresis: float) -> bool:
        """Sets the crop of every size met so far anew.

        Args:
            hysteresis: how far past a boundary between two sizes a stride must be before the crop changes, as a share
                of the stride.

        Returns:
            Whether a crop changed, or differs from that in a graph traced before.
        """
        return self.differs(self.set_anew(hysteresis))

    def set_anew(self, hysteresis: float) -> dict[Size, Crop]:
        """As `refresh`, but what is known of traced graphs stays known.

        Args:
            hysteresis: as for `refresh`.

        Returns:
            The crops before.
        """
        before = self.set_crops()
        self.forget(hysteresis)
        with self.being_set():
            for size in before:
                self.at(size)
        return before

    def is_outdated_by(self, strides: np.ndarray) -> bool:
        """Tells whether a graph for inference that was traced before keeps another crop than strides ask for.

        Args:
            strides: the new strides.
        """
        return any(
            crops - {self._asked(size, strides)} for (size, training), crops in self._traced.items() if not training
        )

    @contextlib.contextmanager
    def being_set(self) -> Iterator[None]:
        """A context in which every call sets the crop of its size, if there is none, and keeps it."""
        held, self.held = self.held, self.ALL
        try:
            yield
        finally:
            self.held = held

    def follow(self) -> bool:
        """Forgets the crops if they belong to other strides than the present ones and are not held.

        Returns:
            Whether they did.
        """
        moved = self._moved_to() is not None
        if moved:
            self.forget(hysteresis=0.0)
        return moved

    def set_crops(self) -> dict[Size, Crop]:
        """A copy of the crops as they were set last, which may belong to other strides than the present ones."""
        return dict(self._crops)

    def differs(self, before: Mapping[Size, Crop]) -> bool:
        """Tells whether the crops differ from earlier ones or from those of traced graphs, which count as traced anew.

        Args:
            before: from `set_crops`. Sizes that no longer occur do not count.
        """
        changed = any(
            before.get(size) != crop
            or self._traced.get((size, True), {crop}) != {crop}
            or self._traced.get((size, False), set()) - {self._for_inference(size)}
            for size, crop in self._crops.items()
        )
        self._traced.clear()
        return changed

    def forget(self, hysteresis: float) -> None:
        """Lets the crop of each size be set anew when the size is next met.

        Args:
            hysteresis: how far past a boundary between two sizes a stride must be before the crop changes, as a share
                of the stride.
        """
        self._crops_before, self._crops, self._hysteresis = self._crops, {}, hysteresis
        self._strides = None

    def as_array(self) -> np.ndarray:
        """The crops of inference for a file: int32 `[sizes, 4]`, height, width, kept rows and kept columns."""
        moved = self._moved_to() is not None
        crops = self.crops if moved else {size: self._for_inference(size) for size in self._crops}
        return np.array([(*size, *crop) for size, crop in crops.items()], "int32")

    def restore(self, array: np.ndarray, strides: np.ndarray) -> None:
        """Makes the crop static and sets the crops that `as_array` returned.

        Args:
            array: int32 `[sizes, 4]`.
            strides: those to which the crops belong.
        """
        self.is_static = True
        self._crops = {(h, w): (rows, columns) for h, w, rows, columns in array.tolist()}
        self._strides, self._hysteresis = strides, 0.0

    def _for_inference(self, size: Size) -> Crop:
        """The crop of inference at a size whose crop is set. Unless it is held, the strides have not moved since."""
        follows = self.held == self.TRAINING or (self._hysteresis and self.held != self.ALL)
        return self.asked(size) if follows else self._crops[size]

    def _asked(self, size: Size, strides: np.ndarray) -> Crop:
        """What strides ask for at a size. The last answers are kept: an eager call asks for the same each time."""
        question = size, strides.tobytes()
        if question not in self._answers:
            if len(self._answers) >= _MOST_ANSWERS:
                self._answers.clear()
            with current.eagerly():
                self._answers[question] = kept_bins(*self._windows_at(size, strides, None))
        return self._answers[question]

    def _moved_to(self) -> np.ndarray | None:
        """The present strides, if the crops belong to others and are not held."""
        if (self.is_static and self.held) or self._strides is None:
            return None
        strides = self._read_strides()
        return None if strides is None or np.array_equal(strides, self._strides) else strides
