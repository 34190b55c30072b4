"""Messages of errors: those of other libraries shortened to one line, and guesses at what a user meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable

_LONGEST = 500
"""Characters of a message that are worth reading. Some libraries quote everything that they were given."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class if it has no message.

    Args:
        error: any error.

    Returns:
        One line that is not empty.
    """
    return str(error).strip().split("\n")[0] or type(error).__name__


def one_line(error: BaseException) -> str:
    """The message of an error on one line, without what Keras, TensorFlow and gin wrap around it.

    Args:
        error: any error.

    Returns:
        One line of little more than 500 characters at most: a longer message is cut off and ends in '…'.
    """
    text = str(error) or type(error).__name__
    # Keras: "Exception encountered when calling X.call().\n\n<bold>message</bold>\n\nArguments received by …".
    bold = re.search(r"\x1b\[1m(.*?)\x1b\[0m", text, re.DOTALL)
    if bold:
        text = bold[1]
    # Keras: "Error when deserializing class 'X' using config={…}.\n\nException encountered: message".
    text = text.rsplit("Exception encountered: ", 1)[-1]
    # TensorFlow: "{{function_node …}} message [Op:X] name: …".
    text = re.sub(r"\{\{function_node [^}]*\}\}|\[Op:\w+\]( name: *\w*)?", "", text)
    # Gin appends where in the configuration the error arose, and to some errors the whole configuration.
    text = re.split(r"\n\s*In (?:call to configurable|file|binding|bindings)\b| in config string:", text)[0]
    text = re.sub(r"\s+", " ", re.sub(r"\x1b\[\d+m", "", text)).strip()
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …"


def did_you_mean(given: str, known: Iterable[str], compare: Callable[[str], str] = str) -> str:
    """Asks whether one of the known names was meant that resemble a name nobody knows.

    Args:
        given: the name that a user gave.
        known: the names that exist.
        compare: takes a name and gives the part of it that is compared; the whole name by default.

    Returns:
        A question with up to three names, nearest first, or '' if no name is near. If the compared part is right, the
        names that have it, and no others.

    Example:
        >>> did_you_mean("cifar11", ["digits", "cifar10", "cifar100"])
        "did you mean 'cifar10' or 'cifar100'?"
        >>> did_you_mean("qqqq", ["digits"])
        ''
        >>> did_you_mean("modules.Adm", ["optimizers.Adam", "losses.Loss"], lambda name: name.split(".")[-1])
        "did you mean 'optimizers.Adam'?"
    """
    names: dict[str, list[str]] = {}
    for name in known:
        names.setdefault(compare(name), []).append(name)
    part = compare(given)
    parts = [part] if part in names else difflib.get_close_matches(part, list(names), n=3)
    near = [name for each in parts for name in names[each]][:3]
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""
