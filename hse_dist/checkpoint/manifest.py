"""The manifest of a checkpoint: which files it has, how long they are, and their SHA-256.

In: what a rank knows of the files that it wrote. Out: `manifest.json`, which is written last and makes the others a
checkpoint; and back, or `Damaged` with the reason. The manifest carries the SHA-256 of itself, over the canonical JSON
of its other keys: this rule, and the keys `format` and `sha256`, are the same in every format from 4 on, so that a
newer one can be told from a damaged one.

    4   since the manifest; before it the number stood in facts.json
    3   the same files without checksums; `migrate.py` makes 4 of it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from hse_dist import __version__
from hse_dist.errors import RunFolderError
from hse_dist.files import too_deep

FORMAT = 4
MANIFEST = "manifest.json"
READ_AT_A_TIME = 2**22
"""Bytes hashed at once."""
HEX_DIGITS = 64


class Damaged(Exception):
    """What is wrong with a checkpoint, or with a file of it; never leaves this package."""


@dataclass(frozen=True)
class Content:
    """What a file holds: its length in bytes, and its SHA-256 in hexadecimal digits."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of a checkpoint by name, and who wrote it."""

    step: int
    files: Mapping[str, Content]

    def dump(self) -> bytes:
        """As JSON."""
        plain = {
            "format": FORMAT,
            "step": self.step,
            "writer": f"hse_dist {__version__}",
            "files": {name: {"bytes": one.size, "sha256": one.sha256} for name, one in self.files.items()},
        }
        text = json.dumps({**plain, "sha256": _own_digest(plain)}, indent=1, sort_keys=True)
        return text.encode() + b"\n"

    @classmethod
    def parse(cls, data: bytes, where: str) -> Manifest:
        """The manifest in `data`.

        Raises:
            Damaged: it is not what `dump` gave.
            RunFolderError: it is of a newer format; names it, and the checkpoint `where`.
        """
        plain = _checked(data)
        if plain["format"] != FORMAT:
            raise RunFolderError(
                f"The checkpoint {where} has format {plain['format']}, this program reads formats up to {FORMAT}.",
                cause="It was written by a newer version of hse_dist: use that one.",
            )
        try:
            step, files = plain["step"], {name: _content(name, one) for name, one in plain["files"].items()}
        except (KeyError, TypeError, AttributeError):
            raise Damaged(f"{MANIFEST} lacks what a manifest has") from None
        if not _count(step):
            raise Damaged(f"{MANIFEST} has the step {step!r}")
        return cls(step, files)


def _checked(data: bytes) -> dict[str, Any]:
    """The manifest's JSON, after its own checksum."""
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} is not JSON ({error})") from None
    if not isinstance(plain, dict) or not _count(plain.get("format")) or too_deep(plain):
        raise Damaged(f"{MANIFEST} is no manifest")
    rest = {key: value for key, value in plain.items() if key != "sha256"}
    if plain.get("sha256") != _own_digest(rest):
        raise Damaged(f"{MANIFEST} does not have its own SHA-256")
    return plain


def _own_digest(plain: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _content(name: str, one: Mapping[str, Any]) -> Content:
    size, sha256 = one["bytes"], one["sha256"]
    # a name is a file beside the manifest, nothing else
    if not name or "/" in name or "\\" in name or "\0" in name or name in (".", "..", MANIFEST):
        raise Damaged(f"{MANIFEST} names the file {name!r}")
    if not _count(size) or not isinstance(sha256, str) or len(sha256) != HEX_DIGITS:
        raise Damaged(f"{MANIFEST} does not say what {name} holds")
    return Content(size, sha256)


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0


def content_of(file: IO[bytes]) -> Content:
    """Length and SHA-256 of an open file, from where it stands to its end."""
    digest, size = hashlib.sha256(), 0
    for part in _parts(file):
        digest.update(part)
        size += len(part)
    return Content(size, digest.hexdigest())


def _parts(file: IO[bytes]) -> Iterator[bytes]:
    while part := file.read(READ_AT_A_TIME):
        yield part


def check(name: str, expected: Content, open_file: Callable[[], IO[bytes]]) -> None:
    """Check a file against its manifest.

    Raises:
        Damaged: it is missing, cannot be read, or holds something else; says which.
    """
    try:
        with open_file() as file:
            found = content_of(file)
    except FileNotFoundError:
        raise Damaged(f"the file {name} is missing") from None
    except OSError as error:
        raise Damaged(f"the file {name} cannot be read ({error})") from None
    if found.size != expected.size:
        raise Damaged(f"the file {name} has {found.size} bytes, not {expected.size}")
    if found.sha256 != expected.sha256:
        raise Damaged(f"the file {name} does not have the SHA-256 that it was written with")
