"""Faults to inject into a run: one function or class a fault, for tests and for `hse-dist soak`.

In: a driver's process id, a folder of prepared data, or a plan of faults that happen inside of workers. Out: the fault,
once; what survives of the run is for others to compare. Faults from outside are signals and changed files. Those from
inside patch the worker's own classes: `plant` writes them into a folder, and `faulty_worker`, in the place of
`train_worker`, lets each of them happen the first time that its rank comes to its step.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from hse_dist.files import new_file, read_json, write_json
from hse_dist.processes import Process, descendants
from hse_dist.ranks import Ranks
from hse_dist.run_folder import RunFolder

WORKER, SERVER = "ray::RayTrainWorker", "ray::ServerActor"
"""How Ray's processes begin their names."""
SIZE_WHEN_FULL = 4096


def workers(driver: int) -> list[Process]:
    """The workers of a run on a local cluster, by its driver's process id."""
    return [one for one in descendants(driver) if one.name.startswith(WORKER)]


def servers(driver: int) -> list[Process]:
    """The process of the SparsityServer's actor."""
    return [one for one in descendants(driver) if one.name.startswith(SERVER)]


def kill(process: Process) -> None:
    """SIGKILL: the process ends without a word."""
    os.kill(process.pid, signal.SIGKILL)


def stop(process: Process) -> None:
    """SIGSTOP: the process says nothing any more and keeps its connections."""
    os.kill(process.pid, signal.SIGSTOP)


def go_on(process: Process) -> None:
    """SIGCONT, where the process still is."""
    with suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGCONT)


def terminate(pid: int) -> None:
    """SIGTERM: what a machine gets that is wanted for something else."""
    os.kill(pid, signal.SIGTERM)


FileFault = Literal["vanishes", "truncated", "changed"]


@contextmanager
def spoiled(path: Path, fault: FileFault) -> Iterator[None]:
    """A file that vanishes, is cut off, or has other bytes, for the block; after it the file is as it was.

    What was there is moved aside and a spoiled copy takes its place, so that a reader with the file open goes on.
    """
    kept = path.with_name(f".{path.name}.kept")
    os.replace(path, kept)
    try:
        if fault != "vanishes":
            with new_file(path) as copy:
                shutil.copyfile(kept, copy)
                with copy.open("r+b") as file:
                    if fault == "truncated":
                        file.truncate(kept.stat().st_size // 2)
                    else:
                        file.seek(kept.stat().st_size // 3)
                        file.write(b"\xa5" * 16)
        yield
    finally:
        os.replace(kept, path)


Kind = Literal["raise", "nan_loss", "nan_row", "nan_gradient", "delay_message", "drop_message", "disk_full"]
INSIDE: tuple[Kind, ...] = (
    "raise", "nan_loss", "nan_row", "nan_gradient", "delay_message", "drop_message", "disk_full",
)  # fmt: skip


@dataclass(frozen=True)
class Planted:
    """A fault inside of a worker, at the first step from `step` on at which it can happen.

    Attributes:
        name: of this one; it happens once, whatever restarts.
        seconds: of a delay.
    """

    name: str
    kind: Kind
    rank: int
    step: int
    seconds: float = 0.0


def plant(folder: Path, fault: Planted) -> None:
    """Let it happen in the worker groups that look into `folder`; also in one that is under way."""
    write_json(folder / f"{fault.name}.json", asdict(fault))


def happened(folder: Path, fault: Planted) -> bool:
    """Whether it has."""
    return (folder / f"{fault.name}.happened").exists()


class Saboteur:
    """Patches the classes of this process, so that what is planted happens on this rank.

    Args:
        folder: where faults are planted.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.folder, self.rank, self.step = folder, rank, 0
        self._left: list[Any] = []

    def due(self, *kinds: Kind) -> Planted | None:
        """The planted fault of these kinds that is to happen now; it counts as happened."""
        for path in sorted(self.folder.glob("*.json")):
            fault = Planted(**read_json(path, "planted fault"))
            here = fault.kind in kinds and fault.rank == self.rank and fault.step <= self.step
            if here and not happened(self.folder, fault):
                (self.folder / f"{fault.name}.happened").touch()
                return fault
        return None

    def __enter__(self) -> Saboteur:
        from hse_dist.checkpoint.store import CheckpointStore
        from hse_dist.model.autoencoder import Autoencoder
        from hse_dist.sparsity.remote import RayTransport
        from hse_dist.train.guard import Guard
        from hse_dist.train.step import Trainer

        for kind, name, patch in (
            (Trainer, "step", self._step),
            (Autoencoder, "loss", self._loss),
            (Guard, "watch", self._watch),
            (RayTransport, "_send", self._send),
            (CheckpointStore, "save", self._save),
        ):
            self._left.append((kind, name, getattr(kind, name)))
            setattr(kind, name, patch(getattr(kind, name)))
        return self

    def __exit__(self, *_: Any) -> None:
        for kind, name, original in self._left:
            setattr(kind, name, original)

    def _step(self, original: Any) -> Any:
        def step(trainer: Any, batch: Any, number: int, *following: Any) -> Any:
            self.step = number
            if self.due("raise"):
                raise RuntimeError(f"Rank {self.rank} was made to fail in step {number}.")
            if self.due("nan_row"):
                trainer.table.local_values()[0] = np.nan
            return original(trainer, batch, number, *following)

        return step

    def _loss(self, original: Any) -> Any:
        def loss(model: Any, *arguments: Any, **options: Any) -> Any:
            value, activations = original(model, *arguments, **options)
            return (value * np.nan if self.due("nan_loss") else value), activations

        return loss

    def _watch(self, original: Any) -> Any:
        def watch(guard: Any, rows: Any, candidates: Any) -> Any:
            rows = original(guard, rows, candidates)
            if self.due("nan_gradient"):
                rows.values.register_hook(lambda gradient: torch.full_like(gradient, np.nan))
            return rows

        return watch

    def _send(self, original: Any) -> Any:
        def send(transport: Any, sequence: int) -> Any:
            fault = self.due("delay_message", "drop_message")
            if fault is not None and fault.kind == "drop_message":
                return never_answered()
            if fault is not None:
                time.sleep(fault.seconds)
            return original(transport, sequence)

        return send

    def _save(self, original: Any) -> Any:
        def save(store: Any, *arguments: Any, **options: Any) -> Any:
            if self.due("disk_full"):
                with disk_full():
                    saved = original(store, *arguments, **options)
                    store.wait()  # the thread that writes, perhaps
                    return saved
            return original(store, *arguments, **options)

        return save


def never_answered() -> Any:
    """Ray's reference to an answer that does not come."""
    import ray

    def wait() -> None:
        time.sleep(3600)

    return ray.remote(num_cpus=0)(wait).remote()


@contextmanager
def disk_full() -> Iterator[None]:
    """Whatever this process writes fails once a file has a page, by the system's own limit on the size of files."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE_WHEN_FULL, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def faulty_worker(ranks: Ranks, arguments: dict[str, Any]) -> dict[str, Any]:
    """`train_worker` with the faults that are planted in `faults` of the run folder."""
    from hse_dist.train.worker import train_worker

    with Saboteur(RunFolder(arguments["config"]).path / "faults", ranks.rank):
        return train_worker(ranks, arguments)
