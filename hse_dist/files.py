"""Files that are either whole or not there.

In: a final path. Out: a temporary path beside it that becomes the final one by a rename when the block ends well, and
is removed when it does not. A folder goes as it came, by a rename: a kill while it is removed leaves a hidden name, not
a part of it. JSON is written with sorted keys, so that equal content is equal bytes.
"""

from __future__ import annotations

import glob
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hse_dist.errors import DataError

DEEPEST = 50
"""Levels of JSON."""


@contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """A temporary path that replaces `path` when the block ends without an exception."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder that replaces `path` when the block ends without an exception."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        replace_folder(path, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(path: Path, new: Path | None) -> None:
    """Put the folder `new`, or nothing, in the place of `path`.

    What was there gets the hidden name `.NAME.PID.old` before it is removed; those that a kill left are removed too.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.old"):
        shutil.rmtree(left, ignore_errors=True)
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    # over a file or a link the rename of `new` fails, and it stays
    if path.is_dir() and not path.is_symlink():
        os.replace(path, old)
    if new is not None:
        os.replace(new, path)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write `content` as JSON, whole or not at all."""
    with new_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_json(path: str | Path, what: str) -> Any:
    """The JSON in `path`; `what` names the file's role in the error.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        refuse_devices(path)
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if too_deep(content):
            raise ValueError("it is nested too deeply")
    except FileNotFoundError:
        raise DataError(f"There is no {what} at {path}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"The {what} at {path} cannot be read: {error}.") from None
    return content


def too_deep(tree: Any) -> bool:
    """Whether JSON is nested more deeply than anything of ours: what looks at it calls itself, and Python ends that."""
    level = [tree]
    for _ in range(DEEPEST):
        level = [
            part
            for one in level
            if isinstance(one, dict | list)
            for part in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(level)


def refuse_devices(path: str | Path) -> None:
    """Raise OSError where `path` is there and no file: a pipe or a device, also behind a link, may have no end."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is not a file")
