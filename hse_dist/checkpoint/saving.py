"""Writing one checkpoint: all ranks, or none.

In: a snapshot on every rank. Out: a committed checkpoint, or the same error on every rank and no trace. It may run in
a thread: it touches nothing but its snapshot, its place and its own process group.

    begin (rank 0) → own arrays and shards (every rank) → shared arrays and facts (rank 0) → manifest → commit
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from hse_dist.checkpoint.group import Group, together, words_of
from hse_dist.checkpoint.manifest import MANIFEST, Content, Manifest
from hse_dist.checkpoint.place import PREFIX, Place
from hse_dist.checkpoint.snapshot import Snapshot
from hse_dist.checkpoint.streams import Files, Writer
from hse_dist.errors import HseError, MissingRanksError, RunFolderError

FACTS, SHARED = "facts.json", "shared.npz"


def folder_name(step: int) -> str:
    """The folder of the checkpoint of a step."""
    return f"{PREFIX}{step:08d}"


def own_name(rank: int) -> str:
    """The file of what a rank alone knows."""
    return f"rank-{rank:05d}.npz"


def write(
    place: Place, snapshot: Snapshot, group: Group, before: Callable[[], None], after: Callable[[], None]
) -> None:
    """Write a checkpoint and commit it; a collective call of `group`.

    Args:
        before: what rank 0 does right before it is committed; it is not if this raises.
        after: what rank 0 does once it is committed.

    Raises:
        RunFolderError: a rank cannot write; what was there before is untouched.
        MissingRanksError: a rank is gone.
    """
    name, first = folder_name(snapshot.step), group.rank == 0
    what = f"The checkpoint {place.address(name)} cannot be written"
    work = together(group, what, lambda: place.begin(name) if first else "")[0]
    try:
        files = Files(place, work)
        together(group, what, lambda: _write_own(files, snapshot, group))
        _write_shards(files, snapshot.state, group, what)
        together(group, what, lambda: _write_shared(files, snapshot) if first else None)
        parts = together(group, what, lambda: files.written)
        together(group, what, before if first else lambda: None)
        together(group, what, lambda: _commit(place, files, name, snapshot.step, parts) if first else None)
    except (HseError, KeyboardInterrupt):
        if first:
            with suppress(OSError):
                place.discard(work)
        raise
    together(group, f"After the checkpoint {place.address(name)}", after if first else lambda: None)


def _write_arrays(files: Files, name: str, arrays: dict[str, np.ndarray]) -> None:
    with files.new(name) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # numpy declares `allow_pickle` among the names


def _write_own(files: Files, snapshot: Snapshot, group: Group) -> None:
    # dealt out as they are read again
    for index, arrays in enumerate(snapshot.own):
        _write_arrays(files, own_name(group.rank + index * group.size), arrays)


def _write_shards(files: Files, state: dict[str, Any], group: Group, what: str) -> None:
    """torch's own collectives, after which either all ranks go on or all fail."""
    try:
        dcp.save(state, storage_writer=Writer(files), process_group=group.process_group)
    except CheckpointException as error:
        raise RunFolderError(f"{what}: {words_of(error)}") from None
    except RuntimeError as error:
        raise MissingRanksError(f"{what}: not every rank took part.", cause=str(error)) from None


def _write_shared(files: Files, snapshot: Snapshot) -> None:
    _write_arrays(files, SHARED, snapshot.shared)
    files.write(FACTS, snapshot.facts)


def _commit(place: Place, files: Files, name: str, step: int, parts: list[dict[str, Content]]) -> None:
    contents = {file: content for part in parts for file, content in part.items()}
    files.write(MANIFEST, Manifest(step, contents).dump())
    place.commit(files.folder, name)
