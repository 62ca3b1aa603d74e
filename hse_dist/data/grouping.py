"""From a heap of interactions to histories: one entry a user and item, in time order.

In: the interactions of one part of the user hash, in any order and with duplicates. Out: a `Part`: distinct users in
the order of their hash, distinct items sorted by id, and per user the item codes. All arrays; the result depends on the
set of interactions only, not on their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hse_dist.data.hashing import BUCKET_SEED, hash_ids


@dataclass(frozen=True)
class Part:
    """Histories of the users of one range of the hash."""

    users: pa.Array
    """Distinct user ids [U], rising by (hash, id)."""
    items: pa.Array
    """Distinct item ids [I], rising."""
    offsets: np.ndarray
    """int64 [U + 1]: history of user u is codes[offsets[u]:offsets[u + 1]]."""
    codes: np.ndarray
    """int32 [L]: indices into `items`; rising in (time, id) with timestamps, in id without."""

    def save(self, folder: str) -> None:
        """Write the part's files into `folder`."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        for name, ids in (("users", self.users), ("items", self.items)):
            with pa.OSFile(str(path / f"{name}.arrow"), "wb") as sink:
                batch = pa.RecordBatch.from_arrays([ids], ["id"])
                with pa.ipc.new_file(sink, batch.schema) as writer:
                    writer.write_batch(batch)
        np.save(path / "offsets.npy", self.offsets)
        np.save(path / "codes.npy", self.codes)

    @staticmethod
    def load(folder: str) -> Part:
        """The part written by `save`, mapped into memory."""
        path = Path(folder)
        ids = {}
        for name in ("users", "items"):
            with pa.memory_map(str(path / f"{name}.arrow")) as source:
                ids[name] = pa.ipc.open_file(source).get_batch(0).column("id")
        offsets, codes = np.load(path / "offsets.npy"), np.load(path / "codes.npy", mmap_mode="r")
        return Part(ids["users"], ids["items"], offsets, codes)

    def owners(self) -> np.ndarray:
        """The user of each entry, int32 [L]."""
        return np.repeat(np.arange(len(self.users), dtype=np.int32), np.diff(self.offsets))


def group(table: pa.Table) -> Part:
    """Histories of a table of interactions with the columns user, item and, optionally, timestamp.

    Duplicates keep their earliest time; entries of the same time are ordered by item id.
    """
    users, owner = _encode(table.column("user"), by_hash=True)
    items, code = _encode(table.column("item"), by_hash=False)
    key = owner.astype(np.int64) * max(1, len(items)) + code
    if "timestamp" in table.column_names:
        times = table.column("timestamp").to_numpy()
        order = np.argsort(key)
        key, times = key[order], times[order]
        first = np.flatnonzero(np.diff(key, prepend=-1))
        key, times = key[first], np.minimum.reduceat(times, first) if len(first) else times
        key = key[_by_time(key // max(1, len(items)), times)]
    else:
        key.sort()
        key = key[np.flatnonzero(np.diff(key, prepend=-1))]
    owner, code = np.divmod(key, max(1, len(items)))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(users)))]).astype(np.int64)
    return Part(users, items, offsets, code.astype(np.int32))


def _encode(column: pa.ChunkedArray, *, by_hash: bool) -> tuple[pa.Array, np.ndarray]:
    """(distinct ids in order, the position of each row's id among them: int32)."""
    encoded = column.combine_chunks().dictionary_encode()
    ids = encoded.dictionary
    if by_hash:
        hashes = pa.array(hash_ids(ids, BUCKET_SEED))
        keys = [("hash", "ascending"), ("id", "ascending")]
        order = pc.sort_indices(pa.table({"hash": hashes, "id": ids}), sort_keys=keys)
    else:
        order = pc.sort_indices(ids)
    place = np.empty(len(ids), np.int32)
    place[order.to_numpy()] = np.arange(len(ids), dtype=np.int32)
    return ids.take(order), place[encoded.indices.to_numpy(zero_copy_only=False)]


def _by_time(owner: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Order of entries by (owner, time), ties as they stand; owners int64 [L], times int64 or float64 [L]."""
    order = np.argsort(times)
    steps = np.empty(len(times), np.int64)
    steps[order] = np.cumsum(np.diff(times[order], prepend=times[order[:1]]) != 0)
    return np.argsort(owner * (int(steps.max(initial=0)) + 1) + steps, kind="stable")
