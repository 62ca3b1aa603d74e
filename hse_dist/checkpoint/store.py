"""The checkpoints of a run: `checkpoints/step-00000100/` with sharded state, `rank-00000.npz`, `shared.npz` and
`facts.json`.

In: the sharded state of a table, what each rank alone knows (growth candidates, running sums), what all of them know
(the layout of the rows), and facts (step, data position, server journal, validation). Out: a folder that is there whole
or not at all: ranks write into a temporary folder, rank 0 adds the facts and renames it; one that goes gets a hidden
name first. What a kill left under a hidden name (`.step-…`) counts for nothing and is removed by the next save.
torch.distributed.checkpoint does the sharding, so another number of ranks can load what this one wrote. Its `.metadata`
file is a pickle: checkpoints are trusted input.
"""

from __future__ import annotations

import shutil
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed.checkpoint as dcp

from hse_dist.errors import DataError, RunFolderError
from hse_dist.files import read_json, replace_folder, write_json
from hse_dist.ranks import Ranks

FORMAT = 3
FACTS, SHARED = "facts.json", "shared.npz"


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint: its folder and its facts."""

    folder: Path
    facts: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.facts["step"])

    @property
    def metric(self) -> float | None:
        """The validation metric after this step, if there was a validation."""
        return self.facts.get("metric")


class CheckpointStore:
    """All checkpoints under `folder`; the newest `keep` and the best by validation stay."""

    def __init__(self, folder: str | Path, keep: int) -> None:
        self.folder, self.keep = Path(folder), keep

    def all(self) -> list[Checkpoint]:
        """Complete checkpoints by step.

        Raises:
            RunFolderError: one cannot be read, or was written by another format of this project.
        """
        found = []
        for path in self.folder.glob("step-*"):
            try:
                facts = read_json(path / FACTS, "checkpoint's facts")
            except DataError as error:
                raise RunFolderError(f"The checkpoint {path} cannot be read: {error}") from None
            there = facts.get("format") if isinstance(facts, dict) else None
            if there != FORMAT:
                raise RunFolderError(f"The checkpoint {path} has format {there}, not {FORMAT}.")
            found.append(Checkpoint(path, facts))
        return sorted(found, key=lambda one: one.step)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint."""
        return next(reversed(self.all()), None)

    def best(self) -> Checkpoint | None:
        """The checkpoint with the best validation; of equal ones the earliest. Without validation: the newest."""
        judged = [one for one in self.all() if one.metric is not None]
        return max(judged, key=lambda one: (one.metric, -one.step), default=None) or self.latest()

    def save(
        self,
        state: dict[str, Any],
        own: dict[str, np.ndarray],
        facts: dict[str, Any],
        ranks: Ranks,
        shared: dict[str, np.ndarray] | None = None,
    ) -> Path:
        """Write a checkpoint; a collective call.

        Args:
            state: sharded tensors.
            own: this rank's arrays, which no other rank has.
            facts: JSON; `step` names the folder, `metric` decides what is best.
            shared: arrays that are the same on all ranks.

        Raises:
            RunFolderError: it cannot be written; what was there before is untouched.
        """
        final = self.folder / f"step-{facts['step']:08d}"
        temporary = self.folder / f".step-{facts['step']:08d}.tmp"
        if ranks.rank == 0:
            for left in self.folder.glob(".step-*"):
                shutil.rmtree(left, ignore_errors=True)
        ranks.barrier()
        with _readable_errors(f"The checkpoint {final} cannot be written"):
            temporary.mkdir(parents=True, exist_ok=True)
            np.savez(temporary / f"rank-{ranks.rank:05d}.npz", **own)  # type: ignore[arg-type]
            # ends when all ranks are done with it, so that all of their files are there
            dcp.save(state, checkpoint_id=str(temporary))
            if ranks.rank == 0:
                np.savez(temporary / SHARED, **(shared or {}))  # type: ignore[arg-type]
                write_json(temporary / FACTS, {**facts, "format": FORMAT})
                replace_folder(final, temporary)
                self._prune()
        ranks.barrier()
        return final

    def load(self, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        """Fill `state` in place; a collective call.

        Raises:
            RunFolderError: the checkpoint cannot be read or does not fit.
        """
        with _readable_errors(f"The checkpoint {checkpoint.folder} cannot be read"):
            dcp.load(state, checkpoint_id=str(checkpoint.folder))

    def load_own(self, checkpoint: Checkpoint, ranks: Ranks) -> list[dict[str, np.ndarray]]:
        """What the ranks of the checkpoint had for themselves, dealt out over the ranks of now.

        Raises:
            RunFolderError: the checkpoint cannot be read.
        """
        files = sorted(checkpoint.folder.glob("rank-*.npz"))[ranks.rank :: ranks.size]
        with _readable_errors(f"The checkpoint {checkpoint.folder} cannot be read"):
            return [_read(file) for file in files]

    def load_shared(self, checkpoint: Checkpoint) -> dict[str, np.ndarray]:
        """What all ranks of the checkpoint knew.

        Raises:
            RunFolderError: the checkpoint cannot be read.
        """
        with _readable_errors(f"The checkpoint {checkpoint.folder} cannot be read"):
            return _read(checkpoint.folder / SHARED)

    def _prune(self) -> None:
        best = self.best()
        for old in self.all()[: -self.keep]:
            if best is None or old.folder != best.folder:
                replace_folder(old.folder, None)


def _read(file: Path) -> dict[str, np.ndarray]:
    with file.open("rb") as opened, np.load(opened) as arrays:
        return dict(arrays)


@contextmanager
def _readable_errors(what: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # ShardedTensor is TorchRec's choice, and dcp says of it that DTensor is newer
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", UserWarning)
            yield
    # the first is no subclass of Exception; the last three are NumPy's words for a damaged file
    except (dcp.api.CheckpointException, OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise RunFolderError(f"{what}: {error}") from None
