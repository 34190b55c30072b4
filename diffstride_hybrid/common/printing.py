"""Text that a file or a stream can hold, whatever the names in it."""

from __future__ import annotations

import sys


def encodable(text: str, encoding: str = "utf-8") -> str:
    r"""Replaces what an encoding cannot hold by escapes. The name of a file need not be UTF-8.

    Args:
        text: any text, such as the name of a file.
        encoding: the name of the encoding.

    Returns:
        The text, unchanged if the encoding can hold all of it.

    Example:
        >>> encodable("f\udcff") == r"f\udcff"
        True
    """
    return text.encode(encoding, "backslashreplace").decode(encoding)


def printable(text: str) -> str:
    """Replaces what standard output cannot show by escapes.

    Args:
        text: any text, such as the name of a file.

    Returns:
        The text, unchanged if standard output can show all of it.
    """
    return encodable(text, sys.stdout.encoding or "utf-8")
