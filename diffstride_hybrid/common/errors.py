"""Errors of other libraries, shortened to one line for people."""

from __future__ import annotations

import re

LONGEST = 500
"""Characters of a message that are worth reading. Some quote all that they were given."""


def first_line(error: BaseException) -> str:
    """The beginning of a message that goes on with what few want to know."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def one_line(error: BaseException) -> str:
    """The message of an error without what gin and Keras wrap around it."""
    text = str(error) or type(error).__name__
    # Keras: "Exception encountered when calling X.call().\n\n<bold>message</bold>\n\nArguments received by …".
    bold = re.search(r"\x1b\[1m(.*?)\x1b\[0m", text, re.DOTALL)
    if bold:
        text = bold[1]
    # Keras: "Error when deserializing class 'X' using config={…}.\n\nException encountered: message".
    text = text.rsplit("Exception encountered: ", 1)[-1]
    # TensorFlow: "{{function_node …}} message [Op:X] name: …".
    text = re.sub(r"\{\{function_node [^}]*\}\}|\[Op:\w+\]( name: *\w*)?", "", text)
    # Gin appends where in the configuration the error arose, and for some errors all of the configuration.
    text = re.split(r"\n\s*In (?:call to configurable|file|binding|bindings)\b| in config string:", text)[0]
    text = re.sub(r"\s+", " ", re.sub(r"\x1b\[\d+m", "", text)).strip()
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} …"
