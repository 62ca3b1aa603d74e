"""What the manifest of a prepared folder says of its files, once it has been held against what can be true.

In: a folder. Out: the manifest, and its files by split. A manifest is a text that anybody can change: it may not lead
out of its folder, nor make a reader set memory aside for users that its files cannot hold.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from hse_dist.errors import DataError
from hse_dist.files import read_json

SPLITS = ("train", "valid", "test")
MANIFEST, VERSION = "manifest.json", 2
MOST_ITEMS = 2**31 - 1
"""Rows are counted in int32 on the way."""
USERS_A_BYTE = 64
"""More users than that no byte of a file of histories holds: each has an id of its own."""


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or PurePosixPath(path).is_absolute() or ".." in parts or "\0" in path or not path.isprintable():
        raise ValueError("it must be a path below the prepared folder")
    return path


class File(BaseModel):
    """A file of histories: `row_groups` has the users of each group."""

    model_config = ConfigDict(frozen=True, strict=True)

    path: Annotated[str, AfterValidator(_inside)]
    users: NonNegativeInt
    row_groups: list[PositiveInt]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Files(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    train: list[File]
    valid: list[File]
    test: list[File]


class _Version(BaseModel):
    """A version that this one comes from by extensions."""

    model_config = ConfigDict(frozen=True, strict=True)

    fingerprint: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    items: Annotated[int, Field(ge=1, le=MOST_ITEMS)]


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    items: Annotated[int, Field(ge=1, le=MOST_ITEMS)]
    files: _Files
    lineage: list[_Version] = []


def read_manifest(folder: Path) -> tuple[dict[str, Any], int, dict[str, list[File]]]:
    """The manifest as it is, the items, and the files by split.

    Raises:
        DataError: there is none, or it is not one of a prepared folder, or cannot be true; names what.
    """
    path = folder / MANIFEST
    plain = read_json(path, "manifest of the prepared folder")
    try:
        known = _Manifest.model_validate(plain)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise DataError(
            f"{path} is not the manifest of a prepared folder: {where}: {first['msg']}.", cause="Prepare it again."
        ) from None
    sizes = [*(one.items for one in known.lineage), known.items]
    if sizes != sorted(sizes):
        raise DataError(
            f"{path} cannot be right: it says that versions of {', '.join(map(str, sizes))} items followed each other.",
            cause="No row is ever taken away: prepare it again.",
        )
    files = {split: list(getattr(known.files, split)) for split in SPLITS}
    for file in (one for split in SPLITS for one in files[split]):
        there = folder / file.path
        size = there.stat().st_size if there.is_file() else None  # what is missing is said where it is read
        if sum(file.row_groups) != file.users or (size is not None and file.users > USERS_A_BYTE * size):
            raise DataError(
                f"{path} cannot be right: it says that {file.path} has {file.users} users.", cause="Prepare it again."
            )
    return plain, known.items, files
