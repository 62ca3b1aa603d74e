"""Saving under faults, and in a thread: whole or not at all, on all ranks, as of the moment it was asked for."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hse_dist.checkpoint.place import LocalPlace, open_place
from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.config import TrainSettings
from hse_dist.errors import ConfigError, HseError, RunFolderError
from hse_dist.ranks import Ranks
from hse_dist.testing.ranks import run_ranks
from hse_dist.testing.tables import Content

CONTENT = Content.random(0, 30, 50, 8, longest=25, long_rows={3: 50})
MODES = pytest.mark.parametrize("asynchronous", [False, True])


def save(store: CheckpointStore, ranks: Ranks, step: int, size: int = 300) -> None:
    state = {"table": torch.full((size,), float(step))}
    store.save(state, {"own": np.array([step])}, {"step": step, "metric": None}, ranks)


def value_of(store: CheckpointStore, ranks: Ranks, size: int = 300) -> float:
    state, found = {"table": torch.zeros(size)}, store.open_latest(ranks)
    assert found is not None
    store.load(found, state)
    return float(state["table"].unique())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


@MODES
def test_a_full_disk_stops_with_its_name_and_leaves_the_last_good_checkpoint(small_disk, asynchronous):
    store = CheckpointStore(small_disk / "checkpoints", 2, asynchronous=asynchronous)

    def work(ranks: Ranks) -> None:
        save(store, ranks, 4)
        with pytest.raises(RunFolderError, match=r"step-00000008 cannot be written.*No space left on device"):
            save(store, ranks, 8, size=500_000)
            store.wait()
        assert os.listdir(small_disk / "checkpoints") == ["step-00000004"], "half a checkpoint fills the disk"
        assert value_of(store, ranks) == 4
        save(store, ranks, 12)
        assert value_of(store, ranks) == 12

    run_ranks(work, 1)


@MODES
def test_a_read_only_folder_stops_with_its_name(small_disk, asynchronous):
    store = CheckpointStore(small_disk, 2, asynchronous=asynchronous)

    def work(ranks: Ranks) -> None:
        save(store, ranks, 4)
        store.wait()
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
        with pytest.raises(RunFolderError, match=r"step-00000008 cannot be written.*Read-only"):
            save(store, ranks, 8)
            store.wait()
        assert value_of(store, ranks) == 4

    run_ranks(work, 1)


def test_a_file_that_may_not_grow_is_an_error_not_a_torn_checkpoint(tmp_path):
    store = CheckpointStore(tmp_path, 2)

    def work(ranks: Ranks) -> None:
        save(store, ranks, 4)
        before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
            with pytest.raises(RunFolderError, match="File too large"):
                save(store, ranks, 8, size=100_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert value_of(store, ranks) == 4

    run_ranks(work, 1)


FILES = {0: ("rank-00000", "__0_0", ".metadata.tmp", "shared.npz", "facts.json", "manifest.json"), 1: ("rank-", "__1_")}


def fail_everywhere(ranks: Ranks, folder: str, asynchronous: bool) -> list[str]:
    """One rank's file of each kind cannot be written; what every rank says of it, and how long it took."""
    store, said = CheckpointStore(folder, 2, asynchronous=asynchronous, timeout_seconds=60), []
    table = CONTENT.table(ranks, "row_wise", TrainSettings(), with_gains=True)

    def attempt(step: int) -> None:
        store.save(table.state_dict(), {"own": np.ones(3)}, {"step": step, "metric": None}, ranks)
        store.wait()

    attempt(4)
    real, began = LocalPlace.write, time.monotonic()
    for rank, names in FILES.items():
        for name in names:

            def write(self: LocalPlace, path: str, rank: int = rank, name: str = name) -> Any:
                if ranks.rank == rank and Path(path).name.startswith(name):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return real(self, path)

            with pytest.MonkeyPatch.context() as patch, pytest.raises(RunFolderError) as caught:
                patch.setattr(LocalPlace, "write", write)
                attempt(8)
            said.append(str(caught.value))
            assert [one.step for one in store.all()] == [4]
    assert time.monotonic() - began < 30, "ranks waited for one that had given up"
    found = store.open_latest(ranks)
    assert found is not None
    store.load(found, table.state_dict())
    attempt(12)
    assert store.latest().step == 12
    return said


@pytest.mark.distributed
@MODES
def test_when_one_rank_cannot_write_all_ranks_stop(tmp_path, asynchronous):
    first, second = run_ranks(fail_everywhere, 2, str(tmp_path), asynchronous)
    assert first == second and len(first) == 8
    assert all("step-00000008 cannot be written" in text and "No space left" in text for text in first)
    assert [f"rank {rank}" in text for rank, text in zip([0] * 6 + [1] * 2, first, strict=True)] == [True] * 8


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("at", FILES[0])
def test_a_kill_at_any_file_leaves_no_part_of_a_checkpoint(tmp_path, at):
    store, real = CheckpointStore(tmp_path, 2), LocalPlace.write

    def killed(self: LocalPlace, path: str) -> Any:
        file = real(self, path)
        if Path(path).name.startswith(at):
            file.write(b"half")
            file.close()
            raise Killed
        return file

    def work(ranks: Ranks) -> None:
        save(store, ranks, 4)
        with pytest.MonkeyPatch.context() as patch, pytest.raises((Killed, HseError)):
            patch.setattr(LocalPlace, "write", killed)
            save(store, ranks, 8)
        later = CheckpointStore(tmp_path, 2)
        assert value_of(later, ranks) == 4
        save(later, ranks, 8)
        assert sorted(os.listdir(tmp_path)) == ["step-00000004", "step-00000008"]

    run_ranks(work, 1)


class Gate:
    """Holds a thread that saves at its first file until it is opened."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.open, real = threading.Event(), LocalPlace.write

        def write(place: LocalPlace, path: str) -> Any:
            assert self.open.wait(60)
            return real(place, path)

        patch.setattr(LocalPlace, "write", write)


def moment(ranks: Ranks, folder: str) -> list[tuple[float, int, str]]:
    """Everything changes between the clone and the writing, while training's own exchanges go on."""
    store, kept = CheckpointStore(folder, 2, asynchronous=True, timeout_seconds=60), []
    table = CONTENT.table(ranks, "row_wise", TrainSettings(), with_gains=True)
    table.local_values().fill_(1.0)
    own, facts = {"own": np.array([1])}, {"step": 1, "metric": None, "journal": ["one"]}
    with pytest.MonkeyPatch.context() as patch:
        gate = Gate(patch)
        store.save(table.state_dict(), own, facts, ranks, None, lambda: kept.append("then"))
        assert store.pending and not kept
        table.local_values().fill_(2.0)
        own["own"][0], facts["metric"] = 2, 0.5
        facts["journal"].append("two")
        for turn in range(20):
            gate.open.set() if turn == 5 else None
            assert int(ranks.sum(torch.tensor(turn + ranks.rank))) == 2 * turn + 1
    found = store.open_latest(ranks)
    assert found is not None and not store.pending and len(kept) == (ranks.rank == 0)
    store.load(found, table.state_dict())
    (mine,) = store.load_own(found, ranks)
    return [(float(table.local_values().unique()), int(mine["own"][0]), str(dict(found.facts)))]


@pytest.mark.distributed
def test_a_thread_writes_what_was_there_when_it_was_asked_to(tmp_path):
    facts = {"journal": ["one"], "metric": None, "step": 1}
    assert run_ranks(moment, 2, str(tmp_path)) == [[(1.0, 1, str(facts))]] * 2


def test_a_second_save_waits_for_the_first_and_an_error_comes_at_the_next_step(tmp_path):
    store = CheckpointStore(tmp_path, 3, asynchronous=True)

    def work(ranks: Ranks) -> None:
        with pytest.MonkeyPatch.context() as patch:
            gate = Gate(patch)
            save(store, ranks, 4)
            opener = threading.Timer(0.3, gate.open.set)
            opener.start()
            save(store, ranks, 8)
            assert (tmp_path / "step-00000004").exists()
            opener.join()
        assert [one.step for one in store.all()] == [4, 8]

        def broken(place: LocalPlace, path: str) -> Any:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LocalPlace, "write", broken)
            save(store, ranks, 12)
            assert store._thread is not None
            store._thread.join()
        with pytest.raises(RunFolderError, match=r"step-00000012 cannot be written.*No space left"):
            store.check()
        store.check()  # once is enough
        assert value_of(store, ranks) == 8
        with pytest.raises(ZeroDivisionError), store.settled():
            save(store, ranks, 16)
            raise ZeroDivisionError
        assert (tmp_path / "step-00000016").exists(), "nothing is under way once the block has ended"

    run_ranks(work, 1)


def in_a_store(ranks: Ranks, address: str, scheme: str) -> list[Any]:
    """A store without renames: half a checkpoint has no manifest."""
    store = CheckpointStore(address, 2, schemes=(scheme,), asynchronous=True)
    for step in (4, 8, 12):
        save(store, ranks, step)
    answers: list[Any] = [[one.step for one in store.all()], value_of(store, ranks)]
    if ranks.rank == 0:
        with store.place.write("step-00000012/facts.json") as file:
            file.write(b"{}")
        store.place.system.create_dir(store.place._at("step-00000099"))
        with store.place.write("step-00000099/facts.json") as file:
            file.write(b"{}")
    ranks.barrier()
    answers += [value_of(store, ranks), store.place.aside(), [one.step for one in store.all()]]
    save(store, ranks, 16)
    return [*answers, [one.step for one in store.all()], store.place._names()]


STORED = [[8, 12], 12.0, 8.0, ["step-00000012"], [8], [8, 16], ["step-00000008", "step-00000012", "step-00000016"]]


def test_a_store_of_fsspec_is_written_manifest_last():
    address = f"memory://checkpoints-{os.getpid()}"
    assert run_ranks(in_a_store, 1, address, "memory") == [STORED]


@pytest.mark.distributed
def test_two_ranks_write_into_a_store(tmp_path):
    # fsspec's name for local files, which are taken for a store here
    assert run_ranks(in_a_store, 2, f"local://{tmp_path}/checkpoints", "local") == [STORED] * 2


def test_a_place_goes_with_all_that_is_in_it(tmp_path):
    for place in (open_place(tmp_path / "a", ()), open_place(f"local://{tmp_path}/a", ("local",))):
        work = place.begin("step-00000001")
        place.write(f"{work}/file").close()
        assert (tmp_path / "a").exists()
        for _ in range(2):
            place.clear()
            assert not (tmp_path / "a").exists()


def test_only_listed_schemes_are_opened(tmp_path):
    for address in ("memory://x", "simplecache::memory://x", "http://127.0.0.1:1/x"):
        with pytest.raises(ConfigError, match=r"checkpoint\.schemes"):
            CheckpointStore(address, 2, schemes=("file", "s3"))
    assert CheckpointStore(f"file://{tmp_path}/a%20b", 2, schemes=("file",)).place.folder == tmp_path / "a b"
    with pytest.raises(ConfigError, match="Neither pyarrow nor fsspec can open"):
        CheckpointStore("nosuch://x", 2, schemes=("nosuch",))
