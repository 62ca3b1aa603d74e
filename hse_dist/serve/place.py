"""Where an export lies now, and whether it is another one than before.

In: what the user named: the folder of an export, or a folder of exports in which `latest.json` names one of them as
`{"folder": "NAME"}`. Out: the folder to load, and a mark that changes whenever another export takes that place. An
export replaces another by a rename, so its manifest is another file then.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hse_dist.errors import ExportError
from hse_dist.export.checks import MANIFEST
from hse_dist.files import read_json

LATEST = "latest.json"


@dataclass(frozen=True)
class Found:
    """A folder to load, and what tells its content from that of another time."""

    folder: Path
    mark: tuple[str, int, int, int]


def find(place: Path) -> Found:
    """The export that lies at `place` now.

    Raises:
        ExportError: there is none.
        DataError: `latest.json` cannot be read.
    """
    folder = _newest(place) if (place / LATEST).exists() else place
    try:
        status = (folder / MANIFEST).stat()
    except OSError:
        raise ExportError(f"There is no export at {folder} (no {MANIFEST}).") from None
    return Found(folder, (str(folder), status.st_ino, status.st_mtime_ns, status.st_size))


def _newest(place: Path) -> Path:
    content = read_json(place / LATEST, "name of the newest export")
    name = content.get("folder") if isinstance(content, dict) else None
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise ExportError(
            f'{place / LATEST} names no export: it is {{"folder": "NAME"}}, with the name of a folder beside it.'
        )
    return place / name
