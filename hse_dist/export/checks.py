"""What of a folder of an export or a delta is refused.

In: manifests, files and arrays that somebody may have changed. Out: the same, or an error: compiled kernels index
memory by what they say.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import scipy.sparse as sp

from hse_dist.errors import ExportError
from hse_dist.export.rows import MOST_NUMBER
from hse_dist.files import refuse_devices

MANIFEST = "manifest.json"
MOST_DIMS = 2**24
"""Columns; vectors of D numbers are made for users."""
MOST_ITEMS = 2**31 - 1


def refuse_to_replace(folder: Path, kind: str) -> None:
    """An export replaces an export, a delta a delta; anything else with content in it stays."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ExportError(f"{folder} is a file, not a folder to export to.")
    if any(folder.iterdir()) and kind_of(folder) != kind:
        raise ExportError(
            f"The folder {folder} has content that is no {_word(kind)}.", cause="Choose an empty or new folder."
        )


def _word(kind: str) -> str:
    return kind.removeprefix("hse_dist ")


def kind_of(folder: Path) -> object:
    """What the manifest of a folder says that it is; None where there is none."""
    try:
        refuse_devices(folder / MANIFEST)
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content.get("kind") if isinstance(content, dict) else None


def describe_file(path: Path) -> dict[str, Any]:
    """Size and sha256."""
    refuse_devices(path)
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def check_files(folder: Path, names: tuple[str, ...], said: dict[str, Any], verify: bool) -> None:
    """Hold files to the manifest: sizes, and checksums if they are to be verified. Files are read side by side."""

    def look(name: str) -> dict[str, Any] | OSError:
        try:
            return describe_file(folder / name) if verify else {"bytes": (folder / name).stat().st_size}
        except OSError as error:
            return error

    with ThreadPoolExecutor(min(len(names), os.cpu_count() or 1)) as pool:
        for name, found in zip(names, pool.map(look, names), strict=True):
            if isinstance(found, OSError):
                raise ExportError(f"The export {folder} lacks {name}: {found}.", cause="Export again.") from None
            expected = said.get(name)
            if not verify and isinstance(expected, dict):
                expected = {"bytes": expected.get("bytes")}
            if found != expected:
                raise ExportError(f"{folder / name} is truncated or changed.", cause="Copy it again, or export again.")


def check_ids(ids: pa.Array, distinct: bool = True) -> pa.Array:
    """Ids that items may have.

    Raises:
        ValueError: of other types, missing, or some there twice.
    """
    ids.validate(full=True)
    if not (pa.types.is_integer(ids.type) or pa.types.is_string(ids.type) or pa.types.is_large_string(ids.type)):
        raise ValueError(f"its ids are {ids.type}")
    if ids.null_count or (distinct and len(ids.unique()) < len(ids)):
        raise ValueError("ids are missing, or there twice")
    return ids


def check_numbers(numbers: np.ndarray) -> np.ndarray:
    """Values or gains as float32."""
    numbers = numbers.astype(np.float32, copy=False)
    # a NaN is the least and the largest, and in no range
    if len(numbers) and not (numbers.min() >= -MOST_NUMBER and numbers.max() <= MOST_NUMBER):
        raise ValueError("values or gains are not finite, or above 2^30")
    return numbers


def check_matrix(
    offsets: np.ndarray, columns: np.ndarray, values: np.ndarray, manifest: dict[str, Any]
) -> sp.csr_matrix:
    """Rows as the manifest says.

    Raises:
        ValueError: they are not.
    """
    dims, live = manifest["dims"], manifest["live_entries"]
    if len(columns) != live or len(values) != live or (live and not 0 <= columns.min() <= columns.max() < dims):
        raise ValueError("its live entries are others")
    columns = columns.astype(np.int32 if dims < 2**31 else np.int64, copy=False)
    falls = columns[1:] <= columns[:-1]
    falls[(offsets[1:-1] - 1)[(offsets[1:-1] > 0) & (offsets[1:-1] < live)]] = False  # from one row to another
    if falls.any():
        raise ValueError("the columns of a row do not rise")
    matrix = sp.csr_matrix((check_numbers(values), columns, offsets), shape=(manifest["items"], dims))
    matrix.has_canonical_format = True
    return matrix


def read_manifest(folder: Path, kind: str, version: int, needed: set[str]) -> dict[str, Any]:
    """The manifest of an export or a delta, its sizes in range.

    Raises:
        ExportError: it is missing, of another kind or version, or lacks something.
    """
    word = _word(kind)
    try:
        refuse_devices(folder / MANIFEST)
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        cause = "That of a run is RUN/export, once `hse-dist export` has written it." if word == "export" else ""
        raise ExportError(f"There is no {word} at {folder} (no {MANIFEST}).", cause=cause) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ExportError(f"The manifest of the {word} {folder} cannot be read: {error}.") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != kind or not isinstance(manifest.get("files"), dict):
        article = "an" if word == "export" else "a"
        raise ExportError(f"{folder / MANIFEST} is not the manifest of {article} {word}.")
    if manifest.get("version") != version:
        raise ExportError(
            f"The {word} {folder} has version {manifest.get('version')}, this program reads version {version}.",
            cause="Export again, or use the program that wrote it.",
        )
    if missing := needed - manifest.keys():
        raise ExportError(f"The manifest of the {word} {folder} lacks {', '.join(sorted(missing))}.")
    ranges = {"items": (1, MOST_ITEMS), "dims": (1, MOST_DIMS), "live_entries": (0, 2**62), "user_entries": (1, 2**62)}
    for name, (least, most) in ranges.items():
        size = manifest[name]
        if not (type(size) is int and least <= size <= most) and (name, size) != ("user_entries", None):
            raise ExportError(f"The manifest of the {word} {folder} has {name} = {size!r}.")
    return manifest
