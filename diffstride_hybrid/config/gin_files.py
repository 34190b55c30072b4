"""Finds and reads gin files, and lists the bindings that nothing reads.

This is the only module that uses private names of gin. Each use says why.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import tokenize
from collections.abc import Iterator, Sequence

import gin
from absl import logging

from diffstride_hybrid.common.errors import did_you_mean
from diffstride_hybrid.config import gin_mistakes

# These bindings tie the parts together, so that a config of the release, which binds less, runs unchanged.
_DEFAULT_BINDINGS = """
train.train.load_data_fn = @data.load_datasets
train.train.loss_cls = @tf.keras.losses.CategoricalCrossentropy
resnet.resnet18.resnet_cls = @resnet.Resnet
resnet.resnet34.resnet_cls = @resnet.Resnet
resnet.resnet56.resnet_cls = @resnet.Resnet
resnet.Resnet.normalization_cls = @resnet.batch_norm
"""


def shipped_configs() -> pathlib.Path:
    """The folder of the gin files that come with the package, in a checkout or in an installed wheel."""
    package = pathlib.Path(__file__).resolve().parents[1]
    installed = package / "gin_configs"
    return installed if installed.is_dir() else package.parent / "gin_configs"


def find_gin_file(name: str) -> str:
    """Finds a gin file by its path, or by its name among the shipped files.

    Args:
        name: a path, or the name of a shipped file with or without '.gin'.

    Returns:
        The path of the file.

    Raises:
        FileNotFoundError: there is no such file.

    Example:
        >>> os.path.basename(find_gin_file("digits_hybrid"))
        'digits_hybrid.gin'
    """
    name = os.path.expanduser(name)
    if pathlib.Path(name).is_file():
        return name
    folder = shipped_configs()
    shipped = folder / (name if name.endswith(".gin") else f"{name}.gin")
    if pathlib.Path(name).name == name and shipped.is_file():
        return str(shipped)
    names = sorted(path.stem for path in folder.glob("*.gin"))
    hint = did_you_mean(pathlib.Path(name).stem, names) or f"shipped are {', '.join(names)}."
    raise FileNotFoundError(f"No gin file {name}: {hint}")


def parse(files: Sequence[str], bindings: Sequence[str]) -> None:
    """Reads gin files, then single bindings, in place of everything that was bound before.

    Of two bindings of one parameter the later one wins. A file may include files of its own folder, shipped files by
    their names, and files by paths from the current folder. The folders are searched in this order.

    Args:
        files: paths of gin files.
        bindings: such as 'train.train.num_epochs = 3'.

    Raises:
        ValueError: a name or parameter does not exist, or a file is not UTF-8 text.
        SyntaxError: a file or binding is not gin. As of a wrong name, the message quotes the binding.
        OSError: a file cannot be read.

    Example:
        >>> parse([find_gin_file("digits_hybrid")], ["train.train.num_epochs = 3"])
        >>> gin.query_parameter("train.train.num_epochs")
        3
    """
    gin.clear_config()
    gin.parse_config(_DEFAULT_BINDINGS)
    files = [os.path.abspath(file) for file in files]
    folders = [*map(os.path.dirname, files), str(shipped_configs()), os.curdir]
    with _searched(folders), _read_as_utf8(), _without_log_lines():
        try:
            gin.parse_config_files_and_bindings(files, bindings)
        except tokenize.TokenError as error:
            raise SyntaxError(f"a bracket or quote is not closed in {' or '.join([*files, *bindings])}.") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"{' or '.join(files)}, or what it includes, is not UTF-8 text: {error}.") from error
        except (ValueError, SyntaxError) as error:
            told = gin_mistakes.explained(error, bindings)
            if told is None:
                raise
            raise told from error


def unread_bindings() -> list[str]:
    """Lists the bindings that nothing has read so far, such as those of a layer that the model does not have.

    Returns:
        Names of parameters, such as 'pooling.DiffStride.norm'.
    """
    defaults = {line.split(" = ")[0] for line in _DEFAULT_BINDINGS.strip().splitlines()}
    unread = []
    # Gin gives both tables to the public only as text for people, with long values on several lines.
    for (scope, selector), parameters in gin.config._CONFIG.items():
        read = gin.config._OPERATIVE_CONFIG.get((scope, selector), {})
        name = f"{scope}/{selector}" if scope else selector
        unread += [f"{name}.{parameter}" for parameter in parameters if parameter not in read]
    return [binding for binding in unread if binding not in defaults]


@contextlib.contextmanager
def _searched(folders: Sequence[str]) -> Iterator[None]:
    """A context in which gin looks for included files in these folders alone, in their order."""
    # Gin's public function can add a folder, but not remove one, and gin starts with the current folder. So the private
    # list is emptied first and restored at the end: otherwise folders of earlier configs would be searched too.
    prefixes = gin.config._LOCATION_PREFIXES
    before = list(prefixes)
    prefixes.clear()
    for folder in folders:
        gin.add_config_file_search_path(folder)
    try:
        yield
    finally:
        prefixes[:] = before


@contextlib.contextmanager
def _read_as_utf8() -> Iterator[None]:
    """A context in which gin reads files as UTF-8 on every system, with or without a byte-order mark."""
    # Gin's public function can add a way to read files, but the first one that finds a file wins.
    readers = gin.config._FILE_READERS
    before = list(readers)
    readers[:] = [(functools.partial(open, encoding="utf-8-sig"), os.path.isfile)]
    try:
        yield
    finally:
        readers[:] = before


@contextlib.contextmanager
def _without_log_lines() -> Iterator[None]:
    """A context without log lines: gin logs an error for every folder that does not have an included file."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
