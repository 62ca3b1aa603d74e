"""Checkpoints of older formats, made into ones of this format.

In: the folder of a checkpoint that has no manifest of this format. Out: the same folder with one. Nothing else in it is
changed, and the manifest is written whole or not at all, so that a kill leaves it as it was. A format that comes after
this one adds a function here, and a stored checkpoint to the tests.
"""

from __future__ import annotations

import logging
from typing import Any

from hse_dist.checkpoint.manifest import MANIFEST, Manifest, content_of
from hse_dist.checkpoint.place import LocalPlace
from hse_dist.checkpoint.streams import Files

log = logging.getLogger(__name__)
WITHOUT_MANIFEST = 3
"""The format whose number stands in the facts."""


def is_of_format_3(facts: Any) -> bool:
    """Whether the facts beside no manifest are those of a checkpoint that never had one."""
    return isinstance(facts, dict) and facts.get("format") == WITHOUT_MANIFEST


def from_format_3(place: LocalPlace, name: str, step: int) -> Manifest:
    """Write the manifest of a checkpoint of format 3. What its files hold is taken as right: they had no checksums.

    Raises:
        OSError: it cannot be read.
    """
    folder, temporary = place.folder / name, f".{MANIFEST}.tmp"
    contents = {}
    for path in sorted(folder.iterdir()):
        if path.name == temporary:  # what a kill left of an earlier try
            continue
        if path.is_file():  # what is none was not written by a save
            with path.open("rb") as file:
                contents[path.name] = content_of(file)
    manifest, files = Manifest(step, contents), Files(place, name)
    try:
        files.write(temporary, manifest.dump())
        files.rename(temporary, MANIFEST)
    except OSError as error:
        log.warning("The checkpoint %s is of format 3 and cannot be given checksums: %s", folder, error)
    else:
        log.warning("The checkpoint %s was of format 3 and has checksums from now on", folder)
    return manifest
