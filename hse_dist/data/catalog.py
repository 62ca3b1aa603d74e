"""Public data sets, fetched when they are needed and never shipped.

In: a name. Out: the path of a Parquet file, cached under `runs/raw`:

    ml-100k          the log: user_id, item_id, rating, timestamp
    ml-100k/users    user_id, age, gender, occupation, zip_code
    ml-100k/items    item_id, release_year, class (the genres, a list)

MovieLens-100K (Harper & Konstan, TiiS 2015; its terms forbid redistribution) is looked for in this order: a path that
the user names, the official archive, and the wheel of recbole 1.2.1, which carries a copy. Whatever form it comes in,
its content is checked: the rows, sorted, have one sha256 a table (`movielens.py`). Those of users and items were made
from the wheel; the archive's `u.user` and `u.item` are read as its documentation says, and where that should give other
content the wheel is next. Of an archive one member is read into memory; nothing is unpacked.
"""

from __future__ import annotations

import io
import lzma
import os
import struct
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hse_dist.data.movielens import TABLES
from hse_dist.errors import DataError
from hse_dist.files import new_file

PREFIX = "catalog:"
"""Begins a source that is a name of this catalog."""
ROOT = "runs/raw"
NAME = "ml-100k"
ARCHIVE = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
WHEEL = "recbole==1.2.1"
ARCHIVES = ("ml-100k.zip", "recbole-1.2.1-py3-none-any.whl")
NO_ARCHIVE = (EOFError, OSError, RuntimeError, lzma.LZMAError, struct.error, zipfile.BadZipFile, zlib.error)
"""What zipfile raises of an archive that is damaged, or of a kind that it does not read."""
CONNECT_SECONDS = 10.0
DOWNLOAD_SECONDS = 300.0
MAX_BYTES = 64 << 20


def fetch(name: str, root: str | Path = ROOT) -> Path:
    """A table of a data set, fetched if it is not in the cache.

    Raises:
        DataError: an unknown name; no source could be reached (says why, one by one); content with another sha256.
    """
    if name not in TABLES:
        raise DataError(
            f"There is no data set {name!r}.", cause=f"There is {', '.join(TABLES)}.", setting="data.source"
        )
    path = Path(root).absolute() / NAME / TABLES[name].cache
    if path.exists() and _is_whole(path, name):
        return path
    table = _find(name)
    try:
        with new_file(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    except OSError as error:
        raise DataError(f"The data set cannot be kept in {path}: {error}.") from None
    return path


def _is_whole(path: Path, name: str) -> bool:
    """Whether the cache holds what was put there."""
    try:
        return TABLES[name].digest(pq.read_table(path)) == TABLES[name].content
    except (OSError, LookupError, TypeError, ValueError, pa.ArrowException):
        return False


def _find(name: str) -> pa.Table:
    named = _named_path(name)
    if named is not None:
        try:
            content = named.read_bytes()
        except OSError as error:
            raise DataError(f"{named} cannot be read: {error}.") from None
        return check(content, str(named), name)
    sources: tuple[Callable[[], tuple[bytes, str]], ...] = (download_archive, download_wheel)
    failures = []
    for source in sources:
        try:
            return check(*source(), name)
        except DataError as error:
            failures.append(f"\n  - {error}")
    raise DataError(
        f"{name} could not be fetched:{''.join(failures)}\n",
        cause=f"Download {ARCHIVE} yourself and name the file in HSE_DATA_ML_100K.",
    )


def _named_path(name: str) -> Path | None:
    """The file that the user names, if any: HSE_DATA_ML_100K, or one of its files in $HSE_DATA/ml-100k.

    Where that is the log alone, users and items are looked for beside it.
    """
    files = (*TABLES[name].files, *ARCHIVES)
    given = os.environ.get("HSE_DATA_ML_100K")
    folders = [Path(os.environ["HSE_DATA"]) / NAME] if os.environ.get("HSE_DATA") else []
    if given:
        path = Path(given).expanduser()
        others = [file for table in TABLES.values() for file in table.files if file not in files]
        if path.is_file() and path.name not in others:
            return path
        folders = [path.parent if path.is_file() else path]
    found = next((folder / file for folder in folders for file in files if (folder / file).is_file()), None)
    if given and found is None:
        raise DataError(
            f"HSE_DATA_ML_100K names {given}, but there is no such file.", cause=f"It may be one of {', '.join(files)}."
        )
    return found


def download_archive(url: str = ARCHIVE) -> tuple[bytes, str]:
    """(bytes, where from) of the official archive. Raises DataError."""
    try:
        with urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as response:
            return response.read(MAX_BYTES), url
    except (OSError, ValueError) as error:
        raise DataError(f"{url}: {error}.") from None


def download_wheel(requirement: str = WHEEL) -> tuple[bytes, str]:
    """(bytes, where from) of the wheel that carries a copy, from the configured package index. Raises DataError."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--dest", folder, requirement]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DataError(f"pip download {requirement}: {error}.") from None
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            said = done.stderr.strip().splitlines()
            raise DataError(f"pip download {requirement}: {said[-1] if said else 'nothing came'}.")
        return wheels[0].read_bytes(), f"the wheel {wheels[0].name}"


def check(content: bytes, origin: str, name: str = NAME) -> pa.Table:
    """The rows of a table's file, or of an archive or wheel that has it.

    Raises:
        DataError: not such a file, or other rows than those of MovieLens-100K.
    """
    table = TABLES[name]
    try:
        rows = table.parse(_member(content, table.members))
        digest = table.digest(rows)
    except (*NO_ARCHIVE, LookupError, OverflowError, pa.ArrowException, ValueError) as error:
        raise DataError(f"{origin} does not hold {name}: {error or type(error).__name__}.") from None
    if digest != table.content:
        raise DataError(
            f"The rows of {origin} have sha256 {digest}, not {table.content}.", cause="The file is not the original."
        )
    return rows


def _member(content: bytes, members: tuple[str, ...]) -> bytes:
    if not content.startswith(b"PK"):
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = set(archive.namelist())
        member = next((name for name in members if name in names), None)
        if member is None:
            raise KeyError(f"none of {', '.join(members)} in the archive")
        if archive.getinfo(member).file_size > MAX_BYTES:
            raise ValueError(f"{member} is larger than {MAX_BYTES} bytes")
        return archive.read(member)
