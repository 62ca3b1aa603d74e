"""Public data sets, fetched when they are needed and never shipped.

In: a name. Out: the path of a Parquet log with the columns user_id, item_id, rating, timestamp, cached under
`runs/raw`.

MovieLens-100K (Harper & Konstan, TiiS 2015; its terms forbid redistribution) is looked for in this order: a path that
the user names, the official archive, and the wheel of recbole 1.2.1, which carries a copy. Whatever form it comes in,
its content is checked: the rows, sorted, as little-endian int64, have one sha256. Of an archive one member is read into
memory; nothing is unpacked.
"""

from __future__ import annotations

import hashlib
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

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from hse_dist.errors import DataError
from hse_dist.files import new_file

ROOT = "runs/raw"
NAME = "ml-100k"
ARCHIVE = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
WHEEL = "recbole==1.2.1"
MEMBERS = ("ml-100k/u.data", "recbole/dataset_example/ml-100k/ml-100k.inter")
FILES = ("u.data", "ml-100k.inter", "ml-100k.zip", "recbole-1.2.1-py3-none-any.whl")
COLUMNS = ("user_id", "item_id", "rating", "timestamp")
CONTENT = "ec862504a8c24b195f5194e51fb18bb2d59428d00d96d6d1c63433a3bd5f2f47"
"""sha256 of the 100 000 rows, sorted by (user, item, rating, timestamp), int64 little-endian, row by row."""
NO_ARCHIVE = (EOFError, OSError, RuntimeError, lzma.LZMAError, struct.error, zipfile.BadZipFile, zlib.error)
"""What zipfile raises of an archive that is damaged, or of a kind that it does not read."""
CONNECT_SECONDS = 10.0
DOWNLOAD_SECONDS = 300.0
MAX_BYTES = 64 << 20


def fetch(name: str, root: str | Path = ROOT) -> Path:
    """The log of a data set, fetched if it is not in the cache.

    Raises:
        DataError: an unknown name; no source could be reached (says why, one by one); content with another sha256.
    """
    if name != NAME:
        raise DataError(f"There is no data set {name!r}.", cause=f"There is {NAME}.", setting="data.source")
    path = Path(root).absolute() / name / "interactions.parquet"
    if path.exists() and _is_whole(path):
        return path
    table = _find()
    try:
        with new_file(path) as temporary:
            pq.write_table(table, temporary, compression="zstd")
    except OSError as error:
        raise DataError(f"The data set cannot be kept in {path}: {error}.") from None
    return path


def _is_whole(path: Path) -> bool:
    """Whether the cache holds what was put there."""
    try:
        table = pq.read_table(path, columns=list(COLUMNS))
        return not any(column.null_count for column in table.columns) and _digest(table) == CONTENT
    except (OSError, KeyError, ValueError, pa.ArrowException):
        return False


def _find() -> pa.Table:
    named = _named_path()
    if named is not None:
        try:
            content = named.read_bytes()
        except OSError as error:
            raise DataError(f"{named} cannot be read: {error}.") from None
        return check(content, str(named))
    sources: tuple[Callable[[], tuple[bytes, str]], ...] = (download_archive, download_wheel)
    failures = []
    for source in sources:
        try:
            return check(*source())
        except DataError as error:
            failures.append(f"\n  - {error}")
    raise DataError(
        f"{NAME} could not be fetched:{''.join(failures)}\n",
        cause=f"Download {ARCHIVE} yourself and name the file in HSE_DATA_ML_100K.",
    )


def _named_path() -> Path | None:
    """The file that the user names, if any: HSE_DATA_ML_100K, or one of FILES in $HSE_DATA/ml-100k."""
    given = os.environ.get("HSE_DATA_ML_100K")
    folders = [Path(os.environ["HSE_DATA"]) / NAME] if os.environ.get("HSE_DATA") else []
    if given:
        path = Path(given).expanduser()
        if path.is_file():
            return path
        folders = [path]
    found = next((folder / file for folder in folders for file in FILES if (folder / file).is_file()), None)
    if given and found is None:
        raise DataError(
            f"HSE_DATA_ML_100K names {given}, but there is no such file.", cause=f"It may be one of {', '.join(FILES)}."
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


def check(content: bytes, origin: str) -> pa.Table:
    """The rows of u.data, of ml-100k.inter, or of an archive or wheel with one of them.

    Raises:
        DataError: not such a file, or other rows than those of MovieLens-100K.
    """
    try:
        table = _parse(_member(content))
        if any(column.null_count for column in table.columns):
            raise ValueError("numbers are missing")
        digest = _digest(table)
    except (*NO_ARCHIVE, LookupError, pa.ArrowException, ValueError) as error:
        raise DataError(f"{origin} does not hold {NAME}: {error or type(error).__name__}.") from None
    if digest != CONTENT:
        raise DataError(
            f"The rows of {origin} have sha256 {digest}, not {CONTENT}.", cause="The file is not the original."
        )
    return table


def _member(content: bytes) -> bytes:
    if not content.startswith(b"PK"):
        return content
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = set(archive.namelist())
        member = next((name for name in MEMBERS if name in names), None)
        if member is None:
            raise KeyError(f"none of {', '.join(MEMBERS)} in the archive")
        if archive.getinfo(member).file_size > MAX_BYTES:
            raise ValueError(f"{member} is larger than {MAX_BYTES} bytes")
        return archive.read(member)


def _parse(content: bytes) -> pa.Table:
    header = content.startswith(b"user_id")
    return pacsv.read_csv(
        io.BytesIO(content),
        pacsv.ReadOptions(use_threads=False, column_names=list(COLUMNS), skip_rows=1 if header else 0),
        pacsv.ParseOptions(delimiter="\t"),
        pacsv.ConvertOptions(column_types={name: pa.int64() for name in COLUMNS}),
    )


def _digest(table: pa.Table) -> str:
    columns = [table.column(name).to_numpy() for name in COLUMNS]
    order = np.lexsort(columns[::-1])
    rows = np.stack([column[order] for column in columns], axis=1).astype("<i8")
    return hashlib.sha256(rows.tobytes()).hexdigest()
