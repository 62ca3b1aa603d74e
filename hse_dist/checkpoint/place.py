"""Where checkpoints lie: a local folder, or a folder of a store that has no rename.

In: a path or a URI. Out: a `Place`, which lists, reads, writes and removes the folders of checkpoints in it. Paths are
relative to the place. A local checkpoint is written under a hidden name (`.step-…`) and becomes one by a rename; in a
store it is written where it stays, and becomes one when its manifest is written, which is last. What a kill left counts
for nothing in both, and `begin` removes it.
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from hse_dist.checkpoint.manifest import MANIFEST
from hse_dist.errors import ConfigError
from hse_dist.files import refuse_devices, replace_folder

PREFIX, ASIDE = "step-", "damaged-"
ASIDE_MANIFEST = f"{ASIDE}{MANIFEST}"


class Place(ABC):
    """A folder of checkpoints; `name` is what messages call it. Every method may raise OSError."""

    name: str

    @abstractmethod
    def folders(self) -> list[str]:
        """Names of the folders of checkpoints, whole or damaged, ascending."""

    @abstractmethod
    def aside(self) -> list[str]:
        """Names of what was set aside."""

    @abstractmethod
    def read(self, path: str) -> IO[bytes]:
        """A file for reading at any position."""

    @abstractmethod
    def write(self, path: str) -> Any:
        """A new file for writing from front to back; durable once it is closed."""

    @abstractmethod
    def rename(self, path: str, new: str) -> None:
        """Give a file another name."""

    @abstractmethod
    def begin(self, name: str) -> str:
        """An empty folder in which the checkpoint `name` is to be written; what a kill left is gone."""

    @abstractmethod
    def commit(self, work: str, name: str) -> None:
        """Make the checkpoint `name` of what was written, its manifest last, into `work`."""

    @abstractmethod
    def discard(self, work: str) -> None:
        """Remove what was begun."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a checkpoint: it is none from the first moment on."""

    @abstractmethod
    def clear(self) -> None:
        """Remove the place with all that is in it."""

    @abstractmethod
    def set_aside(self, name: str) -> str:
        """Rename a checkpoint so that it is none any more; where it is now."""

    def address(self, path: str) -> str:
        """What messages and Ray call a path here."""
        return f"{self.name.rstrip('/')}/{path}"


class LocalPlace(Place):
    """A folder of this machine, or one that all machines mount."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, str(folder)

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob(f"{PREFIX}*") if path.is_dir())

    def aside(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob(f"{ASIDE}*"))

    def read(self, path: str) -> IO[bytes]:
        refuse_devices(self.folder / path)
        return (self.folder / path).open("rb")

    def write(self, path: str) -> Any:
        return _Durable(self.folder / path, "wb")

    def rename(self, path: str, new: str) -> None:
        os.replace(self.folder / path, self.folder / new)

    def begin(self, name: str) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(f".{PREFIX}*"):
            shutil.rmtree(left, ignore_errors=True)
        work = f".{name}.tmp"
        (self.folder / work).mkdir()
        return work

    def commit(self, work: str, name: str) -> None:
        _sync(self.folder / work)
        replace_folder(self.folder / name, self.folder / work)
        _sync(self.folder)

    def discard(self, work: str) -> None:
        shutil.rmtree(self.folder / work, ignore_errors=True)

    def remove(self, name: str) -> None:
        replace_folder(self.folder / name, None)

    def clear(self) -> None:
        replace_folder(self.folder, None)

    def set_aside(self, name: str) -> str:
        new, turn = f"{ASIDE}{name}", 1
        while (self.folder / new).exists():
            turn += 1
            new = f"{ASIDE}{name}.{turn}"
        self.rename(name, new)
        return new


class _Durable:
    """A local file that is on the disk, not only in the system's cache, once it is closed."""

    def __init__(self, path: Path, mode: str) -> None:
        self._file = path.open(mode)
        self.write = self._file.write

    def close(self) -> None:
        """Write out and close; closes even where that fails."""
        try:
            if not self._file.closed:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


def _sync(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    with suppress(OSError):
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


class StorePlace(Place):
    """A folder behind pyarrow.fs."""

    def __init__(self, system: pafs.FileSystem, root: str, name: str) -> None:
        self.system, self.root, self.name = system, root.rstrip("/"), name

    def folders(self) -> list[str]:
        return [name for name in self._names() if MANIFEST in self._files(name)]

    def aside(self) -> list[str]:
        return [name for name in self._names() if ASIDE_MANIFEST in self._files(name)]

    def _names(self) -> list[str]:
        names = (info.base_name for info in self._infos("") if info.type == pafs.FileType.Directory)
        return sorted(name for name in names if name.startswith(PREFIX))

    def _files(self, name: str) -> list[str]:
        return [info.base_name for info in self._infos(name) if info.type == pafs.FileType.File]

    def _infos(self, path: str) -> list[Any]:
        found: list[Any] = self.system.get_file_info(pafs.FileSelector(self._at(path), allow_not_found=True))
        return found

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def read(self, path: str) -> IO[bytes]:
        opened: IO[bytes] = self.system.open_input_file(self._at(path))
        return opened

    def write(self, path: str) -> Any:
        return self.system.open_output_stream(self._at(path))

    def rename(self, path: str, new: str) -> None:
        self.system.move(self._at(path), self._at(new))

    def begin(self, name: str) -> str:
        for left in self._names():
            if not {MANIFEST, ASIDE_MANIFEST} & set(self._files(left)):
                self.system.delete_dir(self._at(left))
        if name in self._names():
            self.remove(name)
        self.system.create_dir(self._at(name), recursive=True)
        return name

    def commit(self, work: str, name: str) -> None:
        """Its manifest has made it one."""

    def discard(self, work: str) -> None:
        with suppress(OSError):
            self.remove(work)

    def remove(self, name: str) -> None:
        if MANIFEST in self._files(name):
            self.system.delete_file(self._at(f"{name}/{MANIFEST}"))
        self.system.delete_dir(self._at(name))

    def clear(self) -> None:
        if self.system.get_file_info(self.root).type == pafs.FileType.Directory:
            self.system.delete_dir(self.root)

    def set_aside(self, name: str) -> str:
        # a folder of a store has no name of its own to change, but without a manifest it is no checkpoint
        self.rename(f"{name}/{MANIFEST}", f"{name}/{ASIDE_MANIFEST}")
        return f"{name}/{ASIDE_MANIFEST}"


def open_place(folder: str | Path, schemes: Sequence[str]) -> Place:
    """The place at a path or a URI.

    Raises:
        ConfigError: its scheme is not one of `schemes`, or nothing here can open it.
    """
    address = str(folder)
    scheme, separator, _ = address.partition("://")
    if not separator:
        return LocalPlace(Path(folder))
    if scheme not in schemes:
        raise ConfigError(
            f"Checkpoints are to lie at {address}, but its scheme is not one that may be opened.",
            cause="Use another checkpoint.folder, or add the scheme.",
            setting="checkpoint.schemes",
            value=list(schemes),
        )
    if scheme == "file":
        return LocalPlace(Path(unquote(urlsplit(address).path)))
    try:
        try:
            system, path = pafs.FileSystem.from_uri(address)
        except pa.ArrowInvalid:  # not one of pyarrow's own
            from fsspec.core import url_to_fs

            other, path = url_to_fs(address)
            system = pafs.PyFileSystem(pafs.FSSpecHandler(other))
    except (ImportError, ValueError, OSError) as error:
        raise ConfigError(
            f"Neither pyarrow nor fsspec can open {address}: {error}.", setting="checkpoint.folder", value=address
        ) from None
    return StorePlace(system, path, address)
