"""Says in one line what is wrong with a binding that gin refuses, and what to write in its place."""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence

from diffstride_hybrid.common.errors import did_you_mean
from diffstride_hybrid.config.gin_names import PARAMETERS

_LONGEST = 150
"""Characters of a quoted line that are shown."""

_CONSTANTS = {"true": "True", "false": "False", "none": "None", "null": "None"}
"""What other languages write, in small letters, and what gin writes, which takes the values of Python."""


def explained(error: Exception, bindings: Sequence[str]) -> Exception | None:
    """Puts a mistake in a binding into words of this package.

    Args:
        error: what gin raised.
        bindings: the single bindings that gin was given after the files.

    Returns:
        An error of the same kind that quotes the binding, with its file and line if it stands in one. None if gin did
        not complain of a binding.
    """
    if isinstance(error, SyntaxError):
        if not traceback.extract_tb(error.__traceback__)[-1].filename.endswith("config_parser.py"):
            return None  # A mistake in a module that a gin file imports.
        return SyntaxError(_of_syntax(error, bindings))
    text = str(error)
    what = text.split("\n")[0]
    if macro := re.match(r"No bindings specified for '(\S+)/gin\.macro'", what):
        return ValueError(f"%{macro[1]} is used, but bound nowhere: add the line {macro[1]} = VALUE.")
    found = re.search(r"\n  In (?:file \"(?P<file>.*)\",|bindings string) line (?P<line>\d+)\n    (?P<text>.*)", text)
    told = _of_name(what)
    if told is None:
        return None
    quoted = _quoted(found["text"], found["file"], int(found["line"])) if found else ""
    return ValueError(f"{quoted}{told}")


def _quoted(line: str, file: str | None, number: int | None) -> str:
    line = line.strip()
    line = line if len(line) <= _LONGEST else f"{line[:_LONGEST]}…"
    return f"{line}{f' ({file}, line {number})' if file else ''}: "


def _of_name(what: str) -> str | None:
    """What is wrong with a name or a parameter, from the first line of gin's message. None if it is about neither."""
    if unknown := re.match(r"No configurable matching (?:reference )?'@?([^'()]+)(?:\(\))?'", what):
        name = unknown[1]
        hint = did_you_mean(name, PARAMETERS, compare=lambda known: known.rpartition(".")[2])
        return f"there is no {name!r}: {hint or 'if it is your own, a gin file must import its module.'}"
    unknown = re.match(
        r"Configurable '(\S+)' doesn't (?:include kwarg|have a parameter named) '(\w*)'(?: in its allowlist)?\.", what
    )
    if unknown is None:
        return None
    name, parameter = unknown.groups()
    parameters = next((known for full, known in PARAMETERS.items() if f".{full}".endswith(f".{name}")), None)
    if parameters is None:
        return what  # A configurable of the user's own.
    hint = did_you_mean(parameter, parameters)
    rest = f": {hint}" if hint else f"; it has {', '.join(parameters)}."
    return f"{name} has no parameter {parameter!r}{rest}"


def _of_syntax(error: SyntaxError, bindings: Sequence[str]) -> str:
    """What is wrong with the line that gin cannot read."""
    line = (error.text or "").strip()
    if not line and error.filename is None:  # Gin read on to the end of the text.
        line = "\n".join(bindings).strip().split("\n")[-1]
    key, equals, value = line.partition("=")
    return _quoted(line, error.filename, error.lineno) + (
        _of_value(key.strip(), value.split(" #")[0].strip(), error.msg) if equals else _other(error.msg)
    )


def _of_value(key: str, value: str, message: str) -> str:
    if not value or value.startswith("#"):
        return "there is no value after the '='."
    if value.lower() in _CONSTANTS:
        return f"this value is spelled {key} = {_CONSTANTS[value.lower()]}."
    if any(f".{known}".endswith(f".{value.removesuffix('()')}") for known in PARAMETERS):
        return f"a function or class needs an @: {key} = @{value}."
    if re.fullmatch(r"[^'\"\[\](){}@%=,]*[A-Za-z_/~\\][^'\"\[\](){}@%=,]*", value):
        return f"texts need quotes: {key} = {value!r}"
    if value[0] in "'\"" and value.count(value[0]) % 2:
        return "a quote is not closed."
    return _other(message)


def _other(message: str) -> str:
    """What gin says of a part of a value, or of a line that is no binding."""
    if word := re.search(r"Failed to parse token '(.*)'", message):
        return f"{word[1]} is no value: texts need quotes: {word[1]!r}"
    if message == "Unable to parse value.":
        return "a value is a number, True, False, None, a quoted text, a list of values, or a name with an @."
    if message == "Expected newline.":
        return "something follows the value that does not belong to it."
    return message.removeprefix("Couldn't parse statement, ")
