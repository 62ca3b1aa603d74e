"""From a heap of interactions to histories: one entry a user and item, in time order.

In: the interactions of one part of the user hash, in any order and with duplicates, a column at a time. Out: a `Part`:
distinct users in the order of their hash, distinct items sorted by id, and per user the item codes. All arrays; the
result depends on the set of interactions only, not on their order.

A part is as large as memory allows, so arrays go as soon as they have served: at most four of eight bytes an
interaction exist at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hse_dist.data.hashing import BUCKET_SEED, hash_ids

COUNTED = 1 << 20
"""Entries counted at a time."""


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

    def of_entries(self, of_users: np.ndarray) -> np.ndarray:
        """What each entry's user has in an array [U]: [L]."""
        return np.repeat(of_users, np.diff(self.offsets))

    def count(self, chosen: np.ndarray | None = None) -> np.ndarray:
        """How many users have each item, int64 [I]; of the entries in the mask (bool [L]) alone, where there is one."""
        total = np.zeros(len(self.items), np.int64)
        # bincount widens what it counts
        for first in range(0, len(self.codes), COUNTED):
            codes = self.codes[first : first + COUNTED]
            total += np.bincount(
                codes if chosen is None else codes[chosen[first : first + COUNTED]], minlength=len(total)
            )
        return total


Keep = Callable[[pa.Array, pa.Array, np.ndarray, np.ndarray | None], None]
"""Takes users, items, and of each distinct interaction user · items + item (int64 [L], rising) and earliest time."""


def group(read: Callable[[str], pa.Array], *, timed: bool, keep: Keep | None = None) -> Part:
    """Histories of interactions.

    Duplicates keep their earliest time; entries of the same time are ordered by item id.

    Args:
        read: gives the columns user, item and timestamp, all in one order; each is asked for once.
        timed: whether there are timestamps.
        keep: is shown the distinct interactions before they are put in order of time; must not change them.
    """
    users, key = _encode(read("user"), by_hash=True)
    items, code = _encode(read("item"), by_hash=False)
    width = max(1, len(items))
    key = key.astype(np.int64)
    key *= width
    key += code
    del code
    times = None
    if timed:
        times = read("timestamp").to_numpy()
        order = np.argsort(key)
        key, times = key[order], times[order]
        del order
    else:
        key.sort()
    first = _first_of_equals(key)
    if not first.all():
        if times is not None:
            times = np.minimum.reduceat(times, np.flatnonzero(first))
        key = key[first]
    if keep is not None:
        keep(users, items, key, times)
    offsets = np.searchsorted(key, np.arange(len(users) + 1) * width).astype(np.int64)
    if times is not None:
        turn = _turns(times, offsets)
        del times
        key = key[np.argsort(turn, kind="stable")]
        del turn
    np.remainder(key, width, out=key)
    return Part(users, items, offsets, key.astype(np.int32))


def _encode(column: pa.Array, *, by_hash: bool) -> tuple[pa.Array, np.ndarray]:
    """(distinct ids in order, the position of each row's id among them: int32)."""
    encoded = column.dictionary_encode()
    del column
    ids, indices = encoded.dictionary, encoded.indices.to_numpy()
    order = _order(ids, by_hash=by_hash)
    place = np.empty(len(ids), np.int32)
    place[order] = np.arange(len(ids), dtype=np.int32)
    return ids.take(pa.array(order)), place[indices]


def _order(ids: pa.Array, *, by_hash: bool) -> np.ndarray:
    """Order of distinct ids, rising, or by (hash, id)."""
    integers = pa.types.is_integer(ids.type)
    if not by_hash:
        return np.argsort(ids.to_numpy()) if integers else pc.sort_indices(ids).to_numpy()
    hashes = hash_ids(ids, BUCKET_SEED)
    if integers:
        return np.argsort(hashes)  # no two integers have one hash
    keys = [("hash", "ascending"), ("id", "ascending")]
    return pc.sort_indices(pa.table({"hash": hashes, "id": ids}), sort_keys=keys).to_numpy()


def _first_of_equals(key: np.ndarray) -> np.ndarray:
    """Whether an entry differs from the one before it; bool [L] of sorted int64 [L]."""
    first = np.ones(len(key), bool)
    np.not_equal(key[1:], key[:-1], out=first[1:])
    return first


def _turns(times: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Numbers that are in order by (user, time): int64 [L].

    Args:
        times: int64 or float64 [L], of users one after the other.
        offsets: int64 [U + 1], where each user's begin.
    """
    lengths, users = np.diff(offsets), len(offsets) - 1
    steps, span, least = times, 0, 0
    if len(times) and times.dtype.kind == "i":
        least, most = int(times.min()), int(times.max())
        span = most - least + 1
    # times that would not fit beside the users' numbers are replaced by their places among all times
    if not 0 < span * max(users, 1) < 1 << 62:
        steps, least = _places(times), 0
        span = int(steps.max(initial=0)) + 1
    turns = np.repeat(np.arange(users) * span - least, lengths)
    turns += steps
    return turns


def _places(times: np.ndarray) -> np.ndarray:
    """Place of each time among the distinct times, int64 [L]."""
    order = np.argsort(times)
    ordered = times[order]
    rises = np.zeros(len(times), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=rises[1:])
    del ordered
    places = np.empty(len(times), np.int64)
    places[order] = np.cumsum(rises)
    return places
