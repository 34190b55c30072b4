"""What the commands share: finding gin files, and errors told in one line."""

from __future__ import annotations

import ctypes
import difflib
import functools
import pathlib
import signal
import sys
from collections.abc import Callable, Sequence

import tensorflow as tf
from absl import flags, logging

from diffstride_hybrid import stopping
from diffstride_hybrid.errors import one_line

_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show where in the code an error was raised.")

# What a mistake in a command, a config or a folder raises.
_USER_ERRORS = (
    *(ValueError, TypeError, OSError, ImportError, SyntaxError, RuntimeError, ArithmeticError, tf.errors.OpError),
)


def reporting_errors(
    main: Callable[[Sequence[str]], None], takes_arguments: bool = False
) -> Callable[[Sequence[str]], None]:
    """Makes a main function end with one line on standard error and exit code 1 where the user made a mistake.

    One that was stopped and can go on ends with `stopping.EXIT_CODE`.

    Args:
        main: takes the name of the command and the arguments that are no options.
        takes_arguments: whether there may be any.

    Returns:
        The function for `absl.app.run`.
    """

    @functools.wraps(main)
    def guarded(argv: Sequence[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        try:
            if len(argv) > 1 and not takes_arguments:
                raise ValueError(f"Unexpected argument {argv[1]!r}: every option starts with --.")
            main(argv)
        except stopping.Stopped as stop:
            print(stop, file=sys.stderr)
            sys.exit(stopping.EXIT_CODE)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(128 + signal.SIGINT)
        except _USER_ERRORS as error:
            if _TRACEBACK.value:
                raise
            print(f"error: {one_line(error)}", file=sys.stderr)
            sys.exit(1)

    return guarded


def keep_freed_memory() -> None:
    """Lets the C library hand out again the memory that it was given back, in place of returning it to the system.

    TensorFlow on a CPU allocates and frees every feature map in every step. By default glibc asks the system for each
    large one anew, and the system clears its pages each time. Does nothing where there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**28)


def shipped_configs() -> pathlib.Path:
    """The folder of the gin files that come with the package, in a checkout as in a wheel."""
    here = pathlib.Path(__file__).resolve().parent
    installed = here / "gin_configs"
    return installed if installed.is_dir() else here.parent / "gin_configs"


def find_gin_file(name: str) -> str:
    """Finds a gin file by its path, or by its name among the shipped ones, with or without `.gin`.

    Args:
        name: what the user gave.

    Returns:
        A path.

    Raises:
        FileNotFoundError: there is none.
    """
    if pathlib.Path(name).is_file():
        return name
    folder = shipped_configs()
    shipped = folder / (name if name.endswith(".gin") else f"{name}.gin")
    if pathlib.Path(name).name == name and shipped.is_file():
        return str(shipped)
    names = sorted(path.stem for path in folder.glob("*.gin"))
    near = difflib.get_close_matches(pathlib.Path(name).stem, names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"shipped are {', '.join(names)}."
    raise FileNotFoundError(f"No gin file {name}: {hint}")
