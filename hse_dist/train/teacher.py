"""Another run that a run learns from.

In: `train.teacher`, the folder of a run on the same prepared data. Out: the rows of its best checkpoint, sharded over
the ranks as those of the run itself, and looked up for the same candidates; they are never changed. What that takes:
the teacher's table in memory, with the optimizer's state that lies beside it, and its chunks of a step's candidates on
the wire, in every step again; but where all items are candidates, once, and kept.

The run writes down which checkpoint of which run that is, so that one that goes on learns from what it has begun with.
"""

from __future__ import annotations

from pathlib import Path

import torch

from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.config import Config
from hse_dist.data.batch import Batch
from hse_dist.data.prepared import Prepared
from hse_dist.errors import RunFolderError
from hse_dist.evaluate.driver import open_best
from hse_dist.files import write_json
from hse_dist.model.teacher import Teacher
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder, read_record, stored_config
from hse_dist.tables.block import DenseRows, SparseRows

ELSEWHERE = "To learn from it as it is now, train into another run.folder."


def settings_of_teacher(config: Config) -> Config:
    """The configuration of the run of `train.teacher`.

    Raises:
        RunFolderError: there is no such run, or it is this one.
    """
    teacher = str(config.train.teacher)
    if Path(teacher).resolve() == RunFolder(config).path.resolve():
        raise _refusal(config, "A run cannot teach itself.", "This is run.folder in other words.")
    return stored_config(teacher, "train.teacher")


def check_teacher(config: Config, prepared: Prepared) -> None:
    """Check that the run of `train.teacher`, if there is to be one, can be learned from here, and remember its best
    checkpoint.

    Raises:
        RunFolderError: there is no such run, it is this one, it has no checkpoint or other data, it is one with
            features; or a run that goes on began with another one, or another checkpoint of it.
    """
    if config.train.teacher is None:
        return
    other, folder = settings_of_teacher(config), RunFolder(config)
    data, best = read_record(RunFolder(other).data, "record of the run's data"), CheckpointStore.of(other).best()
    if best is None:
        raise _refusal(config, "The run that is to teach has no checkpoint.", "Train it first.")
    if data.get("fingerprint") != prepared.fingerprint:
        what = f"The run that is to teach was trained on other data than those in {prepared.folder}."
        raise _refusal(config, what, "Its users for validation and test would be others.")
    if other.model.kind != "autoencoder":
        raise _refusal(config, "The run that is to teach has features of users or items.", "Only histories are shown.")
    identity = RunFolder(other).identity
    if not folder.started:
        write_json(folder.teacher, {"step": best.step, "run": identity})
        return
    record = read_record(folder.teacher, "record of the run's teacher")
    if record.get("run") != identity:
        raise _refusal(config, "The run that teaches is one of other settings than it was.", ELSEWHERE)
    _check_step(config, best.step)


def _check_step(config: Config, step: int) -> None:
    """Raises RunFolderError: the run began with another checkpoint of its teacher than that of `step`."""
    then = read_record(RunFolder(config).teacher, "record of the run's teacher").get("step")
    if then != step:
        what = f"The best checkpoint of the run that teaches is that of step {step} now, and was that of {then}."
        raise _refusal(config, what, f"That one is damaged, or the run was trained on meanwhile. {ELSEWHERE}")


def _refusal(config: Config, what: str, cause: str) -> RunFolderError:
    return RunFolderError(what, cause=cause, setting="train.teacher", value=config.train.teacher)


def _for_device(other: Config, config: Config) -> Config:
    """The teacher's settings on the devices of the run that learns."""
    tables, device = other.tables, config.cluster.device
    if device != "cuda":  # the other kernels are for the memory of GPUs
        tables = tables.model_copy(update={"item": tables.item.model_copy(update={"kernel": "fused"})})
    cluster = other.cluster.model_copy(update={"device": device})
    return other.model_copy(update={"cluster": cluster, "tables": tables})


class TeacherTable:
    """The table of the run that teaches, and its model; every method is a collective call.

    Raises:
        RunFolderError: the checkpoint that `check_teacher` found is none of those that are whole.
    """

    def __init__(self, config: Config, prepared: Prepared, ranks: Ranks) -> None:
        opened = open_best(_for_device(settings_of_teacher(config), config), prepared, ranks)
        _check_step(config, opened.step)
        self.table, self.model = opened.table, opened.model
        # where every batch has all items as candidates, and so on all ranks, one lookup is enough
        self.always_all = config.train.negatives >= prepared.items
        self._rows: SparseRows | DenseRows | None = None

    @classmethod
    def of(cls, config: Config, prepared: Prepared, ranks: Ranks) -> TeacherTable | None:
        """That of a run; None where it learns from histories."""
        return None if config.train.teacher is None else cls(config, prepared, ranks)

    def answer(self, batch: Batch) -> Teacher:
        """Its rows of the batch's candidates."""
        rows = self._rows
        if rows is None:
            with torch.no_grad():
                rows = self.table.lookup(batch.candidates)
        if self.always_all:
            self._rows = rows
        return self.model.teacher(rows, batch.positions)
