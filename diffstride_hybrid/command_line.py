"""The parts that all commands share: common flags, and errors reported in one line."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import tensorflow as tf
from absl import app, flags, logging

from diffstride_hybrid.common import distribution, signals, startup
from diffstride_hybrid.common.errors import one_line
from diffstride_hybrid.runs.folder import BEST_MODEL, FINAL_MODEL

FLAGS = flags.FLAGS
# With this line --help lists the flags that are defined below under the command that calls these functions.
flags.disclaim_key_flags()

# A mistake in a command, a config or a folder raises one of these errors.
_USER_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    ImportError,
    SyntaxError,
    RuntimeError,
    ArithmeticError,
    tf.errors.OpError,
)


def run(main: Callable[[Sequence[str]], None], define_flags: Callable[[], None], takes_arguments: bool = False) -> None:
    """Runs a command: defines its flags, parses the command line and calls its main function.

    Flags are defined here and not when a module is imported, so that a command can be imported beside others, and
    beside a user's own flags.

    Args:
        main: takes the name of the command and the arguments that are no options.
        define_flags: defines the command's own flags.
        takes_arguments: whether the command takes arguments that are no options.
    """
    define_flags()
    traceback_flag()
    app.run(reporting_errors(main, takes_arguments))


def reporting_errors(
    main: Callable[[Sequence[str]], None], takes_arguments: bool = False
) -> Callable[[Sequence[str]], None]:
    """Makes a main function report a user's mistake in one line on standard error and end with exit code 1.

    A run that was stopped and can go on ends with the exit code `signals.EXIT_CODE`.

    Args:
        main: takes the name of the command and the arguments that are no options.
        takes_arguments: whether the command takes arguments that are no options.

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
            sys.stdout.flush()
        except signals.Stopped as stop:
            _end(str(stop), signals.EXIT_CODE)
        except KeyboardInterrupt:
            _end("interrupted", 128 + signal.SIGINT)
        except _USER_ERRORS as error:
            if FLAGS.traceback:
                raise
            _end(f"error: {one_line(error)}", 1)

    return guarded


def _end(message: str, code: int) -> NoReturn:
    """Prints a last line on standard error and ends the process, even if nobody reads its output any more."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # Python flushes both once more when it ends, and would replace the exit code by one of its own.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(code)


def traceback_flag() -> None:
    """Defines `--traceback` and `--startup_notes`, which every command has."""
    flags.DEFINE_bool("traceback", False, "Show where in the code an error was raised.")
    flags.DEFINE_bool(startup.FLAG.removeprefix("--"), False, "Show what TensorFlow notes when it starts.")


def gin_flags() -> None:
    """Defines `--gin_file` and `--gin_bindings`, for commands that need a config."""
    flags.DEFINE_multi_string(
        "gin_file", None, "A gin file: its path, or the name of a shipped file. May be given again.", required=True
    )
    flags.DEFINE_multi_string(
        "gin_bindings",
        [],
        "A binding that overrides the files, such as 'train.train.num_epochs = 3'. May be given again.",
    )


class _PathParser(flags.ArgumentParser):
    def parse(self, argument: str) -> str:
        return os.path.expanduser(argument)


def path_flag(name: str, explanation: str, default: str | None = None, required: bool = False) -> None:
    """Defines a flag whose value is a path. A '~' stands for the home folder: shells leave it as it is after a '='.

    Args:
        name: of the flag.
        explanation: for --help.
        default: the value if the flag is not given.
        required: whether the flag must be given.
    """
    flags.DEFINE(_PathParser(), name, default, explanation, serializer=flags.ArgumentSerializer(), required=required)


def workdir_flag() -> None:
    """Defines `--workdir`, for commands that need a run."""
    path_flag("workdir", "Folder of the run.", required=True)


def model_flag() -> None:
    """Defines `--model`, which of a run's two models to use."""
    flags.DEFINE_enum("model", FINAL_MODEL, [FINAL_MODEL, BEST_MODEL], "Which of the run's models.")


def data_dir_flag(otherwise: str = "The default of TensorFlow Datasets if not given.") -> None:
    """Defines `--data_dir`, the folder of prepared data sets.

    Args:
        otherwise: a sentence for --help that says which folder is used if the flag is not given.
    """
    path_flag("data_dir", f"Where TensorFlow Datasets keeps prepared sets. {otherwise}")


def strategy_flags() -> None:
    """Defines `--strategy` and `--tpu`: the devices to run on."""
    flags.DEFINE_enum(
        "strategy",
        distribution.STRATEGIES[0],
        distribution.STRATEGIES,
        "Where to run: one device, all GPUs of this machine, the machines that TF_CONFIG names, or a TPU.",
    )
    flags.DEFINE_string("tpu", None, "Name or address of the TPU, 'local' on its own machine.")


def keep_freed_memory() -> None:
    """Makes the C library reuse freed memory, in place of returning it to the system.

    TensorFlow on a CPU allocates and frees every feature map in every step. By default glibc asks the system for each
    large map anew, and the system clears its pages each time. This function does nothing if there is no glibc.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # The numbers of these options in malloc.h.
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**28)
