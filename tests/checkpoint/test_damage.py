"""Damaged checkpoints: named, set aside, and the one before is used; by one rank and by two."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hse_dist.checkpoint.manifest import MANIFEST, Content, Damaged, Manifest
from hse_dist.checkpoint.store import CheckpointStore
from hse_dist.errors import HseError, RunFolderError
from hse_dist.ranks import Ranks
from hse_dist.testing.ranks import run_ranks

KINDS = (".metadata", "__0_0.distcp", "rank-00000.npz", "shared.npz", "facts.json", MANIFEST)


def save(store: CheckpointStore, ranks: Ranks, step: int, metric: float | None = None) -> Path:
    state = {"table": torch.full((300,), float(step))}
    own, facts = {"own": np.array([step])}, {"step": step, "metric": metric}
    return Path(store.save(state, own, facts, ranks, {"layout": np.arange(50)}))


def table_of(store: CheckpointStore, checkpoint: Any) -> float:
    state = {"table": torch.zeros(300)}
    store.load(checkpoint, state)
    return float(state["table"].unique())


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "truncated": truncate,
    "flipped": flip,
    "emptied": lambda file: file.write_bytes(b""),
    "missing": Path.unlink,
    "a folder": lambda file: (file.unlink(), file.mkdir())[0],
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path, caplog, kind, damage):
    store = CheckpointStore(tmp_path, 3)

    def work(ranks: Ranks) -> None:
        save(store, ranks, 4)
        path = save(store, ranks, 8)
        DAMAGES[damage](path / kind)
        with caplog.at_level(logging.WARNING):
            found = store.open_latest(ranks)
        assert found is not None and found.step == 4 and table_of(store, found) == 4
        (record,) = [one for one in caplog.records if one.name.startswith("hse_dist")]
        assert f"{path} is damaged" in record.getMessage() and kind in record.getMessage()
        assert not path.exists() and (tmp_path / "damaged-step-00000008").exists()
        # and the run goes on
        save(store, ranks, 8)
        assert store.latest().step == 8 and (tmp_path / "damaged-step-00000008").exists()

    run_ranks(work, 1)


def all_refused(ranks: Ranks, folder: str) -> str:
    try:
        CheckpointStore(folder, 3).open_latest(ranks)
    except RunFolderError as error:
        return str(error)
    return ""


def on_two(ranks: Ranks, folder: str) -> tuple[int, float]:
    store = CheckpointStore(folder, 3)
    for step in (4, 8, 12):
        save(store, ranks, step)
    if ranks.rank == 0:
        for step, name in ((12, "rank-00001.npz"), (8, ".metadata")):
            flip(Path(folder) / f"step-{step:08d}" / name)
    ranks.barrier()
    found = store.open_latest(ranks)
    assert found is not None
    return found.step, table_of(store, found)


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_agree_on_the_last_good_one_and_on_none(tmp_path):
    assert run_ranks(on_two, 2, str(tmp_path)) == [(4, 4.0)] * 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "damaged-step-00000008",
        "damaged-step-00000012",
        "step-00000004",
    ]
    flip(tmp_path / "step-00000004" / "shared.npz")
    for _ in range(2):  # never a silent start from nothing
        said = run_ranks(all_refused, 2, str(tmp_path))
        assert said[0] == said[1] and "No good checkpoint is left" in said[0] and "damaged-step-00000004" in said[0]


def test_the_best_that_is_whole_is_what_is_evaluated(tmp_path):
    store = CheckpointStore(tmp_path, 3)

    def work(ranks: Ranks) -> None:
        for step, metric in ((4, 0.2), (8, 0.9), (12, 0.5)):
            save(store, ranks, step, metric)
        flip(tmp_path / "step-00000008" / "__0_0.distcp")
        assert store.best().step == 8  # as far as manifests tell
        assert store.open_best(ranks).step == 12

    run_ranks(work, 1)


def test_load_checks_what_nobody_has_checked(tmp_path):
    store = CheckpointStore(tmp_path, 3)

    def work(ranks: Ranks) -> None:
        path = save(store, ranks, 4)
        found = store.latest()
        flip(path / "__0_0.distcp")
        with pytest.raises(RunFolderError, match=r"step-00000004 cannot be read.*__0_0\.distcp.*SHA-256"):
            table_of(store, found)

    run_ranks(work, 1)


def forge(folder: Path, **changes: Any) -> None:
    """Change the manifest, and give it its checksum again."""
    plain = {**json.loads((folder / MANIFEST).read_text()), **changes}
    del plain["sha256"]
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    plain["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(plain))


def test_a_newer_format_is_refused_by_name_and_left_alone(tmp_path):
    store = CheckpointStore(tmp_path, 3)

    def work(ranks: Ranks) -> None:
        save(store, ranks, 4)
        path = save(store, ranks, 8)
        forge(path, format=5)
        for action in (store.all, lambda: store.open_latest(ranks)):
            with pytest.raises(RunFolderError, match=r"step-00000008 has format 5, .* up to 4"):
                action()
        assert path.exists()

    run_ranks(work, 1)


class Evil:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_no_pickle_runs_that_is_not_metadata(tmp_path):
    store, trace = CheckpointStore(tmp_path / "checkpoints", 3), tmp_path / "trace"

    def work(ranks: Ranks) -> None:
        path = save(store, ranks, 4)
        data = pickle.dumps(Evil(trace))
        (path / ".metadata").write_bytes(data)
        with pytest.raises(RunFolderError, match=r"\.metadata"):
            table_of(store, store.latest())
        # even where the manifest vouches for it
        files = json.loads((path / MANIFEST).read_text())["files"]
        files[".metadata"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        forge(path, files=files)
        with pytest.raises(RunFolderError, match="metadata do not consist of"):
            table_of(store, store.latest())
        assert not trace.exists()

    run_ranks(work, 1)


@pytest.mark.parametrize("name", ["../x", "a/b", "", "..", "/etc/passwd", MANIFEST, "a\\b"])
def test_a_manifest_names_only_files_beside_it(name):
    with pytest.raises(Damaged):
        Manifest.parse(Manifest(1, {name: Content(0, "0" * 64)}).dump(), "here")


@pytest.mark.parametrize("seed", range(5))
def test_any_bytes_are_a_manifest_or_damage(seed):
    good = Manifest(7, {"a": Content(3, "0" * 64), ".metadata": Content(9, "f" * 64)}).dump()
    assert Manifest.parse(good, "here").files["a"].size == 3
    rng = np.random.default_rng(seed)
    for _ in range(60):
        data = bytearray(good)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(256)
        data = data[: rng.integers(1, len(data) + 1)]
        try:
            assert Manifest.parse(bytes(data), "here") == Manifest.parse(good, "here")
        except (Damaged, HseError):
            continue
