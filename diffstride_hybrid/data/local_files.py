"""Prepares a set of TensorFlow Datasets from files that are already here, in place of downloads."""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
import shutil
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import tensorflow as tf
from absl import logging

from diffstride_hybrid.common.errors import first_line
from diffstride_hybrid.data import cifar_files

_ARCHIVES = (".tar.gz", ".tar.bz2", ".tar.xz", ".tgz", ".tar", ".zip", ".gz", ".bz2", ".xz")

_BLOCK = 1 << 20


def prepare_from_files(builder: Any, source: pathlib.Path) -> None:
    """Prepares a set of TensorFlow Datasets from the files in a folder. Does nothing if the set is prepared.

    Each address that the set would be downloaded from is looked up in the folder by the name of its file. An archive
    may also be there as a folder of its name, without '.tar.gz' and the like, that holds its contents. Sets that ask
    for files to be downloaded by hand find them in the same folder. 'cifar10' and 'cifar100' take the archives of
    Keras and torchvision too, as `cifar_files.find` says.

    Args:
        builder: made by `sources.tfds_builder`.
        source: folder with the files.

    Raises:
        OSError: a file is missing or damaged, or the set cannot be written. Nothing of the set is left behind.
    """
    final = pathlib.Path(builder.data_dir)
    if final.exists():
        return
    made = [folder for folder in final.parents if not folder.exists()]
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix="unpacked-", dir=final.parent) as scratch:
            files = cifar_files.find(builder.name, source, pathlib.Path(scratch)) or source
            _prepare(builder, files, source, scratch)
    finally:
        for folder in made:
            if folder.exists() and not any(folder.iterdir()):
                folder.rmdir()


def _prepare(builder: Any, files: pathlib.Path, source: pathlib.Path, scratch: str) -> None:
    manager = LocalFiles(files, pathlib.Path(scratch), builder.url_infos or {})
    try:
        _download_and_prepare(builder, manager)
    except Exception as error:  # Each set has its own errors. An assertion asks for files to be downloaded by hand.
        if manager.took_folders:
            # The folder may have the archive's name since it is in the archive, and not since the archive is in it.
            manager.unpacked_here = True
            with contextlib.suppress(Exception):
                _download_and_prepare(builder, manager)
                return
        reason = first_line(error).replace(str(files), str(source))
        raise OSError(f"Data set {builder.name!r} cannot be prepared from {source}: {reason}") from error


def _download_and_prepare(builder: Any, files: LocalFiles) -> None:
    import tensorflow_datasets as tfds

    config = tfds.download.DownloadConfig(manual_dir=files.source, extract_dir=files.scratch)
    make_manager = builder._make_download_manager
    # TensorFlow Datasets has no public way to set what a builder downloads with.
    builder._make_download_manager = lambda **given: files.with_manager(make_manager(**given))
    is_own = False
    try:
        builder.download_and_prepare(download_dir=files.scratch, download_config=config)
        # If another process was faster, the builder has made nothing, or failed since the other's folder is in place.
        is_own = files.serves_builder
        _check_sizes(builder)
    except BaseException:
        if is_own:
            shutil.rmtree(builder.data_dir, ignore_errors=True)
        raise
    finally:
        del builder._make_download_manager


def _check_sizes(builder: Any) -> None:
    sizes = {name: split.num_examples for name, split in builder.info.splits.items()}
    empty = [name for name, size in sizes.items() if size == 0]
    if empty or not sizes:
        raise OSError(f"its files hold no images for {' and '.join(empty) or 'any split'}.")
    for name, size in cifar_files.SIZES.items() if builder.name in cifar_files.NAMES else ():
        if sizes[name] != size:
            logging.warning(
                "The %s split of %s has %d images here, %d as published", name, builder.name, sizes[name], size
            )


class LocalFiles:
    """Gives a builder of TensorFlow Datasets files of a folder for the addresses that it would download.

    It has the methods of `tfds.download.DownloadManager` that builders call, and passes on what needs no network.

    Args:
        source: folder with the files.
        scratch: folder in which archives are unpacked.
        url_infos: by address, the size, checksum and file name that TensorFlow Datasets knows.

    Attributes:
        downloaded_size: of the files that were found, in bytes.
        took_folders: whether a folder stood for an archive.
        unpacked_here: whether such a folder is itself in the archive, so that its parent has what the archive has.
    """

    def __init__(self, source: pathlib.Path, scratch: pathlib.Path, url_infos: Mapping[str, Any]):
        self.source = source
        self.scratch = scratch
        self.downloaded_size = 0
        self.took_folders = False
        self.unpacked_here = False
        self._url_infos = url_infos
        self._manager: Any = None
        self._address_of: dict[pathlib.Path, str] = {}
        self._unpacked_names: dict[str, pathlib.Path] = {}

    @property
    def serves_builder(self) -> bool:
        """Whether a builder has asked for files."""
        return self._manager is not None

    def with_manager(self, manager: Any) -> LocalFiles:
        """Sets the download manager that unpacks archives."""
        self._manager = manager
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._manager, name)

    def download(self, urls: Any) -> Any:
        """Finds files, or the folders that stand for archives: `urls` is an address or a structure of them."""
        found = self._found(urls)
        return tf.nest.map_structure(lambda leaf: found[_address(leaf)], urls)

    def download_and_extract(self, urls: Any) -> Any:
        """Finds files as `download` does and unpacks those that are archives."""
        found = self._found(urls)
        return tf.nest.map_structure(lambda leaf: self._unpacked(found[_address(leaf)], leaf), urls)

    def extract(self, paths: Any) -> Any:
        """Unpacks archives: `paths` is a path or a structure of them. A folder is taken as unpacked."""
        return tf.nest.map_structure(lambda leaf: self._unpacked(getattr(leaf, "path", leaf), leaf), paths)

    def iter_archive(self, archive: Any) -> Iterator[tuple[str, BinaryIO]]:
        """Goes over the files in an archive, or in the folder that stands for it.

        Args:
            archive: a path, or a `tfds.download.Resource` that has one.

        Yields:
            The name of a file in the archive, and the file, open to be read.
        """
        path = pathlib.Path(getattr(archive, "path", archive))
        if not path.is_dir():
            with _naming_archive(path):
                yield from self._manager.iter_archive(archive)
            return
        root = path.parent if self.unpacked_here else path
        for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
            with file.open("rb") as stream:
                yield file.relative_to(root).as_posix(), stream

    def download_checksums(self, url: Any) -> None:
        """Does nothing: a checksum that is not known is not compared."""

    def download_kaggle_data(self, competition_or_dataset: str) -> Any:
        """Refuses: such a set comes by a program of Kaggle's."""
        raise OSError(f"{competition_or_dataset!r} comes by Kaggle's own program, not from files.")

    def _found(self, urls: Any) -> dict[str, Any]:
        addresses = [_address(leaf) for leaf in tf.nest.flatten(urls)]
        found = {address: self._find(address) for address in addresses}
        missing = sorted({self._names(address)[0] for address, path in found.items() if path is None})
        if missing:
            raise OSError(
                f"it lacks {', '.join(missing)}. An archive may also be a folder of its name that holds its contents."
            )
        return found

    def _names(self, address: str) -> list[str]:
        """The names that the file of an address may have here, the most usual first."""
        path = pathlib.PurePosixPath(urllib.parse.unquote(urllib.parse.urlsplit(address).path))
        known = getattr(self._url_infos.get(address), "filename", None)
        longer = "/".join(part for part in path.parts[-2:] if part != path.root)
        return [name for name in (known, path.name, longer) if name] or [address]

    def _find(self, address: str) -> Any:
        from etils import epath

        # Two addresses may end in one name, as in train/images.zip and test/images.zip: the longer name is surer.
        for name in reversed(self._names(address)):
            for candidate in (self.source / name, self.source / _without_suffix(name)):
                if not candidate.exists() or candidate == self.source:
                    continue
                other = self._address_of.setdefault(candidate, address)
                if other != address:
                    raise OSError(f"{candidate} would stand for both {other} and {address}: put them into folders.")
                if candidate.is_file():
                    self._note(candidate, address)
                    return epath.Path(candidate)
                self.took_folders = True
                return epath.Path(candidate)
        return None

    def _note(self, path: pathlib.Path, address: str) -> None:
        self.downloaded_size += path.stat().st_size
        known = getattr(self._url_infos.get(address), "checksum", None)
        if known is not None and known != _sha256(path):
            logging.warning("%s is not the published file: its checksum differs", path)

    def _alone(self, folder: pathlib.Path) -> Any:
        """A folder that shows nothing but the given one: its true parent may have images of other sets."""
        from etils import epath

        shown = self.scratch / f"alone-{folder.name}" / folder.name
        if not shown.exists():
            shown.parent.mkdir()
            shown.symlink_to(folder.resolve(), target_is_directory=True)
        return epath.Path(shown.parent)

    def _unpacked(self, path: Any, leaf: Any) -> Any:
        import tensorflow_datasets as tfds
        from etils import epath

        path = pathlib.Path(path)
        if path.is_dir():
            return self._alone(path) if self.unpacked_here else epath.Path(path)
        if self._unpacked_names.setdefault(path.name, path) != path:
            # The download manager would take an archive of the same name for one that it has unpacked.
            link = self.scratch / f"{len(self._unpacked_names)}-{path.name}"
            link.symlink_to(path)
            path = self._unpacked_names[link.name] = link
        resource = leaf if isinstance(leaf, tfds.download.Resource) else tfds.download.Resource()
        resource.path = path
        with _naming_archive(path):
            return self._manager.extract(resource)


@contextlib.contextmanager
def _naming_archive(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # tarfile, zipfile, gzip and TensorFlow Datasets have errors of their own.
        raise OSError(f"{path} is damaged: {first_line(error)}") from error


def _address(leaf: Any) -> str:
    return leaf if isinstance(leaf, str) else leaf.url


def _without_suffix(name: str) -> str:
    return next((name[: -len(suffix)] for suffix in _ARCHIVES if name.endswith(suffix)), name)


def _sha256(path: pathlib.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
