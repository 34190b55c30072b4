"""How many images of a set are used, for what, and whether they are held in memory."""

from __future__ import annotations

MEMORY_LIMIT_BYTES = 2 << 30
"""A larger set, decoded, is streamed from the disk. A smaller one is held in memory."""


def division(name: str, available: int, training_images: int | None, validation_fraction: float) -> tuple[int, int]:
    """Divides a training split into images that train, and after them images that validate.

    Args:
        name: of the data set.
        available: images of the split.
        training_images: how many of them to use. None for all.
        validation_fraction: share of the used images that validate, from 0 to below 1.

    Returns:
        The index after the last image that trains, and that after the last one that validates.

    Raises:
        ValueError: there are fewer than `training_images` images.

    Example:
        >>> division("digits", 1000, training_images=200, validation_fraction=0.1)
        (180, 200)
    """
    if training_images is not None and training_images > available:
        raise ValueError(
            f"data.load_datasets.training_images must be at most the {available:,} of {name}, got {training_images:,}."
        )
    used = available if training_images is None else training_images
    return used - round(used * validation_fraction), used
