"""What the manifest of a prepared folder says of its files, once it has been held against what can be true.

In: a folder. Out: the manifest, and its files by split. A manifest is a text that anybody can change: it may not lead
out of its folder, nor make a reader set memory aside for users that its files cannot hold.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
    model_validator,
)

from hse_dist.errors import DataError
from hse_dist.files import read_json

SPLITS = ("train", "valid", "test")
MANIFEST, VERSION = "manifest.json", 2
MOST_ITEMS = 2**31 - 1
"""Rows are counted in int32 on the way."""
USERS_A_BYTE = 64
"""More users than that no byte of a file of histories holds: each has an id of its own."""
ROWS_A_BYTE = 64
"""More values than that no byte of a vocabulary holds, in which each stands once."""


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


class FeatureFile(BaseModel):
    """A file beside the histories."""

    model_config = ConfigDict(frozen=True, strict=True)

    path: Annotated[str, AfterValidator(_inside)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class PreparedFeature(BaseModel):
    """A feature of users or items: `rows` values, 0 the one that most have.

    `vocabulary` is the file of its values; None: the value is the user's own id, row r the r-th training user. `lists`
    is that of the values of each item.
    """

    model_config = ConfigDict(frozen=True, strict=True)

    name: Annotated[str, Field(pattern="^[a-z_][a-z0-9_]{0,63}$")]
    of: Literal["user", "item"]
    rows: Annotated[int, Field(ge=1, le=MOST_ITEMS)]
    vocabulary: FeatureFile | None
    lists: FeatureFile | None

    @model_validator(mode="after")
    def _files(self) -> PreparedFeature:
        if (self.of == "item") != (self.lists is not None) or (self.of == "item" and self.vocabulary is None):
            raise ValueError(f"the files of {self.name} are not those of a feature of {self.of}s")
        return self


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    items: Annotated[int, Field(ge=1, le=MOST_ITEMS)]
    files: _Files
    lineage: list[_Version] = []
    features: list[PreparedFeature] = []


def differing(made: dict[str, Any], now: dict[str, Any], section: str = "data") -> str:
    """The settings that differ, each with both of its values; of sections that only one has, their names alone."""
    found = []
    for key in sorted(made.keys() | now.keys()):
        name, old, new = f"{section}.{key}", made.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found.append(differing(old, new, name))
        elif isinstance(old, dict) or isinstance(new, dict):
            found.append(f"{name} was set (now it is not)" if new is None else f"{name} was not set (now it is)")
        else:
            found.append(f"{name} = {old!r} (now {new!r})")
    return ", ".join(found)


def read_manifest(folder: Path) -> tuple[dict[str, Any], int, dict[str, list[File]], dict[str, PreparedFeature]]:
    """The manifest as it is, the items, the files by split, and the features by name.

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
    for vocabulary, rows in ((one.vocabulary, one.rows) for one in known.features):
        if vocabulary is None or not (there := folder / vocabulary.path).is_file():
            continue
        if rows > ROWS_A_BYTE * there.stat().st_size:
            raise DataError(
                f"{path} cannot be right: it says that {vocabulary.path} has {rows} values.", cause="Prepare it again."
            )
    features = {one.name: one for one in known.features}
    training = sum(file.users for file in files["train"])
    if len(features) < len(known.features) or any(
        one.vocabulary is None and one.rows != training for one in known.features
    ):
        raise DataError(
            f"{path} cannot be right: it has a feature twice, or other than {training} rows of training users.",
            cause="Prepare it again.",
        )
    return plain, known.items, files, features
