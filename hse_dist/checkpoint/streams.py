"""Files of a checkpoint under way: written with a running SHA-256, read for torch.distributed.checkpoint.

In: a place and a folder in it. Out: `Files`, the file system that torch's writer and reader see, which knows what it
wrote; and the reader, which unpickles `.metadata` from bytes that fit the manifest, and nothing but what metadata are
made of.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any

import torch
from torch.distributed.checkpoint import metadata as dcp_metadata
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemBase, FileSystemReader, FileSystemWriter

from hse_dist.checkpoint.manifest import Content, Damaged, check
from hse_dist.checkpoint.place import Place


class Hashing(io.RawIOBase):
    """A file that is written from front to back; knows its content once it is closed, and its first failure."""

    def __init__(self, file: Any) -> None:
        self._file, self._digest, self._size = file, hashlib.sha256(), 0
        self.failure: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise
        self._digest.update(data)
        count = memoryview(data).nbytes
        self._size += count
        return count

    def close(self) -> None:
        if not self.closed:
            try:
                self._file.close()
            except OSError as error:
                self.failure = self.failure or error
                raise
            finally:
                super().close()

    @property
    def content(self) -> Content:
        return Content(self._size, self._digest.hexdigest())


class Files(FileSystemBase):
    """One folder of a place, as torch sees it.

    Attributes:
        written: what this rank wrote, by name.
        expected: what the manifest says of the files that are read; small ones are checked as they are opened.
    """

    def __init__(self, place: Place, folder: str, expected: Mapping[str, Content] | None = None) -> None:
        self.place, self.folder, self.expected = place, folder, expected
        self.written: dict[str, Content] = {}

    @contextmanager
    def new(self, name: str) -> Iterator[Any]:
        """A new file, durable when the block ends well.

        Raises:
            OSError: it cannot be written; also where what writes it says something else.
        """
        file = Hashing(self.place.write(f"{self.folder}/{name}"))
        try:
            yield file
            file.close()
        except Exception as error:
            # torch's writer hides what went wrong behind an error of its own
            raise (file.failure or error) from None
        finally:
            with suppress(OSError):  # after a failure, which is on its way
                file.close()
        self.written[name] = file.content

    def write(self, name: str, data: bytes) -> None:
        """Write a whole file."""
        with self.new(name) as file:
            file.write(data)

    def read(self, name: str) -> IO[bytes]:
        """A file for reading at any position.

        Raises:
            Damaged: there is a manifest, and it does not name the file: `.metadata` may name any.
        """
        if self.expected is not None and name not in self.expected:
            raise Damaged(f"the manifest does not name the file {name}")
        return self.place.read(f"{self.folder}/{name}")

    def read_checked(self, name: str) -> bytes:
        """A whole file, which is what the manifest says.

        Raises:
            Damaged: it is not.
        """
        expected = (self.expected or {}).get(name)
        if expected is None:
            raise Damaged(f"the manifest does not name the file {name}")
        try:
            with self.read(name) as file:
                data = file.read()
        except FileNotFoundError:
            raise Damaged(f"the file {name} is missing") from None
        except OSError as error:
            raise Damaged(f"the file {name} cannot be read ({error})") from None
        check(name, expected, lambda: io.BytesIO(data))
        return data

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:
        if mode == "wb":
            with self.new(str(path)) as file:
                yield file
        else:
            with self.read(str(path)) as file:
                yield file

    def concat_path(self, path: Any, suffix: str) -> str:
        return suffix  # the folder is ours, torch only needs to know names

    def init_path(self, path: Any) -> Any:
        return path

    def rename(self, path: Any, new_path: Any) -> None:
        self.place.rename(f"{self.folder}/{path}", f"{self.folder}/{new_path}")
        self.written[str(new_path)] = self.written.pop(str(path))

    def mkdir(self, path: Any) -> None:
        """`Place.begin` has made it."""

    def exists(self, path: Any) -> bool:
        return str(path) in self.written

    def rm_file(self, path: Any) -> None:
        raise NotImplementedError("a checkpoint's folder was empty")

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


class Writer(FileSystemWriter):
    """torch's writer into `Files`; a file a rank."""

    def __init__(self, files: Files) -> None:
        super().__init__("", sync_files=False)  # closing a file makes it durable
        self.fs, self.path = files, files.folder  # type: ignore[assignment]


class Reader(FileSystemReader):
    """torch's reader from `Files`."""

    def __init__(self, files: Files) -> None:
        super().__init__("")
        self.fs, self.path, self.files = files, files.folder, files  # type: ignore[assignment]

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        """What `.metadata` holds, if its bytes fit the manifest.

        Raises:
            Damaged: they do not.
        """
        data = self.files.read_checked(".metadata")
        try:
            _refuse_bombs(data)
            metadata = _Metadata(io.BytesIO(data)).load()
        except Exception as error:  # a pickle that was made to harm may end in any
            raise Damaged(f"the file .metadata is of no use ({error or type(error).__name__})") from None
        if not isinstance(metadata, dcp_metadata.Metadata):
            raise Damaged(f"the file .metadata is a {type(metadata).__name__}")
        metadata.storage_meta = metadata.storage_meta or dcp_metadata.StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class TensorsOnly(DefaultLoadPlanner):
    """torch's plan of what is read, without what it would unpickle: metadata may call any entry a Python object."""

    def load_bytes(self, read_item: Any, value: Any) -> None:
        """Refuse.

        Raises:
            Damaged: always.
        """
        raise Damaged(f"the entry {read_item.dest_index.fqn} is no tensor")


def _refuse_bombs(data: bytes) -> None:
    """Raise ValueError where a pickle claims to be longer than it is: Python sets that memory aside first."""
    for code, argument, _ in pickletools.genops(data):
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > len(data):
            raise ValueError(f"it remembers {argument} objects")


class _Metadata(pickle.Unpickler):
    """Unpickles torch's metadata and refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if module == dcp_metadata.__name__ and not name.startswith("_") and "." not in name:
            found = getattr(dcp_metadata, name, None)
            if isinstance(found, type) and found.__module__ == module:
                return found
        if module == "torch" and (name == "Size" or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        if (module, name) in _NAMES:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"metadata do not consist of {module}.{name}")


_NAMES = {
    (dcp_metadata.__name__, "_MEM_FORMAT_ENCODING"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
}
