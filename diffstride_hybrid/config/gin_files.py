"""Finds and reads gin files, and lists the bindings that nothing reads."""

from __future__ import annotations

import difflib
import os
import pathlib
import re

import gin
from absl import logging

from diffstride_hybrid.config.gin_names import PARAMETERS


def shipped_configs() -> pathlib.Path:
    """The folder of the gin files that come with the package, in a checkout as in a wheel."""
    here = pathlib.Path(__file__).resolve().parents[1]
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


# What ties the parts together, so that a config of the release, which binds less, runs as it is.
_DEFAULT_BINDINGS = """
train.train.load_data_fn = @data.load_datasets
train.train.loss_cls = @tf.keras.losses.CategoricalCrossentropy
resnet.resnet18.resnet_cls = @resnet.Resnet
resnet.resnet34.resnet_cls = @resnet.Resnet
resnet.resnet56.resnet_cls = @resnet.Resnet
resnet.Resnet.normalization_cls = @resnet.batch_norm
"""


def parse(files: list[str], bindings: list[str]) -> None:
    """Reads gin files, then single bindings; the later of two wins.

    A file may include files of its own folder, shipped files by their names, and files by paths from the current
    folder, which is how they are looked for one after the other.

    Args:
        files: paths of gin files.
        bindings: such as `train.train.num_epochs = 3`.

    Raises:
        ValueError: a name or parameter does not exist, or a file is not UTF-8 text.
        SyntaxError: a file or binding is not gin.
        OSError: a file cannot be read.
    """
    gin.clear_config()
    gin.parse_config(_DEFAULT_BINDINGS)
    search_paths = gin.config._LOCATION_PREFIXES
    search_paths_before = list(search_paths)
    files = [os.path.abspath(file) for file in files]
    search_paths[:] = [*map(os.path.dirname, files), str(shipped_configs()), os.curdir]
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)  # Gin logs an error for every folder where an included file is not.
    try:
        gin.parse_config_files_and_bindings(files, bindings)
    except UnicodeDecodeError as error:
        raise ValueError(f"{' or '.join(files)}, or what it includes, is not UTF-8 text: {error}.") from error
    except ValueError as error:
        unknown = re.search(r"Configurable '(\S+)' doesn't include kwarg '(\w+)' in its allowlist", str(error))
        if unknown is None:
            raise
        name, parameter = unknown.groups()
        known = next(known for full, known in PARAMETERS.items() if f".{full}".endswith(f".{name}"))
        raise ValueError(f"{name} has no parameter {parameter!r}; it has {', '.join(known)}.") from error
    finally:
        logging.set_verbosity(verbosity)
        search_paths[:] = search_paths_before


def unread_bindings() -> list[str]:
    """Bindings that nothing has asked for so far, such as those of a layer that is not in the model."""
    defaults = {line.split(" = ")[0] for line in _DEFAULT_BINDINGS.strip().splitlines()}
    unread = []
    for (scope, selector), parameters in gin.config._CONFIG.items():
        read = gin.config._OPERATIVE_CONFIG.get((scope, selector), {})
        name = f"{scope}/{selector}" if scope else selector
        unread += [f"{name}.{parameter}" for parameter in parameters if parameter not in read]
    return [binding for binding in unread if binding not in defaults]
