"""Which files a log consists of.

In: what the user wrote as `data.source` — a file, a folder, a glob or a URI of pyarrow.fs or fsspec, with environment
variables. Out: the files in a fixed order, each with its format and the columns that its hive-style path gives
(`day=3/part.parquet`). Nothing is read here beyond folder listings, and a missing file is an error here already.

Files are kept as (URI, path), not as open handles, so that a task on another machine can open them itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs

from hse_dist.config.base import SCHEMES
from hse_dist.errors import DataError

FORMATS = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".inter": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
WILD = re.compile(r"[*?\[]")
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class LogFile:
    """One file of a log; pickles."""

    root: str
    """URI that names the file system; empty for the local one."""
    path: str
    """Path in that file system."""
    format: str
    """parquet, csv, tsv or jsonl."""
    size: int
    """Bytes as stored."""
    partition: dict[str, str | None] = field(default_factory=dict)
    """Columns that the path gives, as text; None is hive's null."""
    modified: int | None = None
    """When it was changed last, in ns since 1970; None where the store does not tell."""

    @property
    def name(self) -> str:
        """What an error calls this file."""
        scheme, separator, _ = self.root.partition("://")
        return f"{scheme}://{self.path.lstrip('/')}" if separator else self.path

    @property
    def compressed(self) -> bool:
        return self.path.endswith(tuple(COMPRESSIONS))

    def open(self) -> Any:
        """The file for random access, as it is stored. Raises DataError when it cannot be opened."""
        try:
            return _filesystem(self.root).open_input_file(self.path)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"The file {self.name} cannot be opened: {error}.", setting="data.source") from None

    def stream(self, opened: Any = None) -> Any:
        """The file for reading from front to back, decompressed by its ending. Raises DataError.

        Args:
            opened: what `open` gave, so that the caller sees how far it has been read.
        """
        opened = self.open() if opened is None else opened
        compression = COMPRESSIONS.get(os.path.splitext(self.path)[1])
        return opened if compression is None else pa.CompressedInputStream(opened, compression)


def expand(source: str) -> str:
    """`source` with environment variables and `~` filled in.

    Raises:
        DataError: a variable is not set, or the source is empty.
    """
    if not source.strip():
        raise DataError(
            "No log is named.", cause="Name a file, folder, glob or URI.", setting="data.source", value=source
        )
    expanded = os.path.expanduser(os.path.expandvars(source))
    unset = re.search(r"\$(\w+|\{[^}]*\})", expanded)
    if unset:
        name = unset.group(1).strip("{}")
        raise DataError(
            f"The environment variable {name} is not set.",
            cause=f"Set it, for example: export {name}=/path/to/data.",
            setting="data.source",
            value=source,
        )
    return expanded


def find_files(
    source: str, format: str = "auto", schemes: Sequence[str] = SCHEMES, *, required: bool = True
) -> list[LogFile]:
    """The files of a log, sorted by path; without `required` perhaps none.

    In folders and globs, names that begin with a dot or an underscore are passed over, and with `format = "auto"` also
    those whose ending is not known.

    Raises:
        DataError: nothing there, a format that the name does not tell, a scheme that is unknown or not of `schemes`.
    """
    address = expand(source)
    scheme, separator, _ = address.partition("://")
    if separator and scheme not in schemes:
        raise DataError(
            f"The log is to be read from {address}, but its scheme is not one that may be opened.",
            cause="Use another data.source, or add the scheme.",
            setting="data.schemes",
            value=list(schemes),
        )
    root, path = _locate(address)
    system = _filesystem(root)
    explicit, infos = False, []
    try:
        info = system.get_file_info(path)
        if info.type == pafs.FileType.File:
            explicit, infos = True, [info]
        elif info.type == pafs.FileType.Directory:
            infos = _walk(system, path)
        elif WILD.search(path):
            infos = _glob(system, path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"The log cannot be listed: {error}.", setting="data.source", value=source) from None
    files = [_log_file(root, info, format, explicit) for info in sorted(infos, key=lambda info: info.path)]
    found = [file for file in files if file is not None]
    if not found and required:
        endings = f"Files need one of the endings {', '.join(FORMATS)}, or a data.format."
        what = f"No file matches {path}." if WILD.search(path) else f"There is no log at {path}."
        raise DataError(what, cause=endings if infos else "Check the path.", setting="data.source", value=source)
    return found


def _locate(source: str) -> tuple[str, str]:
    """(URI of the file system or "", path in it)."""
    if "://" not in source:
        return "", os.path.abspath(source)
    # wildcards are not legal in a URI: the file system is found from the part before them
    wild = WILD.search(source)
    fixed = source if wild is None else source[: wild.start()].rpartition("/")[0]
    try:
        _, path = pafs.FileSystem.from_uri(fixed)
    except (pa.ArrowException, OSError, ValueError):
        path = _fsspec(source, fixed)[1]
    return ("" if source.startswith("file://") else fixed), path + source[len(fixed) :]


def _filesystem(root: str) -> pafs.FileSystem:
    if not root:
        return pafs.LocalFileSystem()
    try:
        return pafs.FileSystem.from_uri(root)[0]
    except (pa.ArrowException, OSError, ValueError):
        return _fsspec(root, root)[0]


def _fsspec(source: str, uri: str) -> tuple[pafs.FileSystem, str]:
    try:
        from fsspec.core import url_to_fs

        system, path = url_to_fs(uri)
    except (ImportError, ValueError, OSError) as error:
        raise DataError(
            f"Neither pyarrow nor fsspec can open this address: {error}.", setting="data.source", value=source
        ) from None
    return pafs.PyFileSystem(pafs.FSSpecHandler(system)), path


def _walk(system: pafs.FileSystem, folder: str) -> list[pafs.FileInfo]:
    """All files below `folder` that are not hidden."""
    prefix = len(folder.rstrip("/")) + 1
    return [
        info
        for info in system.get_file_info(pafs.FileSelector(folder, recursive=True))
        if info.type == pafs.FileType.File and not _hidden(info.path[prefix:])
    ]


def _glob(system: pafs.FileSystem, pattern: str) -> list[pafs.FileInfo]:
    """Files that match: `*` and `?` stay in a folder's name, `**` crosses folders; a matched folder gives all."""
    wild = WILD.search(pattern)
    folder = pattern[: wild.start() if wild else len(pattern)].rpartition("/")[0] or "/"
    if system.get_file_info(folder).type != pafs.FileType.Directory:
        return []
    matches = re.compile(f"{_regex(pattern)}(/.*)?")
    return [info for info in _walk(system, folder) if matches.fullmatch(info.path)]


def _regex(pattern: str) -> str:
    parts = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)
    return "".join(
        parts.get(token, token.replace("[!", "[^") if WILD.match(token) else re.escape(token)) for token in tokens
    )


def _hidden(path: str) -> bool:
    return any(part.startswith((".", "_")) for part in path.split("/"))


def _log_file(root: str, info: pafs.FileInfo, format: str, explicit: bool) -> LogFile | None:
    found = format if format != "auto" else _format_of(info.path)
    if not found and explicit:
        raise DataError(
            f"The format of {info.path} cannot be told from its name.",
            cause=f"Known endings: {', '.join(FORMATS)}.",
            setting="data.format",
            value=format,
        )
    if not found:
        return None
    return LogFile(root, info.path, found, int(info.size or 0), _partition(info.path), info.mtime_ns)


def _format_of(path: str) -> str:
    stem, ending = os.path.splitext(path)
    if ending in COMPRESSIONS:
        ending = os.path.splitext(stem)[1]
    return FORMATS.get(ending.lower(), "")


def _partition(path: str) -> dict[str, str | None]:
    pairs = (part.partition("=") for part in path.split("/")[:-1] if "=" in part)
    return {unquote(key): None if value == HIVE_NULL else unquote(value) for key, _, value in pairs if key}
