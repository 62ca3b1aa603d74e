"""The histories as flat files, by user and by item, for tasks that count which items users share.

In: prepared histories, block by block. Out: X and Xᵀ without values, 8 bytes an interaction, which tasks map instead of
receiving a copy. The driver holds one block, and a few numbers an item.

A history of more than `max_history` items gives a sample of k of its L items, drawn by a hash of (seed, user, item). A
pair of them is in the sample with the probability k (k - 1) / (L (L - 1)), and weighs as many times as much; weights
are whole numbers, rounded up or down by another hash of (seed, user) so that their expectation is exact. So counts stay
integers, are right in expectation, and depend on neither files nor tasks. The counts of single items are never sampled.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hse_dist.data.hashing import fraction_of, mix, seed_word
from hse_dist.data.prepared import HistoryBlock
from hse_dist.errors import ResourceError
from hse_dist.native.library import call, library

Ints = npt.NDArray[np.int64]
Shared = npt.NDArray[np.int32]

SCAN_USERS = 1 << 15
"""Histories read at a time."""
OWNERS = 1 << 18
"""Rows of a matrix transposed at a time."""
WEIGHT_SALT = np.uint64(0x776569676874)


@dataclass(frozen=True)
class Sampling:
    """How long histories are counted: at most `longest` items of each, drawn by `seed`."""

    longest: int = 10_000
    seed: int = 0


@dataclass(frozen=True)
class Lists:
    """A binary matrix by rows: row r has `members[offsets[r] : offsets[r + 1]]`, ascending.

    offsets: int64 [rows + 1]. members: int32 [entries], mapped.
    """

    offsets: Ints
    members: Shared


@dataclass(frozen=True)
class HistoryFiles:
    """Histories, opened.

    Attributes:
        by_user, by_item: X and Xᵀ. weights: int32 [users], or None where all are 1.
        counts: int64 [items], the weight of each item's users, without sampling. costs: int64 [items], pairs that each
            item's row of the triangle adds up. sampled: histories that were sampled.
    """

    by_user: Lists
    by_item: Lists
    weights: Shared | None
    counts: Ints
    costs: Ints
    sampled: int


def write_histories(
    blocks: Iterable[HistoryBlock], items: int, folder: Path, sampling: Sampling, weights_by_length: Ints | None = None
) -> None:
    """Write the files for `open_histories`.

    Args:
        weights_by_length: what a history of each length counts for, whole numbers from 1 on; None: all 1.

    Raises:
        ResourceError: the users of an item weigh more than an int32 holds.
    """
    folder.mkdir(parents=True)
    counts, costs, heavy = (np.zeros(items, np.int64) for _ in range(3))
    lengths, first, sampled = [], 0, 0
    with open(folder / "rows.bin", "wb") as rows_file, open(folder / "weights.bin", "wb") as weights_file:
        for block in blocks:
            whole = np.diff(block.offsets)
            base = np.ones(len(block), np.int64) if weights_by_length is None else weights_by_length[whole]
            counts += _sum(block.rows, np.repeat(base, whole), items)
            block, weights, drawn = sample(_ascending(block, items), base, first, sampling)
            own = np.diff(block.offsets)
            costs += _sum(block.rows, np.arange(len(block.rows)) - np.repeat(block.offsets[:-1], own), items)
            heavy += _sum(block.rows, np.repeat(weights, own), items)
            block.rows.astype(np.int32).tofile(rows_file)
            np.minimum(weights, np.iinfo(np.int32).max).astype(np.int32).tofile(weights_file)
            lengths.append(own)
            first, sampled = first + len(block), sampled + drawn
    _check_sums(counts, heavy, sampling)
    if weights_by_length is None and not sampled:
        (folder / "weights.bin").unlink()
    np.save(folder / "counts.npy", counts)
    np.save(folder / "costs.npy", costs)
    np.save(folder / "sampled.npy", np.array(sampled))
    np.save(folder / "row_offsets.npy", np.concatenate([[0], *lengths]).cumsum())
    write_transposed(Lists(np.load(folder / "row_offsets.npy"), mapped(folder / "rows.bin")), items, folder, "users")


def _check_sums(counts: Ints, heavy: Ints, sampling: Sampling) -> None:
    """Raise where an item's users weigh more, without sampling or with it, than a sum of theirs can hold."""
    most, sampled = int(counts.max(initial=0)), int(heavy.max(initial=0))
    if max(most, sampled) <= np.iinfo(np.int32).max:
        return
    whole = most > np.iinfo(np.int32).max
    raise ResourceError(
        f"The users of one item weigh {most if whole else sampled} in all, more than its counts can hold.",
        cause="Let all histories count alike." if whole else "Sampled histories weigh too much: raise the limit.",
        setting=f"sparsity.local_inverse.{'history_power' if whole else 'max_history'}",
        value=0.0 if whole else sampling.longest,
    )


def open_histories(folder: Path) -> HistoryFiles:
    """What `write_histories` wrote, mapped into memory."""
    weights = folder / "weights.bin"
    return HistoryFiles(
        open_lists(folder, "row_offsets", "rows"),
        open_lists(folder, "users_offsets", "users"),
        mapped(weights) if weights.exists() else None,
        np.load(folder / "counts.npy"),
        np.load(folder / "costs.npy"),
        int(np.load(folder / "sampled.npy")),
    )


def sample(block: HistoryBlock, base: Ints, first: int, sampling: Sampling) -> tuple[HistoryBlock, Ints, int]:
    """Histories cut down to the longest, the users' weights, and how many were cut.

    Args:
        block: the users first, first + 1, …. base: int64 [users], what each history counts for by itself.
    """
    lengths = np.diff(block.offsets)
    long = np.flatnonzero(lengths > sampling.longest)
    if not len(long):
        return block, base, 0
    keep, weights = np.ones(len(block.rows), bool), base.copy()
    for user in long.tolist():
        mine = slice(block.offsets[user], block.offsets[user + 1])
        key = mix(np.array([first + user], np.uint64) ^ seed_word(sampling.seed))
        order = np.argsort(mix(key ^ block.rows[mine].astype(np.uint64)), kind="stable")
        keep[mine][order[sampling.longest :]] = False
        length, drawn = int(lengths[user]), sampling.longest
        exact = int(base[user]) * length * (length - 1) / (drawn * (drawn - 1))
        weights[user] = int(exact) + int(fraction_of(mix(key ^ WEIGHT_SALT))[0] < exact % 1)
    offsets = np.concatenate([[0], np.minimum(lengths, sampling.longest).cumsum()])
    return HistoryBlock(offsets, block.rows[keep]), weights, len(long)


def write_transposed(lists: Lists, columns: int, folder: Path, name: str) -> None:
    """Write which rows hold each of the columns, ascending, for `open_lists`; a block of rows at a time."""
    counts = np.zeros(columns, np.int64)
    for members in (lists.members[begin:end] for _, begin, end in _blocks(lists)):
        counts += np.bincount(members, minlength=columns)
    offsets = np.concatenate([[0], counts.cumsum()])
    np.save(folder / f"{name}_offsets.npy", offsets)
    path, cursors = folder / f"{name}.bin", offsets[:-1].copy()
    if not len(lists.members):
        path.touch()
        return
    owners = np.memmap(path, np.int32, mode="w+", shape=len(lists.members))
    for first, begin, end in _blocks(lists):
        own = lists.offsets[first : first + OWNERS + 1]
        if library() is not None:
            call("hse_transpose", len(own) - 1, first, own, lists.members[begin:end], cursors, owners)
        else:
            _transpose(own, first, lists.members[begin:end], cursors, owners)
    owners.flush()


def _transpose(own: Ints, first: int, members: Shared, cursors: Ints, owners: Shared) -> None:
    order = np.argsort(members, kind="stable")
    placed = members[order]
    starts = np.flatnonzero(np.diff(placed, prepend=-1))
    lengths = np.diff(np.append(starts, len(placed)))
    places = np.repeat(cursors[placed[starts]] - starts, lengths) + np.arange(len(placed))
    owners[places] = np.repeat(np.arange(first, first + len(own) - 1), np.diff(own))[order]
    cursors[placed[starts]] += lengths


def _blocks(lists: Lists) -> Iterator[tuple[int, int, int]]:
    """(first row, its first entry, the block's last entry) of blocks of `OWNERS` rows."""
    for first in range(0, len(lists.offsets) - 1, OWNERS):
        last = min(first + OWNERS, len(lists.offsets) - 1)
        yield first, int(lists.offsets[first]), int(lists.offsets[last])


def open_lists(folder: Path, offsets: str, members: str) -> Lists:
    """A matrix by rows, its members mapped."""
    return Lists(np.load(folder / f"{offsets}.npy"), mapped(folder / f"{members}.bin"))


def mapped(path: Path) -> Shared:
    """A flat file of int32, read-only."""
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, np.int32)
    return np.asarray(np.memmap(path, np.int32, mode="r"))


def _ascending(block: HistoryBlock, items: int) -> HistoryBlock:
    owner = np.repeat(np.arange(len(block)) * items, np.diff(block.offsets))
    return HistoryBlock(block.offsets, np.sort(owner + block.rows) - owner)


def _sum(rows: Ints, values: Ints, items: int) -> Ints:
    """Sums by item; exact, as they stay below 2^53."""
    return np.bincount(rows, values, minlength=items).astype(np.int64)
