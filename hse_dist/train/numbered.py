"""Folders with numbers as names, of which the newest stay.

In: a folder that one process has for itself. Out: which numbers are in it, without old ones and without what a kill
left. `alone` is a lock that the system gives up when its process ends, however it ends.
"""

from __future__ import annotations

import fcntl
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from hse_dist.checkpoint.place import open_place
from hse_dist.config import CheckpointSettings
from hse_dist.errors import RunFolderError
from hse_dist.files import replace_folder

LOCK = "follow.lock"
LEFT = re.compile(r"\.[0-9]+\.[0-9]+\.(tmp|old)")
"""Hidden names of `files.py` in such a folder."""
log = logging.getLogger(__name__)


def name(number: int) -> str:
    """Of the folder."""
    return f"{number:04d}"


def numbers(folder: Path) -> list[int]:
    """Those that are there."""
    return [int(path.name) for path in folder.glob("[0-9]*") if path.name.isdecimal() and path.is_dir()]


def newest(folder: Path, mark: str) -> int:
    """The largest number of a folder that has the file `mark`; 0: there is none."""
    return max((number for number in numbers(folder) if (folder / name(number) / mark).exists()), default=0)


def prune(folder: Path, last: int, keep: int, checkpoints: CheckpointSettings | None = None) -> None:
    """Remove what is older than the `keep` newest ones up to `last`.

    Args:
        checkpoints: of runs that the folders hold; where they lie elsewhere, they go with their run.
    """
    for number in sorted((number for number in numbers(folder) if number <= last), reverse=True)[keep:]:
        # before the run's folder, which alone tells that they are there
        if checkpoints is not None and checkpoints.folder is not None:
            place = open_place(f"{checkpoints.folder.rstrip('/')}/{name(number)}", checkpoints.schemes)
            try:
                place.clear()
            except (OSError, pa.ArrowException) as error:
                log.warning("Checkpoints in %s cannot be removed: %s", place.name, error)
        replace_folder(folder / name(number), None)


def sweep(folder: Path) -> None:
    """Remove what a kill left while a folder was made or removed."""
    for path in folder.glob(".[0-9]*"):
        if LEFT.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def alone(folder: Path, setting: str) -> Iterator[None]:
    """Have a folder for this process alone, for the block.

    Args:
        setting: that names the folder.

    Raises:
        RunFolderError: another one has it, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise RunFolderError(f"{folder} cannot be written: {error}.", setting=setting, value=str(folder)) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"Another train --follow is at work in {folder}.",
                cause="End it first, or choose another folder.",
                setting=setting,
                value=str(folder),
            ) from None
        except OSError as error:  # not every file system has locks
            log.warning("%s cannot be locked, so see to it that nobody else follows there: %s", folder, error)
        yield
