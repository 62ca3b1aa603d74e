"""Folders that the submitting machine and the cluster must share, and the proof that they do.

In: folders. Out: a small file in each, which the job looks for before it does anything: the same path may be another
folder on the cluster, and its results would lie where nobody looks for them. Light: every command imports it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from hse_dist.errors import RunFolderError

VARIABLE = "HSE_SHARED_MARKS"
"""Of a submitted job's environment: `setting=path of its mark`, with newlines between."""


def mark(folders: Mapping[str, Path], name: str) -> dict[str, Path]:
    """Put a mark into each folder, or into the nearest one above it that is there; the marks, by their settings.

    Args:
        folders: by their settings; absolute.
        name: of the marks, which no other job uses.

    Raises:
        RunFolderError: a folder cannot be written here.
    """
    marks: dict[str, Path] = {}
    for setting, folder in folders.items():
        there = next((one for one in (folder, *folder.parents) if one.is_dir()), folder)
        try:
            (there / f".{name}").touch()
        except OSError as error:
            remove(marks)
            raise RunFolderError(
                f"The folder cannot be written here: {error}.", setting=setting, value=str(folder)
            ) from None
        marks[setting] = there / f".{name}"
    return marks


def remove(marks: Mapping[str, Path]) -> None:
    """Remove the marks; the job has done so where it found them."""
    for path in marks.values():
        with suppress(OSError):
            path.unlink()


def told(marks: Mapping[str, Path]) -> str:
    """The value of `VARIABLE`."""
    return "\n".join(f"{setting}={path}" for setting, path in marks.items())


def check_shared(environment: MutableMapping[str, str] = os.environ) -> None:
    """Look for the marks, and remove them; in a process that nobody submitted, do nothing.

    Raises:
        RunFolderError: a folder is not the one of the submitting machine.
    """
    # once: what this process starts in turn finds none
    lines = environment.pop(VARIABLE, "").splitlines()
    marks = {setting: Path(path) for setting, _, path in (line.partition("=") for line in lines)}
    for setting, path in marks.items():
        if not path.exists():
            raise RunFolderError(
                "The cluster does not see this folder of the machine that submitted the job.",
                cause="A relative folder is one of that machine. Give an absolute one, on storage that all nodes see.",
                setting=setting,
                value=str(path.parent),
            )
    remove(marks)
