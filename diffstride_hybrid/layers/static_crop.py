"""The static crop of `DiffStride`: how many bins it keeps at each input size, fixed until it is refreshed."""

from __future__ import annotations

Crop = tuple[int, int]
