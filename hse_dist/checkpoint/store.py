"""The checkpoints of a run: `step-00000100/` with sharded state, `rank-00000.npz`, `shared.npz`, `facts.json` and
`manifest.json`.

In: the sharded state of a table, what each rank alone knows (growth candidates, running sums), what all of them know
(the layout of the rows), and facts (step, data position, server journal, validation). Out: a checkpoint that is there
whole or not at all, at once or from a thread; and back, after every file of it has been checked against the manifest.
One that does not stand the check is set aside under another name, and the one before it is taken.
torch.distributed.checkpoint does the sharding, so another number of ranks can load what this one wrote. Its `.metadata`
file is a pickle: checkpoints are trusted input (see README.md here).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from hse_dist.checkpoint.finding import Checkpoint, by_step, by_worth, find, none_left, open_first
from hse_dist.checkpoint.group import Gathers, Group
from hse_dist.checkpoint.place import open_place
from hse_dist.checkpoint.reading import read_arrays, read_shards
from hse_dist.checkpoint.saving import SHARED, folder_name, write
from hse_dist.checkpoint.snapshot import Snapshot
from hse_dist.config import Config
from hse_dist.errors import HseError
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder

log = logging.getLogger(__name__)
Arrays = dict[str, np.ndarray]


def nothing() -> None:
    """What there is to do where nobody asks for anything."""


class CheckpointStore:
    """All checkpoints of a folder; the newest `keep` and the best by validation stay.

    Args:
        folder: a path, or a URI with a scheme of `schemes`.
        asynchronous: a thread writes; one at a time.
        timeout_seconds: limit of every wait for other ranks while a checkpoint is written.
    """

    def __init__(
        self,
        folder: str | Path,
        keep: int,
        *,
        asynchronous: bool = False,
        schemes: tuple[str, ...] = (),
        timeout_seconds: float = 600.0,
    ) -> None:
        self.place, self.keep, self.asynchronous = open_place(folder, schemes), keep, asynchronous
        self.timeout_seconds = timeout_seconds
        self._group: Group | None = None
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    @classmethod
    def of(cls, config: Config) -> Self:
        """The checkpoints of a run."""
        settings = config.checkpoint
        return cls(
            RunFolder(config).checkpoints if settings.folder is None else settings.folder,
            settings.keep,
            asynchronous=settings.asynchronous,
            schemes=settings.schemes,
            timeout_seconds=config.cluster.timeout_seconds,
        )

    def all(self) -> list[Checkpoint]:
        """Checkpoints by step, as far as their manifests tell: their files are checked when one is opened.

        Raises:
            RunFolderError: there are some and none of them is good, or one is of a newer format.
        """
        self.wait()
        found, damaged = find(self.place)
        if not found:
            none_left(self.place, damaged)
        return found

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint."""
        return next(iter(by_step(self.all())), None)

    def best(self) -> Checkpoint | None:
        """The checkpoint with the best validation; of equal ones the earliest. Without validation: the newest."""
        return next(iter(by_worth(self.all())), None)

    def open_latest(self, ranks: Gathers) -> Checkpoint | None:
        """The newest checkpoint whose files are all as they were written; a collective call.

        Others are set aside, with a warning.

        Raises:
            RunFolderError: there are some and none of them is good, or one is of a newer format.
        """
        self.wait()
        return open_first(self.place, ranks, by_step)

    def open_best(self, ranks: Gathers) -> Checkpoint | None:
        """The best checkpoint whose files are all as they were written; as `open_latest`."""
        self.wait()
        return open_first(self.place, ranks, by_worth)

    def save(
        self,
        state: dict[str, Any],
        own: Arrays | list[Arrays],
        facts: dict[str, Any],
        ranks: Ranks,
        shared: Arrays | None = None,
        allowed: Callable[[], None] = nothing,
        then: Callable[[], None] = nothing,
    ) -> str:
        """Write a checkpoint, or begin to; a collective call, which waits for the one before.

        Args:
            state: sharded tensors.
            own: this rank's arrays, which no other rank has; several where it speaks for former ranks, too.
            facts: JSON; `step` names the folder, `metric` decides what is best.
            shared: arrays that are the same on all ranks.
            allowed: what rank 0 does right before it is committed; perhaps in a thread. Raises where it must not be.
            then: what rank 0 does once it is committed; perhaps in a thread.

        Returns:
            where it is, or will be: everything in it is as of this moment.

        Raises:
            RunFolderError: this one, or the one before, cannot be written; what was there before it is untouched.
            MissingRanksError: a rank is gone.
        """
        self.wait()
        group = self._group = self._group or Group(ranks, self.timeout_seconds)
        parts = own if isinstance(own, list) else [own]
        snapshot = Snapshot.of(state, parts, shared or {}, facts, copied=self.asynchronous)

        def after() -> None:
            self._prune()
            then()

        if self.asynchronous:
            self._thread = threading.Thread(
                target=self._write, args=(snapshot, group, allowed, after), name="checkpoint"
            )
            self._thread.start()
        else:
            write(self.place, snapshot, group, allowed, after)
        return self.place.address(folder_name(snapshot.step))

    def _write(self, snapshot: Snapshot, group: Group, allowed: Callable[[], None], after: Callable[[], None]) -> None:
        try:
            write(self.place, snapshot, group, allowed, after)
        except BaseException as error:
            self._failure = error

    @property
    def pending(self) -> bool:
        """Whether there is a checkpoint that nobody has waited for: the same on every rank, finished or not."""
        return self._thread is not None

    @property
    def under_way(self) -> bool:
        """Whether the thread still writes; not the same on every rank."""
        return self._thread is not None and self._thread.is_alive()

    def check(self) -> None:
        """Raise what the thread failed with, if it has failed by now; does not wait."""
        if self._failure is not None:
            self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is committed.

        Raises:
            HseError: it could not be; as `save`.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Nothing is under way when the block ends, however it ends."""
        try:
            yield
        except BaseException:
            try:
                self.wait()
            except HseError as error:
                log.warning("%s", error)  # what ended the block is what counts
            raise
        self.wait()

    def load(self, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        """Fill `state` in place; a collective call. What has not been checked yet is, by every rank.

        Raises:
            RunFolderError: the checkpoint is damaged or does not fit.
        """
        read_shards(self.place, checkpoint, state)

    def load_own(self, checkpoint: Checkpoint, ranks: Gathers) -> list[Arrays]:
        """What the ranks of the checkpoint had for themselves, dealt out over the ranks of now.

        Raises:
            RunFolderError: the checkpoint is damaged.
        """
        names = sorted(name for name in checkpoint.manifest.files if name.startswith("rank-"))
        return [read_arrays(self.place, checkpoint, name) for name in names[ranks.rank :: ranks.size]]

    def load_shared(self, checkpoint: Checkpoint) -> Arrays:
        """What all ranks of the checkpoint knew.

        Raises:
            RunFolderError: the checkpoint is damaged.
        """
        return read_arrays(self.place, checkpoint, SHARED)

    def _prune(self) -> None:
        """Remove what is neither new nor best; damaged ones stay as they are."""
        found, _ = find(self.place)
        stay = {one.name for one in (*by_step(found)[: self.keep], *by_worth(found)[:1])}
        for one in found:
            if one.name not in stay:
                self.place.remove(one.name)
