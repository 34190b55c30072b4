"""The versions of installed packages, and the commit of the checkout."""

from __future__ import annotations

import importlib.metadata
import pathlib
import subprocess
from collections.abc import Sequence


def versions_of(packages: Sequence[str]) -> dict[str, str | None]:
    """The installed version of each named package.

    Args:
        packages: names of distributions, as `pip` spells them, such as 'tensorflow'.

    Returns:
        The versions in the order given; None for a package that is not installed.

    Example:
        >>> from diffstride_hybrid.common.versions import versions_of
        >>> list(versions_of(["numpy", "no-such-package"]))
        ['numpy', 'no-such-package']
        >>> versions_of(["no-such-package"])
        {'no-such-package': None}
    """
    return {name: _version(name) for name in packages}


def versions_as_text(packages: Sequence[str], separator: str = ", ") -> str:
    """The installed version of each named package, in one text.

    Args:
        packages: names of distributions, as `pip` spells them.
        separator: stands between the packages.

    Returns:
        Name and version of each package, in the order given.

    Example:
        >>> from diffstride_hybrid.common.versions import versions_as_text
        >>> versions_as_text(["no-such-package", "another"])
        'no-such-package None, another None'
    """
    return separator.join(f"{name} {version}" for name, version in versions_of(packages).items())


def checkout_commit() -> str | None:
    """The commit of the git checkout that the package runs from.

    Returns:
        The hash, with '-dirty' appended if tracked files of the package or of `gin_configs` have changed since. None if
        the package is installed outside a checkout, or git is missing.
    """
    package = pathlib.Path(__file__).parents[1]
    changed = ("status", "--porcelain", "--untracked-files=no", "--", ".", "../gin_configs")
    try:
        head, changes = (
            subprocess.run(["git", "-C", str(package), *command], capture_output=True, text=True, check=True).stdout
            for command in (("rev-parse", "HEAD"), changed)
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head.strip()}-dirty" if changes.strip() else head.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
