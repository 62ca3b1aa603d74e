"""Exact selection of the k strongest (or weakest) keys that lie on many machines, without moving the keys.

In: per segment (a range of rows of a table) the histograms of its keys. Out: one threshold and a quota of ties for
every segment, so that exactly k keys are chosen in all.

A key is a float32 score mapped to an unsigned integer of the same order. Its 32 bits are fixed from the top in three
rounds (11, 11 and 10 bits): each round counts the keys under the prefix found so far and extends the prefix by the bin
that holds the k-th key. After the last round the prefix is the k-th key itself. Only keys equal to it can tie, and
they are taken in canonical order: segment by segment, and inside a segment by position. So what is chosen depends on
the keys alone, not on how ranges are spread over ranks; and a message is 16 KiB a segment, whatever the table's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hse_dist.errors import NumericError, ProtocolError
from hse_dist.native.library import call, library

BITS = (11, 11, 10)
"""Bits of the key that each round fixes, from the top."""

KEY_BITS = sum(BITS)
HIGHEST_KEY = 2**KEY_BITS - 1
RESERVE_KEY = 0xFF800000
"""Keys from here on are above that of every score: for entries that have none, but must be in the order."""
RESERVE_SHIFT = 8
KEYS_AT_A_TIME = 2**20

Keys = npt.NDArray[np.uint32]
Counts = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def order_keys(scores: npt.NDArray[np.float32]) -> Keys:
    """Map float32 scores to uint32 keys of the same order; -0 and +0 get the same key.

    Raises:
        NumericError: a score is NaN or infinite; names its position.
    """
    scores = np.ascontiguousarray(scores, dtype=np.float32)
    finite = np.isfinite(scores)
    if not finite.all():
        position = int(np.argmin(finite.ravel()))
        raise NumericError(
            f"Score {position} of {scores.size} is {scores.ravel()[position]}.",
            cause="A value, gain or gradient is NaN or infinite; such a score has no place in an order.",
        )
    bits = (scores + np.float32(0)).view(np.uint32)  # -0 + 0 = +0
    # IEEE floats are sign and magnitude: flip all bits of negatives, set the sign bit of the others
    sign = np.uint32(1 << (KEY_BITS - 1))
    return np.where(bits & sign, ~bits, bits | sign)


def reserve_keys(scores: npt.NDArray[np.float32]) -> Keys:
    """Keys above those of all scores, in the order of other ones, finite and not negative, to 15 bits of mantissa."""
    return (scores + np.float32(0)).view(np.uint32) >> np.uint32(RESERVE_SHIFT) | np.uint32(RESERVE_KEY)


def score_of(key: int) -> float | None:
    """The score that a key was made of; None for a key of no score: the threshold of a selection of nothing."""
    sign = 1 << (KEY_BITS - 1)
    score = float(np.array(key ^ sign if key & sign else ~key & HIGHEST_KEY, np.uint32).view(np.float32))
    return score if np.isfinite(score) else None


@dataclass(frozen=True)
class Query:
    """What to count next: the bits of `round`, among keys whose higher bits equal `prefix`."""

    round: int
    prefix: int

    @property
    def bins(self) -> int:
        """Number of bins of the histogram asked for."""
        return int(2 ** BITS[self.round])

    @property
    def shift(self) -> int:
        """Bits below those of this round."""
        return KEY_BITS - sum(BITS[: self.round + 1])


@dataclass(frozen=True)
class Selection:
    """The answer: keys strictly beyond `threshold` are all chosen, keys equal to it up to a quota.

    `quotas[s]` is how many equal keys segment s takes, the first ones in its canonical order; `count` is how many keys
    are chosen in all: the smaller of the number asked for and the number of keys.
    """

    threshold: int
    quotas: tuple[int, ...]
    count: int


def histogram(keys: Keys, query: Query) -> Counts:
    """How many keys fall into each bin of the query: int64 [2^BITS[round]]; a key of 0 is none (no score has it)."""
    counts = np.zeros(query.bins, dtype=np.int64)
    if library() is not None:
        bits = BITS[query.round]
        keys = np.ascontiguousarray(keys)
        call("hse_histogram", len(keys), torch.get_num_threads(), keys, query.shift, bits, query.prefix, counts)
        return counts
    for first in range(0, len(keys), KEYS_AT_A_TIME):
        part = keys[first : first + KEYS_AT_A_TIME]
        part = part[part != 0]
        if query.round:
            part = part[(part >> np.uint32(query.shift + BITS[query.round])) == query.prefix]
        counts += np.bincount((part >> np.uint32(query.shift)) & np.uint32(query.bins - 1), minlength=query.bins)
    return counts


def under(keys: Keys, query: Query) -> Keys:
    """The keys that a query after the first round and all that follow it are about: what they count is so much less."""
    shift = query.shift + BITS[query.round]
    if library() is None:
        return keys[(keys >> np.uint32(shift)) == query.prefix]
    found = np.empty(len(keys) + 1, np.uint32)
    return found[: call("hse_under", len(keys), np.ascontiguousarray(keys), shift, query.prefix, found)]


class RadixSelection:
    """Finds the threshold from histograms; the server's side, which never sees a score.

    Feed it the histograms that `query` asks for until it answers with a `Selection`. Segments come in canonical
    order: by table, then by first row.

    Args:
        count: how many keys to choose; more than there are chooses all.
        largest: choose the largest keys, else the smallest.
    """

    def __init__(self, count: int, largest: bool) -> None:
        if count < 0:
            raise ProtocolError(f"A selection of {count} keys was asked for; the number must not be negative.")
        self.count = count
        self.largest = largest
        self.query = Query(0, 0)
        self._remaining = count
        self._expected: Counts | None = None  # keys of each segment under the present prefix
        self._done = False

    def feed(self, histograms: Counts) -> Query | Selection:
        """Take the histograms of the present query, int64 [segments, bins]; the next query, or the answer.

        Raises:
            ProtocolError: the selection is complete, or the histograms do not fit the query or the round before.
        """
        histograms = self._checked(histograms)
        if self.query.round == 0:
            self._remaining = self.count = min(self.count, int(histograms.sum()))
        if self.count == 0:
            self._done = True
            return Selection(HIGHEST_KEY if self.largest else 0, (0,) * len(histograms), 0)
        bin_ = self._bin_of_last(histograms.sum(axis=0))
        prefix = self.query.prefix * self.query.bins + bin_
        equal = histograms[:, bin_]
        if self.query.round == len(BITS) - 1:
            self._done = True
            before = np.cumsum(equal) - equal
            quotas = np.clip(self._remaining - before, 0, equal)
            return Selection(prefix, tuple(quotas.tolist()), self.count)
        self._expected = equal.copy()
        self.query = Query(self.query.round + 1, prefix)
        return self.query

    def _bin_of_last(self, totals: Counts) -> int:
        """The bin that holds the last key to choose; what lies beyond it is chosen and leaves `_remaining`."""
        ordered = totals[::-1] if self.largest else totals
        reached = np.cumsum(ordered)
        position = int(np.searchsorted(reached, self._remaining))
        self._remaining -= int(reached[position] - ordered[position])
        return len(totals) - 1 - position if self.largest else position

    def _checked(self, histograms: Counts) -> Counts:
        if self._done:
            raise ProtocolError("Histograms were sent to a selection that is complete.")
        histograms = np.asarray(histograms)
        if histograms.dtype != np.int64 or histograms.ndim != 2 or histograms.shape[1] != self.query.bins:
            raise ProtocolError(
                f"Histograms {histograms.dtype} {list(histograms.shape)} do not fit round {self.query.round}, "
                f"which takes int64 [segments, {self.query.bins}]."
            )
        if (histograms < 0).any():
            raise ProtocolError(f"A histogram of round {self.query.round} has a negative count.")
        if self._expected is not None and not np.array_equal(histograms.sum(axis=1), self._expected):
            raise ProtocolError(
                f"The histograms of round {self.query.round} do not count the keys that the round before found.",
                cause="Keys changed between the rounds, or segments came in another order.",
            )
        return histograms


def chosen(keys: Keys, selection: Selection, segment: int, largest: bool) -> Mask:
    """Which keys of a segment, in its canonical order, the selection takes."""
    threshold = np.uint32(selection.threshold)
    mask = keys > threshold if largest else keys < threshold
    quota = selection.quotas[segment]
    if quota:
        mask[np.flatnonzero(keys == threshold)[:quota]] = True
    return mask


def select(keys_by_segment: Sequence[Keys], count: int, largest: bool) -> list[Mask]:
    """The whole protocol in one process: a mask a segment, with `min(count, keys)` chosen in all."""
    if not keys_by_segment:
        return []
    server = RadixSelection(count, largest)
    answer: Query | Selection = server.query
    while isinstance(answer, Query):
        answer = server.feed(np.stack([histogram(keys, answer) for keys in keys_by_segment]))
    return [chosen(keys, answer, segment, largest) for segment, keys in enumerate(keys_by_segment)]
